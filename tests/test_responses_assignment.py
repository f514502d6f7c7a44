"""Which output item of a response an event belongs to, whatever ids and indexes an engine sends or omits."""

from __future__ import annotations

from typing import Any, Final

import pytest
from support.responses import BARE, read

from friendli_async.responses.collector import Wording

# The events, each with its kind, id, index and text, and the id and the text of each item that they encode.
ITEMS_OF: Final[dict[str, tuple[list[tuple[str, str | None, int | None, str]], list[tuple[str | None, str]]]]] = {
    "another id in each delta": (
        [("added", "a", None, ""), ("delta", "b", None, "x"), ("delta", "c", None, "y")],
        [("a", "xy")],
    ),
    "another id in each delta, not announced": (
        [("delta", "a", 0, "x"), ("delta", "b", 0, "y"), ("delta", "c", 0, "z")],
        [("a", "xyz")],
    ),
    "another id in each delta of two items": (
        [("added", "a", 0, ""), ("delta", "b", 0, "x"), ("added", "c", 1, ""), ("delta", "d", 1, "y")],
        [("a", "x"), ("c", "y")],
    ),
    "ids": (
        [("delta", "a", None, "x"), ("delta", "b", None, "y"), ("delta", "a", None, "z")],
        [("a", "xz"), ("b", "y")],
    ),
    "id that a delta has named": (
        [("added", "a", None, ""), ("delta", "a", None, "x"), ("delta", "b", None, "y")],
        [("a", "x"), ("b", "y")],
    ),
    "id that a delta has named without the index": (
        [("added", "a", 0, ""), ("delta", "a", None, "x"), ("delta", "b", None, "y")],
        [("a", "x"), ("b", "y")],
    ),
    "id that a delta has named without the index that another has": (
        [("added", "a", 0, ""), ("delta", "a", None, "x"), ("delta", "b", 0, "y")],
        [("a", "x"), ("b", "y")],
    ),
    "one index, two ids": (
        [("delta", "a", 0, "x"), ("delta", "a", 0, "y"), ("delta", "b", 0, "z")],
        [("a", "xy"), ("b", "z")],
    ),
    "one id, two indexes": (
        [
            ("added", "a", 0, ""),
            ("added", "a", 1, ""),
            ("delta", "a", 0, "x"),
            ("delta", "a", 1, "y"),
            ("delta", "a", 0, "z"),
        ],
        [("a", "xz"), ("a", "y")],
    ),
    "one index, the first item complete": (
        [("delta", None, 0, "x"), ("done", None, 0, "x"), ("delta", None, 0, "y")],
        [(None, "x"), (None, "y")],
    ),
    "neither ids nor indexes, the first item complete": (
        [("delta", None, None, "x"), ("done", None, None, "x"), ("delta", None, None, "y")],
        [(None, "x"), (None, "y")],
    ),
    "id only in the complete item": (
        [("added", None, None, ""), ("done", "a", None, ""), ("whole", "a", None, "x")],
        [("a", "x")],
    ),
    "index only in the complete item": (
        [("added", None, None, ""), ("done", None, 0, ""), ("whole", None, 0, "x")],
        [(None, "x")],
    ),
    "id only in the complete item, known by its index": (
        [("added", None, 0, ""), ("done", "a", 0, ""), ("whole", "a", None, "x")],
        [("a", "x")],
    ),
    "index only in the complete item, known by its id": (
        [("added", "a", None, ""), ("done", "a", 0, ""), ("whole", None, 0, "x")],
        [("a", "x")],
    ),
    "id of one item, index of another": (
        [("added", "a", 0, ""), ("added", "b", 1, ""), ("delta", "a", 1, "x")],
        [("a", "x"), ("b", "")],
    ),
    "complete item after one that a delta has named": (
        [("added", "a", None, ""), ("delta", "a", None, "x"), ("done", "b", None, "")],
        [("a", "x"), ("b", "")],
    ),
    "no index in a delta between": (
        [("added", None, 0, ""), ("delta", None, None, "x"), ("delta", None, 1, "y")],
        [(None, "x"), (None, "y")],
    ),
    "only complete items": ([("done", None, None, ""), ("done", None, None, "")], [(None, ""), (None, "")]),
    "announced twice, another id in each delta": (
        [("added", "a", None, ""), ("added", "a", None, ""), ("delta", "b", None, "x")],
        [("a", "x")],
    ),
    "announced twice at one index": (
        [("added", "a", 0, ""), ("added", "a", 0, ""), ("delta", "a", 0, "x")],
        [("a", "x")],
    ),
    "announced at another index": ([("delta", "a", 0, "x"), ("added", "a", 1, "")], [("a", "x"), ("a", "")]),
    "announced twice at one index, without ids": (
        [("added", None, 0, ""), ("delta", None, 0, "x"), ("added", None, 0, ""), ("delta", None, 0, "y")],
        [(None, "xy")],
    ),
    "announced twice with neither": (
        [("added", None, None, ""), ("added", None, None, ""), ("delta", None, None, "x")],
        [(None, "x")],
    ),
    "two announced at one index, without ids": (
        [("added", None, 0, ""), ("added", None, 0, "other"), ("delta", None, 0, "x")],
        [(None, ""), (None, "x")],
    ),
    "two announced at one index": (
        [("added", "a", 0, ""), ("added", "b", 0, ""), ("delta", "b", 0, "x")],
        [("a", ""), ("b", "x")],
    ),
    "announced late without an id": (
        [("delta", None, 0, "x"), ("added", None, 0, ""), ("delta", "a", 0, "y")],
        [(None, "xy")],
    ),
    "announced late, then the next": (
        [("delta", None, None, "x"), ("added", None, None, ""), ("added", None, None, ""), ("delta", None, None, "y")],
        [(None, "x"), (None, "y")],
    ),
    "id from a late announcement": (
        [("delta", None, 0, "x"), ("added", "a", 0, ""), ("delta", None, 1, "y"), ("delta", "a", None, "z")],
        [("a", "xz"), (None, "y")],
    ),
    "index from a late announcement": (
        [("delta", "a", None, "x"), ("added", "a", 0, ""), ("delta", "b", None, "y"), ("delta", None, 0, "z")],
        [("a", "xz"), ("b", "y")],
    ),
    "index only in deltas": (
        [("added", "a", None, ""), ("delta", None, 0, "x"), ("delta", None, 0, "y"), ("delta", None, 1, "z")],
        [("a", "xy"), (None, "z")],
    ),
    "id only in a delta": (
        [("added", None, None, ""), ("delta", "a", None, "x"), ("delta", "b", None, "y")],
        [(None, "x"), ("b", "y")],
    ),
    "announced late": (
        [("delta", "a", 0, "x"), ("added", "a", 0, ""), ("delta", "a", 0, "y"), ("delta", "b", 0, "z")],
        [("a", "xy"), ("b", "z")],
    ),
    "announced late, with another id": (
        [("delta", "a", 0, "x"), ("added", "b", 0, ""), ("delta", "c", 0, "y")],
        [("b", "xy")],
    ),
    "announced late, twice": (
        [("delta", None, None, "x"), ("added", "a", None, ""), ("added", "a", None, ""), ("delta", None, None, "y")],
        [("a", "xy")],
    ),
}


