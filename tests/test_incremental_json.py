"""The incremental JSON reader: all rules of RFC 8259, at every split, in linear time."""

import codecs
import copy
import json
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async.chat.incremental_json import (
    MAX_DEPTH,
    JSONDepthError,
    JSONError,
    JSONIncompleteError,
    JSONReader,
    read_json,
)

TEXTS: Final[dict[str, dict[str, str]]] = json.loads((Path(__file__).parent / "data" / "json_texts.json").read_text())
VALID: Final = TEXTS["valid"]
INVALID: Final = TEXTS["invalid"]
INVALID_BYTES: Final = {name: bytes.fromhex(digits) for name, digits in TEXTS["invalid_bytes"].items()}


def parse_pieces(pieces: Iterable[str | bytes], *, read_value: bool = True) -> Any:
    """Parses the pieces; with `read_value`, also reads the partial value after each one."""
    reader = JSONReader()
    for piece in pieces:
        reader.feed(piece)
        if read_value:
            _ = reader.value
    return reader.close()


def is_identical(one: object, other: object) -> bool:
    """Whether values are equal with equal types and key order: 1 is not 1.0, 0 not False, -0.0 not 0.0."""
    return repr(one) == repr(other)


def splits(text: str) -> Iterable[Sequence[str]]:
    """The whole text, its characters, and every split into two and three pieces."""
    yield [text]
    yield list(text)
    for start in range(len(text) + 1):
        yield [text[:start], text[start:]]
        for end in range(start, len(text) + 1):
            yield [text[:start], text[start:end], text[end:]]


# --- RFC 8259, at every split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALID)
def test_valid_text_is_parsed_at_every_split(name: str) -> None:
    expected = json.loads(VALID[name])
    assert all(is_identical(parse_pieces(pieces), expected) for pieces in splits(VALID[name]))


@pytest.mark.parametrize("name", VALID)
def test_valid_bytes_are_parsed_at_every_split(name: str) -> None:
    data = VALID[name].encode()
    expected = json.loads(data)
    assert is_identical(parse_pieces([data]), expected)
    assert is_identical(parse_pieces(data[at : at + 1] for at in range(len(data))), expected)
    assert all(is_identical(parse_pieces([data[:at], data[at:]]), expected) for at in range(len(data)))


@pytest.mark.parametrize("name", INVALID)
def test_invalid_text_is_rejected_at_every_split(name: str) -> None:
    for pieces in splits(INVALID[name]):
        with pytest.raises(JSONError):
            parse_pieces(pieces)


@pytest.mark.parametrize("name", INVALID_BYTES)
def test_invalid_bytes_are_rejected_at_every_split(name: str) -> None:
    data = INVALID_BYTES[name]
    for at in range(len(data) + 1):
        with pytest.raises(JSONError):
            parse_pieces([data[:at], data[at:]])


def test_corpus_agrees_with_json_except_for_listed_texts() -> None:
    only_json_accepts = {"nan", "nan_in_list", "infinity", "minus_infinity", "too_large", "too_large_negative"}
    accepted = set()
    for name, text in INVALID.items():
        try:
            json.loads(text)
        except ValueError:
            continue
        accepted.add(name)
    assert accepted == only_json_accepts


@pytest.mark.parametrize("text", ["\U0001f600", "a\U0001f600b\U0001f601"])
def test_split_surrogate_pair_is_joined(text: str) -> None:
    halves = json.dumps(text, ensure_ascii=False).encode("utf-16-le")
    units = [halves[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(halves), 2)]
    assert parse_pieces(units) == text
    assert parse_pieces(['"\ud83d', "x", '"']) == "\ud83dx"
    assert parse_pieces(['{"\ud83d', '\ude00": "\ud83d"}']) == {"\U0001f600": "\ud83d"}


@pytest.mark.parametrize("text", ["0\ud800", "{}\ud800", '"a"\ud800', "[1\ud800", "\ud800", "tru\ud800"])
def test_lone_surrogate_after_the_value_is_rejected(text: str) -> None:
    with pytest.raises(JSONError):
        parse_pieces(list(text))
    with pytest.raises(JSONError):
        read_json(text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)


