"""Tokens: a text as a model's tokenizer cuts it, and back.

Wire: ``POST {deployment}/v1/tokenize`` and ``.../detokenize``, the same for serverless, dedicated endpoints and
containers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

import msgspec

from friendli_async._core.body.arguments import Parameters
from friendli_async._core.protocol import Operation
from friendli_async.replies import Reply

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = ["ContainerTokens", "Detokenization", "TokenOptions", "Tokenization", "Tokens"]


class TokenOptions(TypedDict, total=False):
    """Optional parameters of tokenizing and detokenizing."""

    extra_body: Mapping[str, object]
    """Further keys of the body, as they are; they win over the parameters."""
    extra_query: Mapping[str, object]
    """Query parameters."""


class Tokenization(Reply, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """A text's tokens."""

    tokens: tuple[int, ...]
    """Their ids."""


class Detokenization(Reply, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """The text that tokens stand for."""

    text: str


_TOKENIZE_PARAMETERS: Final = Parameters(TokenOptions, {"model": str, "prompt": str}, {})
_DETOKENIZE_PARAMETERS: Final = Parameters(TokenOptions, {"model": str, "tokens": list[int]}, {})
_TOKENIZE: Final = Operation(
    method="POST", path="/v1/tokenize", reply=msgspec.json.Decoder(Tokenization), repeatable=True
)
_DETOKENIZE: Final = Operation(
    method="POST", path="/v1/detokenize", reply=msgspec.json.Decoder(Detokenization), repeatable=True
)


class Tokens:
    """A model's tokenizer: ``client.serverless.token``, ``client.dedicated.token``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def tokenize(self, *, model: str, prompt: str, **options: Unpack[TokenOptions]) -> Tokenization:
        """Cuts a text into tokens.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            prompt: The text.
            options: See ``TokenOptions``.

        Returns:
            Its ``tokens``, with ``meta``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._tokenize({"model": model, "prompt": prompt}, options)

    async def detokenize(self, *, model: str, tokens: Sequence[int], **options: Unpack[TokenOptions]) -> Detokenization:
        """Makes tokens into text again.

        Args:
            model: As for ``tokenize``.
            tokens: Their ids.
            options: See ``TokenOptions``.

        Returns:
            The ``text``, with ``meta``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._detokenize({"model": model, "tokens": tokens}, options)

    async def _tokenize(self, required: dict[str, object], options: Mapping[str, object]) -> Tokenization:
        return await self._engine.call(_TOKENIZE, _TOKENIZE_PARAMETERS.encode("tokenize", required, options, {}))

    async def _detokenize(self, required: dict[str, object], options: Mapping[str, object]) -> Detokenization:
        arguments = _DETOKENIZE_PARAMETERS.encode("detokenize", required, options, {})
        return await self._engine.call(_DETOKENIZE, arguments)


class ContainerTokens(Tokens):
    """The tokenizer of a self-hosted engine, which has its model: ``client.container.token``."""

    async def tokenize(self, *, model: str | None = None, prompt: str, **options: Unpack[TokenOptions]) -> Tokenization:
        """Cuts a text into tokens; see ``Tokens.tokenize``. ``model`` names an adapter's route."""
        return await self._tokenize({**_named(model), "prompt": prompt}, options)

    async def detokenize(
        self, *, model: str | None = None, tokens: Sequence[int], **options: Unpack[TokenOptions]
    ) -> Detokenization:
        """Makes tokens into text again; see ``Tokens.detokenize``. ``model`` names an adapter's route."""
        return await self._detokenize({**_named(model), "tokens": tokens}, options)


def _named(model: str | None) -> dict[str, object]:
    # Left out rather than null: engines that serve one model take no model for it.
    return {} if model is None else {"model": model}
