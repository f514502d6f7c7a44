"""Tokens: converts text to a model's tokens and back.

Wire: ``POST {deployment}/v1/tokenize`` and ``.../detokenize``, the same for serverless, dedicated endpoints and
containers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Unpack

from friendli_async._core.body.arguments import ExtraOptions, Parameters, without_none
from friendli_async._core.resource import Resource, operation
from friendli_async._help import document_fields
from friendli_async.replies import Reply

__all__ = ["ContainerTokens", "Detokenization", "TokenOptions", "Tokenization", "Tokens"]


@document_fields
class TokenOptions(ExtraOptions, total=False):
    """Optional parameters of ``tokenize`` and ``detokenize``."""


class Tokenization(Reply, frozen=True, kw_only=True):
    """The tokens of a text."""

    tokens: tuple[int, ...]
    """Token ids."""


class Detokenization(Reply, frozen=True, kw_only=True):
    """The text of a sequence of tokens."""

    text: str


_TOKENIZE_PARAMETERS: Final = Parameters(TokenOptions, {"model": str, "prompt": str})
_DETOKENIZE_PARAMETERS: Final = Parameters(TokenOptions, {"model": str, "tokens": list[int]})
_TOKENIZE: Final = operation("token.tokenize", "POST /v1/tokenize", Tokenization, repeatable=True)
_DETOKENIZE: Final = operation("token.detokenize", "POST /v1/detokenize", Detokenization, repeatable=True)


class Tokens(Resource):
    """A model's tokenizer: ``client.serverless.token``, ``client.dedicated.token``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed; see ``friendli_async.errors``.
    """

    async def tokenize(self, *, model: str, prompt: str, **options: Unpack[TokenOptions]) -> Tokenization:
        """Tokenizes a text.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            prompt: The text.
            options: See ``TokenOptions``.

        Returns:
            Its ``tokens``, with ``meta``.
        """
        arguments = _TOKENIZE_PARAMETERS.encode("tokenize", {"model": model, "prompt": prompt}, options)
        return await self._engine.call(_TOKENIZE, arguments)

    async def detokenize(self, *, model: str, tokens: Sequence[int], **options: Unpack[TokenOptions]) -> Detokenization:
        """Converts tokens back to text.

        Args:
            model: As for ``tokenize``.
            tokens: Token ids.
            options: See ``TokenOptions``.

        Returns:
            The ``text``, with ``meta``.
        """
        arguments = _DETOKENIZE_PARAMETERS.encode("detokenize", {"model": model, "tokens": tokens}, options)
        return await self._engine.call(_DETOKENIZE, arguments)


class ContainerTokens(Tokens):
    """The tokenizer of a self-hosted engine, which serves one model: ``client.container.token``."""

    async def tokenize(self, *, model: str | None = None, prompt: str, **options: Unpack[TokenOptions]) -> Tokenization:
        """Tokenizes a text; see ``Tokens.tokenize``. ``model`` selects an adapter route."""
        arguments = _TOKENIZE_PARAMETERS.encode("tokenize", {**without_none(model=model), "prompt": prompt}, options)
        return await self._engine.call(_TOKENIZE, arguments)

    async def detokenize(
        self, *, model: str | None = None, tokens: Sequence[int], **options: Unpack[TokenOptions]
    ) -> Detokenization:
        """Converts tokens back to text; see ``Tokens.detokenize``. ``model`` selects an adapter route."""
        arguments = _DETOKENIZE_PARAMETERS.encode(
            "detokenize", {**without_none(model=model), "tokens": tokens}, options
        )
        return await self._engine.call(_DETOKENIZE, arguments)
