"""Tokens: a text as a model's tokenizer cuts it, and back.

Wire: ``POST {deployment}/v1/tokenize`` and ``.../detokenize``, the same for serverless, dedicated endpoints and
containers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Unpack

from friendli_async._core.body.arguments import ExtraOptions, Parameters, without_none
from friendli_async._core.resource import Resource, operation
from friendli_async._help import described
from friendli_async.replies import Reply

__all__ = ["ContainerTokens", "Detokenization", "TokenOptions", "Tokenization", "Tokens"]


@described
class TokenOptions(ExtraOptions, total=False):
    """Optional parameters of tokenizing and detokenizing."""


class Tokenization(Reply, frozen=True, kw_only=True):
    """A text's tokens."""

    tokens: tuple[int, ...]
    """Their ids."""


class Detokenization(Reply, frozen=True, kw_only=True):
    """The text that tokens stand for."""

    text: str


_TEXT: Final = Parameters(TokenOptions, {"model": str, "prompt": str}, {})
_TOKENS: Final = Parameters(TokenOptions, {"model": str, "tokens": list[int]}, {})
_TOKENIZE: Final = operation("token.tokenize", "POST /v1/tokenize", Tokenization, repeatable=True)
_DETOKENIZE: Final = operation("token.detokenize", "POST /v1/detokenize", Detokenization, repeatable=True)


class Tokens(Resource):
    """A model's tokenizer: ``client.serverless.token``, ``client.dedicated.token``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call; see ``friendli_async.errors``.
    """

    async def tokenize(self, *, model: str, prompt: str, **options: Unpack[TokenOptions]) -> Tokenization:
        """Cuts a text into tokens.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            prompt: The text.
            options: See ``TokenOptions``.

        Returns:
            Its ``tokens``, with ``meta``.
        """
        arguments = _TEXT.encode("tokenize", {"model": model, "prompt": prompt}, options)
        return await self._engine.call(_TOKENIZE, arguments)

    async def detokenize(self, *, model: str, tokens: Sequence[int], **options: Unpack[TokenOptions]) -> Detokenization:
        """Makes tokens into text again.

        Args:
            model: As for ``tokenize``.
            tokens: Their ids.
            options: See ``TokenOptions``.

        Returns:
            The ``text``, with ``meta``.
        """
        arguments = _TOKENS.encode("detokenize", {"model": model, "tokens": tokens}, options)
        return await self._engine.call(_DETOKENIZE, arguments)


class ContainerTokens(Tokens):
    """The tokenizer of a self-hosted engine, which has its model: ``client.container.token``."""

    async def tokenize(self, *, model: str | None = None, prompt: str, **options: Unpack[TokenOptions]) -> Tokenization:
        """Cuts a text into tokens; see ``Tokens.tokenize``. ``model`` names an adapter's route."""
        arguments = _TEXT.encode("tokenize", {**without_none(model=model), "prompt": prompt}, options)
        return await self._engine.call(_TOKENIZE, arguments)

    async def detokenize(
        self, *, model: str | None = None, tokens: Sequence[int], **options: Unpack[TokenOptions]
    ) -> Detokenization:
        """Makes tokens into text again; see ``Tokens.detokenize``. ``model`` names an adapter's route."""
        arguments = _TOKENS.encode("detokenize", {**without_none(model=model), "tokens": tokens}, options)
        return await self._engine.call(_DETOKENIZE, arguments)
