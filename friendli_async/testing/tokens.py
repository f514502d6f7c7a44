"""The embedded server's tokenization: code points, so that it is lossless."""

from __future__ import annotations

from typing import Final

from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import deployed
from friendli_async.testing.script import Script, json_body, status

__all__ = ["ROUTES", "decode", "detokenize", "encode", "tokenize"]

_MAX_CODE_POINT: Final = 0x10FFFF


def encode(text: str) -> list[int]:
    """Convert text to token IDs.

    Args:
        text: Any text.
    """
    return [ord(character) for character in text]


def decode(tokens: list[int]) -> str:
    """Convert token IDs to text.

    Args:
        tokens: The result of `encode`.

    Raises:
        ValueError: There is no token with such an ID.
    """
    for token in tokens:
        if not 0 <= token <= _MAX_CODE_POINT:
            raise ValueError(f"there is no token {token}")
    return "".join(map(chr, map(int, tokens)))


def tokenize(request: ReceivedRequest) -> Script:
    """Answer a tokenization request.

    Args:
        request: The request.
    """
    return json_body({"tokens": encode(request.json_object["prompt"])})


def detokenize(request: ReceivedRequest) -> Script:
    """Answer a detokenization request.

    Args:
        request: The request.
    """
    try:
        text = decode(request.json_object["tokens"])
    except ValueError as error:
        return status(400, message=str(error))
    return json_body({"text": text})


ROUTES: Final = (
    *deployed("/v1/tokenize", tokenize, body="{}TokenizationBody", reply="{}TokenizationSuccess"),
    *deployed("/v1/detokenize", detokenize, body="{}DetokenizationBody", reply="{}DetokenizationSuccess"),
)
"""Tokenization and detokenization, for every deployment."""
