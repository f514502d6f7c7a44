"""The embedded server's images: a small PNG, for any requested format, whose colour depends on the prompt."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from typing import Final

from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script, body, json_body, status

__all__ = ["paint", "paint_in_container", "show"]

_SIDE: Final = 8


def paint(request: ReceivedRequest) -> Script:
    """Answer an image request to a dedicated endpoint: with a URL here for the format `url`, else in base64."""
    fields = request.json_object
    wanted: str = fields.get("response_format") or "url"
    seed = fields.get("seed")
    item: dict[str, object] = {"seed": 0 if seed is None else int(seed), "response_format": wanted}
    color = _color(fields["prompt"])
    if wanted == "url":
        item["url"] = f"{request.origin}/images/{color}.png"
    else:
        item["b64_json"] = base64.b64encode(_png(bytes.fromhex(color))).decode()
    return json_body({"data": [item]})


def paint_in_container(request: ReceivedRequest) -> Script:
    """Answer an image request to a container."""
    image = _png(bytes.fromhex(_color(request.json_object["prompt"])))
    return json_body({"image": base64.b64encode(image).decode()})


def show(request: ReceivedRequest) -> Script:
    """Return the image at the URL of a reply."""
    name, _, suffix = request.path_parameters["name"].partition(".")
    try:
        color = bytes.fromhex(name)
    except ValueError:
        color = b""
    if len(color) != 3 or suffix != "png":
        return status(404, message="there is no such image")
    return body(_png(color), content_type="image/png")


def _color(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:6]


def _png(color: bytes) -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)  # 8 bits each of red, green and blue
    rows = (b"\0" + color * _SIDE) * _SIDE
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
