"""What the property tests draw from: event streams, the ways to cut them up, chats and the ways to chunk them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The same examples every time, and nothing kept on disk.
deterministic = settings(
    derandomize=True, deadline=None, database=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
# For what takes long to draw.
fewer = settings(deterministic, max_examples=40)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
"""Anything that a body or a reply can hold."""

# --- bytes -----------------------------------------------------------------------------------------------------------


@st.composite
def cuttings(draw: st.DrawFn, length: int, pieces: int = 12) -> list[int]:
    """Ascending positions to cut something of this length at; a position may come twice, which gives an empty piece."""
    return sorted(draw(st.lists(st.integers(0, length), max_size=pieces)))


def cut(data: bytes, positions: Sequence[int]) -> list[bytes]:
    """The data in pieces, cut at these ascending positions."""
    edges = [0, *positions, len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# Separators that only Unicode knows, a BOM inside, a NUL, and every length of UTF-8.
_VALUE_TEXT = st.text(alphabet="ab :\t\0\u0085\u2028\u2029\ufeffé漢😀", max_size=8)
_VALUES = st.one_of(
    _VALUE_TEXT.map(str.encode),
    st.sampled_from([b"", b" ", b"  x", b"[DONE]", b"7", b"007", b"12x", b"-1", b"1 ", "٣".encode()]),
    st.binary(max_size=6).map(lambda raw: raw.replace(b"\r", b".").replace(b"\n", b".")),  # not always UTF-8
)
_FIELDS = st.sampled_from(
    [b"data", b"event", b"id", b"retry", b"", b"Data", b"dat", b"datas", b" data", b"\xef\xbb\xbfdata"]
)
_LINES = st.one_of(
    st.builds(lambda field, colon, value: field + colon + value, _FIELDS, st.sampled_from([b":", b": "]), _VALUES),
    st.sampled_from([b"data", b"event", b"id", b"retry", b":", b"", b"", b"data: x"]),
)
_LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
_BOMS = st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\xef\xbb", b"\xef", b"\xef\xbb\xbf\xef\xbb\xbf"])


@st.composite
def event_streams(draw: st.DrawFn) -> bytes:
    """The bytes of an event stream, well-formed or not, with line ends of all kinds; perhaps cut off."""
    lines = draw(st.lists(st.tuples(_LINES, _LINE_ENDS), max_size=14))
    return draw(_BOMS) + b"".join(line + end for line, end in lines) + draw(st.sampled_from([b"", b"data: cut"]))


# --- chats -----------------------------------------------------------------------------------------------------------

Entry = dict[str, Any]
"""One item of a chunk's ``choices``."""

_TEXT = st.text(alphabet='ab {"\\\u2028é漢😀🏳', max_size=12)
_NAMES = st.sampled_from(["search", "calculate", "say"])


def _pieces(draw: st.DrawFn, text: str, *, inside_characters: bool = False) -> list[str]:
    """The text in pieces, on request cut inside the characters that UTF-16 has two units for, as tokenizers do."""
    units = text
    if inside_characters:
        raw = text.encode("utf-16-le")
        units = "".join(chr(int.from_bytes(raw[at : at + 2], "little")) for at in range(0, len(raw), 2))
    edges = [0, *draw(cuttings(len(units), 4)), len(units)]
    return [units[start:end] for start, end in pairwise(edges)]


@st.composite
def _choice(draw: st.DrawFn, index: int) -> tuple[dict[str, Any], list[Entry]]:
    """What a choice says, and the entries that stream it, in order."""
    text, reasoning = draw(_TEXT), draw(_TEXT)
    spelling = draw(st.sampled_from(["reasoning_content", "reasoning"]))
    calls = [
        {"id": f"call-{index}-{at}", "name": draw(_NAMES), "arguments": draw(_TEXT)}
        for at in range(draw(st.integers(0, 3)))
    ]
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "something-new"]))
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": draw(st.sampled_from([None, ""]))}]
    deltas += [{spelling: piece} for piece in _pieces(draw, reasoning, inside_characters=True)]
    deltas += [{"content": piece} for piece in _pieces(draw, text, inside_characters=True)]
    for at, call in enumerate(calls):
        head = {"index": at, "id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": ""}}
        deltas.append({"tool_calls": [head]})
        for piece in _pieces(draw, call["arguments"]):
            deltas.append({"tool_calls": [{"index": at, "function": {"arguments": piece}}]})
    entries: list[Entry] = [{"index": index, "delta": delta} for delta in deltas]
    tokens = draw(st.lists(st.sampled_from(["a", "b"]), max_size=3))
    for entry, token in zip(entries, tokens, strict=False):
        entry["logprobs"] = {"content": [{"token": token, "logprob": -0.5, "top_logprobs": []}]}
    entries.append({"index": index, "delta": {}, "finish_reason": reason})
    said = {"text": text, spelling: reasoning, "calls": calls, "tokens": tokens[: len(deltas)], "finish_reason": reason}
    return said, entries


@st.composite
def chats(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Entry]]:
    """What the choices of a chat say, and the entries that stream them: each choice's in order, the choices mixed."""
    choices = [draw(_choice(index)) for index in range(draw(st.integers(1, 3)))]
    queues = [list(entries) for _, entries in choices]
    mixed: list[Entry] = []
    while left := [queue for queue in queues if queue]:
        mixed.append(draw(st.sampled_from(left)).pop(0))
    return [said for said, _ in choices], mixed


def chunk(entries: Sequence[Entry], **fields: object) -> bytes:
    """A chunk as it is on the wire; lone surrogates go out escaped."""
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m"}
    return json.dumps({**head, "choices": list(entries), **fields}).encode()


@st.composite
def chunkings(draw: st.DrawFn, entries: Sequence[Entry]) -> list[bytes]:
    """The entries, in order, in chunks of any number of them; among the chunks, some that say nothing."""
    edges = [0, *draw(cuttings(len(entries), 6)), len(entries)]
    groups = [entries[start:end] for start, end in pairwise(edges)]
    return [chunk(group) for group in groups]