@settings(deterministic, max_examples=60)
@given(
    values, st.lists(st.integers(0, 400), max_size=20), st.booleans(), st.sampled_from([None, 1, "\t"]), st.booleans()
)
def test_json_dumps_output_round_trips(
    value: Any, cuts: list[int], ascii_only: bool, indent: int | str | None, read_value: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    positions = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(positions)]
    assert is_identical(parse_pieces(pieces, read_value=read_value), json.loads(text))


@settings(deterministic, max_examples=500)
@given(st.text(st.sampled_from(list('[]{}:,"\\ \nabtruefnlsu019.-+eE\u00e9\ud800')), max_size=14))
def test_same_texts_are_rejected_as_by_json(text: str) -> None:
    def reject(constant: str) -> None:
        raise ValueError(constant)

    try:
        expected = json.loads(text, parse_constant=reject)
    except ValueError:
        with pytest.raises(JSONError):
            parse_pieces(list(text))
    else:
        try:
            parsed = parse_pieces(list(text))
        except JSONError as error:
            assert "too large" in str(error)  # noqa: PT017  # the only texts that json accepts
        else:
            assert is_identical(parsed, expected)


# --- stricter than json ----------------------------------------------------------------------------------------------


def test_long_numbers_are_bounded() -> None:
    digits = "1" * 4300
    assert read_json(digits) == int(digits)
    assert read_json("-1." + "5" * 4000) == -1.0 - 5 / 9
    for text in ("1" * 4301, "-" + "0" * 100_000, "1." + "0" * 5000):
        with pytest.raises(JSONError, match="longer than 4300 characters"):
            read_json(text)


@pytest.mark.parametrize(("text", "reason", "position"), [
    ('{"a" 1}', "expected a colon, found '1'", 5),
    ("[1 2]", "expected a comma or the end of the list, found '2'", 3),
    ('["a\nb"]', r"unescaped control character '\n' in a string", 3),
    ("[NaN]", "expected a value, found 'N'", 1),
    ("[] x", "expected the end of input, found 'x'", 3),
    ('{"a": 1e999}', "number too large: 1e999", 11),
])  # fmt: skip
def test_error_has_reason_and_position(text: str, reason: str, position: int) -> None:
    for pieces in ([text], list(text)):
        with pytest.raises(JSONError) as caught:
            parse_pieces(pieces)
        assert (caught.value.reason, caught.value.position) == (reason, position)
        assert str(caught.value) == f"{reason} at character {position}"


def test_error_is_raised_again_and_survives_pickling() -> None:
    reader = JSONReader()
    with pytest.raises(JSONError):
        reader.feed("[1 2")
    for again in (lambda: reader.feed("]"), reader.close):
        with pytest.raises(JSONError, match="expected a comma") as caught:
            again()
        restored = pickle.loads(pickle.dumps(caught.value))
        assert (type(restored), str(restored)) == (JSONError, str(caught.value))


@pytest.mark.parametrize("text", ["", " ", "[1", '{"a"', '"a', "tru", "-"])
def test_incomplete_text_has_its_own_error(text: str) -> None:
    reader = JSONReader()
    reader.feed(text)
    kind = JSONError if text == "-" else JSONIncompleteError
    with pytest.raises(kind):
        reader.close()


# --- depth -----------------------------------------------------------------------------------------------------------


