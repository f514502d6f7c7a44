"""JSON with lone surrogates, which msgspec rejects: it is encoded and decoded as other JSON is."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from strategies import JSON, deterministic

from friendli_async._json import (
    decode_json,
    encode_json,
    loads,
    loads_with_replacement,
    replace_surrogates,
    without_surrogates,
)
from friendli_async._pydantic import dump_model

HALF = "\ud83d"


class Point(msgspec.Struct):
    x: int
    name: str = ""


class Visit(BaseModel):
    note: Any


# --- encoding --------------------------------------------------------------------------------------------------------


@given(JSON)
@deterministic
def test_value_is_encoded_the_same_beside_a_lone_surrogate(value: Any) -> None:
    assert json.loads(encode_json([value, HALF])) == [json.loads(msgspec.json.encode(value)), HALF]


@pytest.mark.parametrize(
    "value",
    [
        Point(1),
        (1, 2),
        {3: "a", 1.5: "b"},
        {uuid.UUID(int=1): dt.date(2026, 1, 2)},
        b"bytes",
        [float("nan"), float("-inf")],
        msgspec.Raw(b'{"a":[1,null]}'),
        1 << 70,
    ],
    ids=lambda value: type(value).__name__,
)
def test_type_that_msgspec_supports_is_encoded_beside_a_lone_surrogate(value: Any) -> None:
    assert json.loads(encode_json([value, HALF])) == [json.loads(msgspec.json.encode(value)), HALF]


def test_text_without_lone_surrogates_is_encoded_by_msgspec() -> None:
    value = {"b": "é😀", "a": 1.0}
    assert encode_json(value) == msgspec.json.encode(value)


def test_hook_and_order_of_the_encoder_apply_beside_a_lone_surrogate() -> None:
    encoder = msgspec.json.Encoder(enc_hook=dump_model, order="deterministic")
    assert encode_json({"b": Visit(note=1), "a": HALF}, encoder) == b'{"a":"\\ud83d","b":{"note":1}}'
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        encode_json([HALF, object()], encoder)


def test_unsupported_value_raises_type_error_beside_a_lone_surrogate() -> None:
    with pytest.raises(TypeError, match="type object is unsupported"):
        encode_json([HALF, object()])


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [r'{"x":1,"name":"a\ud83d"}', '{"x":1,"name":"a\ud83d"}', rb'{"x":1,"name":"a\ud83d"}']
)
def test_lone_surrogate_is_decoded_to_the_type(data: str | bytes) -> None:
    assert decode_json(data, msgspec.json.Decoder(Point)) == Point(1, "a\ud83d")


def test_settings_of_the_decoder_apply_beside_a_lone_surrogate() -> None:
    kind = dict[int, str]
    assert decode_json(r'{"1":"\ud83d"}', msgspec.json.Decoder(kind)) == {1: HALF}
    with pytest.raises(msgspec.ValidationError, match="Expected `int`, got `str`"):
        decode_json(r'{"name":"\ud83d","x":"1"}', msgspec.json.Decoder(Point))
    assert decode_json(r'{"name":"\ud83d","x":"1"}', msgspec.json.Decoder(Point, strict=False)) == Point(1, HALF)


@pytest.mark.parametrize("data", ["{bad", r'["\ud83d",]', r'["\ud83d"', "[NaN]", b"\xff", b"\xef\xbb\xbf1", ""])
def test_text_that_is_not_json_raises_the_error_of_msgspec(data: str | bytes) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        decode_json(data)
    with pytest.raises(msgspec.DecodeError) as expected:
        msgspec.json.decode(data)
    assert str(caught.value) == str(expected.value)


def test_json_of_another_type_raises_the_validation_error_of_msgspec() -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        decode_json(b'{"x": "1"}', msgspec.json.Decoder(Point))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'["n\xc3\xa9"]', ["né"]),
        (b'["n\xe9"]', ["n\ufffd"]),
        (b'["\\ud83d", NaN]', ["\ud83d", math.nan]),
    ],
)
def test_any_json_is_parsed_with_replaced_bytes(data: bytes, expected: object) -> None:
    assert loads_with_replacement(data) == pytest.approx(expected, nan_ok=True)


def test_json_that_is_nested_too_deeply_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        loads("[" * 100_000)


# --- replacing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("é😀", "é😀"),
        ("a\ud83d", "a�"),
        ("\ud83d\ude00", "😀"),
        ("\ude00\ud83d", "��"),
        ("\ud83d\ud83d\ude00b", "�😀b"),
    ],
)
def test_surrogate_pairs_are_joined_and_lone_surrogates_replaced(text: str, expected: str) -> None:
    assert replace_surrogates(text) == expected


@given(st.lists(st.text(st.characters())))
@deterministic
def test_values_without_surrogates_can_be_serialized_by_pydantic(texts: list[str]) -> None:
    note = Visit(note=without_surrogates({text: text for text in texts})).model_dump_json()
    assert isinstance(json.loads(note), dict)
