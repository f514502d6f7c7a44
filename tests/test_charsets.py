"""The charset of a body: its byte order mark, its headers, or what it declares itself."""

from __future__ import annotations

import codecs

import pytest

from friendli_async._charsets import decode_by_charset, to_utf8


@pytest.mark.parametrize(
    ("body", "content_type", "declared", "expected"),
    [
        ("né".encode("latin-1"), "text/plain; charset=latin-1", None, "né"),
        ("né".encode("latin-1"), "text/plain; CHARSET = 'ISO-8859-1'", None, "né"),
        ("né".encode("latin-1"), "text/plain", "latin-1", "né"),
        ("né".encode("utf-16"), "text/plain; charset=latin-1", None, "né"),
        ("né".encode("utf-32"), "text/plain", None, "né"),
        ("né".encode("utf-8-sig"), "text/plain; charset=latin-1", None, "né"),
        ("Київ".encode("koi8-u"), "text/plain; charset=KOI8-U", None, "Київ"),
        ("日本".encode("shift_jis"), "text/plain; charset=ascii", "shift_jis", "日本"),
        ("ไทย".encode("cp874"), "text/plain; charset=windows-874", None, "ไทย"),
        ("한국".encode("cp949"), "text/plain; charset=x-windows-949", None, "한국"),
        ("①".encode("cp932"), "text/plain; charset=Windows-31J", None, "①"),
        ("日本".encode("shift_jis"), "text/html", "x-sjis", "日本"),
        (b"abc", "text/plain; charset=x-windows-x", None, None),
        (b"abc", "text/plain", None, None),
        (b"abc", "text/plain; charset=rot13", None, None),
        (b"abc", "text/plain; charset=mbcs", None, None),
        (b"abc", "text/plain; charset=unknown", None, None),
        (b"a+AGI-c", "text/plain; charset=utf-7", None, None),
    ],
)
def test_body_is_decoded_by_the_first_charset_that_it_is_in(
    body: bytes, content_type: str, declared: str | None, expected: str | None
) -> None:
    assert decode_by_charset(body, content_type, declared) == expected


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_character_that_is_truncated_at_the_end_is_dropped(mark: bytes, cut: int) -> None:
    body = mark + "ab€😀".encode()[:-cut]
    assert decode_by_charset(body, "" if mark else "text/plain; charset=utf-8") == "ab€"


@pytest.mark.parametrize("body", [b'{"error":"refus\xe9"}', b"abc\xff\xff", b"\xffabc", b"\xe2\x82"])
def test_body_with_more_than_a_truncated_character_is_in_another_charset(body: bytes) -> None:
    assert decode_by_charset(body, "text/plain; charset=utf-8") is None


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        ("né".encode("latin-1"), "application/json; charset=latin-1", "né".encode()),
        ('["né"]'.encode("latin-1"), "application/json; charset=utf-8", b'["n\xe9"]'),
        ("né".encode("latin-1"), "", b"n\xe9"),
        ("né".encode(), "application/json; charset=latin-1", "né".encode()),
        ("né".encode("utf-16"), "", "né".encode()),
    ],
)
def test_only_a_body_that_is_not_utf8_is_converted(body: bytes, content_type: str, expected: bytes) -> None:
    assert to_utf8(body, {"content-type": content_type} if content_type else {}) == expected