def nested(depth: int) -> list[str]:
    return ["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]


@pytest.mark.parametrize("text", nested(MAX_DEPTH))
def test_value_at_maximum_depth_is_usable(text: str) -> None:
    value = read_json(text)
    assert value == json.loads(text)
    assert copy.deepcopy(value) == value
    assert pickle.loads(pickle.dumps(value)) == value
    assert len(repr(value)) >= 2 * MAX_DEPTH
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("text", [*nested(MAX_DEPTH + 1), *nested(100_000), "[" * 1_000_000])
def test_value_over_maximum_depth_is_an_error(text: str) -> None:
    with pytest.raises(JSONDepthError, match="nested more than 256 levels deep"):
        read_json(text)


def test_max_depth_is_configurable() -> None:
    reader = JSONReader(max_depth=2)
    reader.feed("[[],[")
    with pytest.raises(JSONDepthError, match="more than 2 levels deep at character 5"):
        reader.feed("[")


# --- partial values --------------------------------------------------------------------------------------------------


def partial_values(text: str) -> list[Any]:
    """A copy of the value after each character that changed it."""
    reader, states = JSONReader(), list[Any]()
    for character in text:
        before = reader.changes
        reader.feed(character)
        if reader.changes != before:
            states.append(copy.deepcopy(reader.value))
    return states


def test_partial_value_grows_with_certain_content() -> None:
    states = partial_values('{"a": "x\\u00e9y", "n": 12, "l": [true, "z"]}')
    distinct = [state for state, before in zip(states, [None, *states], strict=False) if state != before]
    assert distinct == [
        {}, {"a": ""}, {"a": "x"}, {"a": "x\u00e9"}, {"a": "x\u00e9y"},
        {"a": "x\u00e9y", "n": 12},
        {"a": "x\u00e9y", "n": 12, "l": []}, {"a": "x\u00e9y", "n": 12, "l": [True]},
        {"a": "x\u00e9y", "n": 12, "l": [True, ""]}, {"a": "x\u00e9y", "n": 12, "l": [True, "z"]},
    ]  # fmt: skip


def test_partial_value_is_updated_in_place() -> None:
    reader = JSONReader()
    reader.feed('{"a": [1')
    value = reader.value
    reader.feed(', {"b": 2}], "c": "x')
    assert reader.value is value == {"a": [1, {"b": 2}], "c": "x"}
    was_complete = reader.complete
    reader.feed('"}')
    assert (was_complete, reader.complete) == (False, True)
    assert reader.close() is value


def test_surrogate_half_is_not_emitted() -> None:
    reader = JSONReader()
    for piece, shown in [('"a\\ud83d', "a"), ("\\ude0", "a"), ("0", "a\U0001f600"), ("b", "a\U0001f600b")]:
        reader.feed(piece)
        assert reader.value == shown


def test_long_string_is_shown_with_little_delay() -> None:
    reader = JSONReader()
    reader.feed('["')
    for size in range(4, 60_000, 4):
        reader.feed("abcd")
        assert size * 0.99 <= len(reader.value[0]) <= size
    reader.feed('"]')
    assert reader.value == ["abcd" * (size // 4)]


def test_closed_items_counts_completed_items() -> None:
    reader, text, closings = JSONReader(), '[1,"ab",{"x":[2]},[],true]', list[str]()
    for index, character in enumerate(text):
        before = reader.closed_items(reader.value or [])
        reader.feed(character)
        if reader.closed_items(reader.value) != before:
            closings.append(text[: index + 1])
    assert closings == ["[1,", '[1,"ab"', '[1,"ab",{"x":[2]}', '[1,"ab",{"x":[2]},[]', text[:-1]]


# --- linear time -----------------------------------------------------------------------------------------------------


def cpu_seconds(pieces: list[str]) -> float:
    """Returns the least CPU time of several runs that read and keep the value after each piece."""
    best = float("inf")
    for _ in range(2):
        reader, kept = JSONReader(), None
        start = time.process_time()
        for piece in pieces:
            reader.feed(piece)
            kept = reader.value  # a kept string is copied when it grows
            if isinstance(kept, dict):
                kept = kept.get("text")
        best = min(best, time.process_time() - start)
    return best


def cut(text: str, size: int = 4) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize(
    "make",
    [
        lambda n: json.dumps({"text": "x" * 4 * n}),
        lambda n: json.dumps({"text": "\u20ac\n" * (n // 7)}),
        lambda n: json.dumps({"lines": [{"sku": "A-1", "quantity": 2}] * (n // 32)}),
        lambda n: json.dumps({str(key): [key, 0.5, None] for key in range(n // 24)}),
        lambda n: "[" + " " * n + "]",
    ],
    ids=["string", "escapes", "list", "object", "blanks"],
)
def test_parsing_takes_linear_time(make: Callable[[int], str]) -> None:
    # The least of several ratios: other load on the machine only ever adds to a measurement.
    ratios = (cpu_seconds(cut(make(100_000))) / cpu_seconds(cut(make(25_000))) for _ in range(5))
    assert any(ratio < 5 for ratio in ratios)


def test_bytes_are_decoded_strictly() -> None:
    assert codecs.getincrementaldecoder("utf-8")().errors == "strict"
    with pytest.raises(JSONError, match="invalid UTF-8 at character 1"):
        parse_pieces([b'"', b"\xff", b'"'])
