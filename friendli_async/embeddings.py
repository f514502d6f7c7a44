"""Embeddings: texts as vectors.

Wire: ``POST /dedicated/v1/embeddings``; dedicated endpoints only.
"""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode
from collections.abc import Sequence
from typing import Final, Literal, Unpack

from friendli_async._core.body.arguments import ExtraOptions, Parameters
from friendli_async._core.resource import Resource, inference
from friendli_async._help import document_fields
from friendli_async.replies import Reply, Usage, Value, always_encoded

__all__ = ["Embedding", "EmbeddingList", "Embeddings", "EmbeddingsOptions"]


@document_fields
class EmbeddingsOptions(ExtraOptions, total=False):
    """The input to embed and optional parameters. Omitted ones are left to the server; None is sent as null."""

    input: str | Sequence[str] | None
    """The text or texts to embed. Friendli documents that either this or ``tokens`` is required."""
    tokens: Sequence[int] | None
    """The text to embed, as token ids."""
    encoding_format: Literal["float", "base64"] | str | None  # open
    """Whether vectors are returned as numbers or as base64 text."""


class Embedding(Value, frozen=True, kw_only=True):
    """The vector of one text."""

    embedding: tuple[float, ...] | str
    """The numbers, or the server's base64 text if ``encoding_format`` requests it; see ``vector``."""
    index: int = always_encoded(0)
    """Index of the text in the input."""
    object: str | None = None

    @property
    def vector(self) -> Sequence[float]:
        """The numbers in either case; of base64, as an ``array`` of 32-bit floats, decoded at each access.

        Raises:
            ValueError: The text is not base64 of 32-bit floats.
        """
        if not isinstance(self.embedding, str):
            return self.embedding
        numbers = array("f", b64decode(self.embedding, validate=True))
        if sys.byteorder == "big":  # servers encode them as they are in memory
            numbers.byteswap()
        return numbers


class EmbeddingList(Reply, frozen=True, kw_only=True):
    """The vectors of all texts."""

    data: tuple[Embedding, ...]
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    """Unix time in seconds."""
    model: str | None = None
    usage: Usage | None = None


PARAMETERS: Final = Parameters(EmbeddingsOptions, {"model": str})
_CREATE: Final = inference("embeddings.create", "POST /v1/embeddings", EmbeddingList)


class Embeddings(Resource):
    """Embeds texts as vectors: ``client.dedicated.embeddings``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed; see ``friendli_async.errors``.
    """

    async def create(self, *, model: str, **options: Unpack[EmbeddingsOptions]) -> EmbeddingList:
        """Embeds one or more texts.

        Args:
            model: Endpoint id, or ``ENDPOINT_ID:ADAPTER_ROUTE``.
            options: See ``EmbeddingsOptions``; ``input`` or ``tokens`` has the texts.

        Returns:
            The vectors in ``data``, with ``usage`` and ``meta``.
        """
        return await self._engine.call(_CREATE, PARAMETERS.encode("create", {"model": model}, options))
