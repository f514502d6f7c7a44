"""The embedded server's embeddings: unit vectors that depend only on the text."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any, Final, cast

from friendli_async.testing.chat import tokenize
from friendli_async.testing.frames import token_counts
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import deployed, refuse
from friendli_async.testing.script import Script, json_body
from friendli_async.testing.tokens import decode

__all__ = ["ROUTES", "embed", "inputs"]

_SIZE: Final = 16


def embed(request: ReceivedRequest) -> Script:
    """Answer an embeddings request.

    Args:
        request: The request.
    """
    texts = inputs(request)
    if isinstance(texts, Script):
        return texts
    vectors: list[object] = [_vector(text) for text in texts]
    if request.json_object.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{_SIZE}f", *_vector(text))).decode() for text in texts]
    reply = {
        "id": f"embd-{request.number:06d}",
        "object": "list",
        "created": request.created,
        "model": request.identity.model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": token_counts(sum(len(tokenize(text)) for text in texts), 0),
    }
    return json_body(reply)


def inputs(request: ReceivedRequest) -> Sequence[str] | Script:
    """Return the texts of a request, from `input` or `tokens`.

    Args:
        request: The request.

    Returns:
        The texts, or an error reply for a request with neither.
    """
    body = request.json_object
    texts: Any = body.get("input")
    if isinstance(texts, str):
        return (texts,)
    if texts is not None:
        return cast("list[str]", texts)
    if body.get("tokens") is None:
        return refuse([{"loc": ["body", "input"], "msg": "Give either input or tokens", "type": "missing"}])
    try:
        return (decode(body["tokens"]),)
    except ValueError as error:
        return refuse([{"loc": ["body", "tokens"], "msg": str(error), "type": "value_error"}])


def _vector(text: str) -> list[float]:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    raw = [byte / 255 - 0.5 for byte in digest[:_SIZE]]
    length = math.hypot(*raw) or 1.0
    return [round(value / length, 6) for value in raw]


ROUTES: Final = deployed(
    "/v1/embeddings", embed, body="DedicatedEmbeddingsBody", reply="DedicatedEmbeddingsSuccess", on=("Dedicated",)
)
"""Embeddings, for dedicated endpoints."""
