"""The embedded server's tokenization, embeddings and classification. Results depend only on the text.

Tokens are code points, so that tokenization is lossless. Vectors and probabilities are made of a digest.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any, Final, cast

from friendli_async.testing.frames import token_counts
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import InvalidRequestError
from friendli_async.testing.script import Script, json_body
from friendli_async.testing.turns import Body, count_tokens

_VECTOR_SIZE: Final = 16
_LABELS: Final = ("NEGATIVE", "NEUTRAL", "POSITIVE")


def encode(text: str) -> list[int]:
    """Convert text to token IDs."""
    return [ord(character) for character in text]


def texts_of(body: Body, name: str) -> Sequence[str]:
    """Return the texts of a request, from the field with this name, or from `tokens`.

    Raises:
        InvalidRequestError: There is neither.
    """
    texts: Any = body.get(name)
    if texts is not None:
        return (texts,) if isinstance(texts, str) else cast("list[str]", texts)
    tokens: list[int] | None = body.get("tokens")
    if tokens is None:
        raise InvalidRequestError("body", name, f"Give either {name} or tokens", "missing")
    return ("".join(map(chr, map(int, tokens))),)


def answer_tokenize(request: ReceivedRequest) -> Script:
    """Answer a request to tokenize."""
    return json_body({"tokens": encode(request.json_object["prompt"])})


def answer_detokenize(request: ReceivedRequest) -> Script:
    """Answer a request to detokenize."""
    return json_body({"text": texts_of(request.json_object, "text")[0]})


def embed(request: ReceivedRequest) -> Script:
    """Answer an embeddings request."""
    texts = texts_of(request.json_object, "input")
    vectors: list[Any] = [_vector(text) for text in texts]
    if request.json_object.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{_VECTOR_SIZE}f", *vector)).decode() for vector in vectors]
    reply = {
        "id": f"embd-{request.number:06d}",
        "object": "list",
        "created": request.created,
        "model": request.identity.model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": token_counts(count_tokens(texts), 0),
    }
    return json_body(reply)


def _vector(text: str) -> list[float]:
    raw = [byte / 255 - 0.5 for byte in _digest(text)[:_VECTOR_SIZE]]
    length = math.hypot(*raw) or 1.0
    return [round(value / length, 6) for value in raw]


def classify(request: ReceivedRequest) -> Script:
    """Answer a classification request."""
    texts = texts_of(request.json_object, "input")
    count = count_tokens(texts)
    data = [_classification(index, text) for index, text in enumerate(texts)]
    return json_body({"object": "list", "data": data, "usage": {"prompt_tokens": count, "total_tokens": count}})


def _classification(index: int, text: str) -> dict[str, object]:
    weights = [byte + 1 for byte in _digest(text)[: len(_LABELS)]]
    probabilities = [round(weight / sum(weights), 6) for weight in weights]
    label = _LABELS[weights.index(max(weights))]
    return {"index": index, "label": label, "num_classes": len(_LABELS), "probs": probabilities}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
