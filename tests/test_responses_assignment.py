"""Which output item of a response an event belongs to, with the ids and indexes that engines and gateways send."""

from __future__ import annotations

from typing import Any, Final

import pytest
from support.responses import BARE, read

from friendli_async.responses.collector import _Wording

# The events, each with its kind, id, index and text, and the id and the text of each item that they encode.
ITEMS_OF: Final[dict[str, tuple[list[tuple[str, str | None, int | None, str]], list[tuple[str | None, str]]]]] = {
    "ids and indexes": (
        [("added", "a", 0, ""), ("delta", "a", 0, "x"), ("added", "b", 1, ""), ("delta", "b", 1, "y")],
        [("a", "x"), ("b", "y")],
    ),
    "ids": (
        [("added", "a", None, ""), ("delta", "a", None, "x"), ("added", "b", None, ""), ("delta", "b", None, "y")],
        [("a", "x"), ("b", "y")],
    ),
    "ids, interleaved and not announced": (
        [("delta", "a", None, "x"), ("delta", "b", None, "y"), ("delta", "a", None, "z")],
        [("a", "xz"), ("b", "y")],
    ),
    "ids only in deltas": (
        [("added", None, None, ""), ("delta", "a", None, "x"), ("added", None, None, ""), ("delta", "b", None, "y")],
        [(None, "x"), (None, "y")],
    ),
    "one id for all": (
        [
            *(("added", "a", 0, ""), ("delta", "a", 0, "x"), ("done", "a", 0, "")),
            *(("added", "a", 1, ""), ("delta", "a", 1, "y"), ("done", "a", 1, "")),
        ],
        [("a", "x"), ("a", "y")],
    ),
    "ids, and one index for all": (
        [("added", "a", 0, ""), ("delta", "a", 0, "x"), ("added", "b", 0, ""), ("delta", "b", 0, "y")],
        [("a", "x"), ("b", "y")],
    ),
    "indexes": (
        [("added", None, 0, ""), ("delta", None, 0, "x"), ("added", None, 1, ""), ("delta", None, 1, "y")],
        [(None, "x"), (None, "y")],
    ),
    "indexes, and another id in each event": (
        [
            *(("added", "a", 0, ""), ("delta", "b", 0, "x"), ("delta", "c", 0, "y"), ("done", "d", 0, "")),
            *(("added", "e", 1, ""), ("delta", "f", 1, "z")),
        ],
        [("d", "xy"), ("e", "z")],
    ),
    "indexes, and another id in each event, not announced": (
        [("delta", "a", 0, "x"), ("delta", "b", 0, "y"), ("delta", "c", 1, "z")],
        [("a", "xy"), ("c", "z")],
    ),
    "one index, the first item complete": (
        [("delta", None, 0, "x"), ("done", None, 0, "x"), ("delta", None, 0, "y")],
        [(None, "x"), (None, "y")],
    ),
    "neither": (
        [("added", None, None, ""), ("delta", None, None, "x"), ("added", None, None, ""), ("delta", None, None, "y")],
        [(None, "x"), (None, "y")],
    ),
    "neither, the first item complete": (
        [("delta", None, None, "x"), ("done", None, None, "x"), ("delta", None, None, "y")],
        [(None, "x"), (None, "y")],
    ),
    "only complete items": ([("done", None, None, ""), ("done", None, None, "")], [(None, ""), (None, "")]),
    "complete item twice": ([("done", "a", 0, ""), ("done", "a", 0, "")], [("a", "")]),
    "complete item announced again": ([("done", "a", 0, ""), ("added", "a", 0, "other")], [("a", "")]),
    "announced after a delta": (
        [("delta", "a", None, "x"), ("added", "a", None, ""), ("delta", "a", None, "y")],
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


def test_one_id_for_the_reasoning_and_the_text_of_a_reply_names_two_items() -> None:
    deltas = [("reasoning_text", "a"), ("output_text", "b"), ("reasoning_text", "c"), ("output_text", "d")]
    collector, events = read(
        [
            *(
                {"type": f"response.{kind}.delta", "item_id": "i", "output_index": 0, "delta": text}
                for kind, text in deltas
            ),
            BARE,
        ]
    )
    assert [item.type for item in collector.result().output] == ["reasoning", "message"]
    assert collector.result().reasoning == "".join(map(_Wording("reasoning_text").of, events)) == "ac"
    assert collector.result().text == "".join(map(_Wording("output_text").of, events)) == "bd"