@pytest.mark.parametrize("case", ITEMS_OF)
@pytest.mark.parametrize("kind", ["message", "function_call"])
def test_events_are_assigned_to_these_items(case: str, kind: str) -> None:
    events, expected = ITEMS_OF[case]
    part = "output_text" if kind == "message" else "function_call_arguments"
    payloads: list[dict[str, Any]] = []
    for stage, name, index, text in events:
        if stage in {"added", "done"}:
            item: dict[str, Any] = {"type": kind, "id": name, "content": [], "name": f"f{text}"}
            payloads.append({"type": f"response.output_item.{stage}", "item": item, "output_index": index})
        else:
            fields = {"delta": text} if stage == "delta" else {"text": text, "arguments": text}
            where = {"item_id": name, "output_index": index}
            payloads.append({"type": f"response.{part}.{'delta' if stage == 'delta' else 'done'}", **fields, **where})
    collector, _ = read([*payloads, BARE])
    output = collector.result().output
    assert [(item.id, item.text if kind == "message" else item.arguments or "") for item in output] == expected


@pytest.mark.parametrize(
    ("first", "indexes", "expected"),
    [
        ({"type": "refusal", "refusal": ""}, [None], "x"),
        ({"type": "refusal", "refusal": ""}, [0], "x"),
        ({"type": "output_text", "text": ""}, [0, 1], "xx"),
    ],
    ids=["no index", "index of the empty part", "equal texts of both parts"],
)
def test_text_of_a_later_part_is_not_that_of_an_empty_one(
    first: dict[str, str], indexes: list[int | None], expected: str
) -> None:
    item = {"type": "message", "id": "a"}
    done = {**item, "content": [first, {"type": "output_text", "text": "x"}]}
    delta = {"type": "response.output_text.delta", "output_index": 0, "item_id": "a", "delta": "x"}
    collector, events = read(
        [
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            *({**delta, "content_index": index} for index in indexes),
            {"type": "response.output_item.done", "item": done},
            BARE,
        ]
    )
    assert collector.result().text == "".join(map(Wording("output_text").of, events)) == expected
