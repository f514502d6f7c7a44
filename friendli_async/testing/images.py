"""The embedded server's images: one red pixel as PNG, for any requested format."""

from __future__ import annotations

import base64
from typing import Final

from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script, body, json_body

PATH: Final = "/images/pixel.png"
"""The path of the URL in a reply."""
_PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"


def paint(request: ReceivedRequest) -> Script:
    """Answer an image request to a dedicated endpoint: with a URL here for the format `url`, else in base64."""
    fields = request.json_object
    wanted: str = fields.get("response_format") or "url"
    seed = fields.get("seed")
    image = {"url": request.origin + PATH} if wanted == "url" else {"b64_json": _PNG}
    return json_body({"data": [{"seed": 0 if seed is None else int(seed), "response_format": wanted, **image}]})


def paint_in_container(_: ReceivedRequest) -> Script:
    """Answer an image request to a container."""
    return json_body({"image": _PNG})


def show(_: ReceivedRequest) -> Script:
    """Return the image at the URL of a reply."""
    return body(base64.b64decode(_PNG), content_type="image/png")
