"""Text classification: which of a model's classes a text belongs to.

Wire: ``POST {deployment}/classify``, the same for dedicated endpoints and containers; serverless has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

import msgspec

from friendli_async._core.body.arguments import Parameters
from friendli_async._core.protocol import Operation
from friendli_async.replies import Reply, always

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "Classification",
    "ClassificationList",
    "ClassificationOptions",
    "ClassificationUsage",
    "ContainerTextClassification",
    "TextClassification",
]


class ClassificationOptions(TypedDict, total=False):
    """What to classify, and optional parameters. What is left out is left to the server; None is sent as null."""

    input: str | Sequence[str] | None
    """The text to classify, or several. Friendli documents that either this or ``tokens`` is wanted."""
    tokens: Sequence[int] | None
    """The text to classify, as token ids."""
    extra_body: Mapping[str, object]
    """Further keys of the body, as they are; they win over the parameters."""
    extra_query: Mapping[str, object]
    """Query parameters."""


class Classification(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """What one text was found to be."""

    label: str
    """The likeliest class."""
    index: int = always(0)
    """Which of the texts it is of."""
    num_classes: int | None = None
    """How many classes the model knows."""
    probs: tuple[float, ...] = always(())
    """The probability of each class."""


class ClassificationUsage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Tokens that a classification was billed for: nothing is generated."""

    prompt_tokens: int = always(0)
    total_tokens: int = always(0)


class ClassificationList(Reply, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """The classes of all texts."""

    data: tuple[Classification, ...]
    object: str | None = None
    usage: ClassificationUsage | None = None


_PARAMETERS: Final = Parameters(ClassificationOptions, {"model": str}, {})
_CLASSIFY: Final = Operation(
    method="POST",
    path="/classify",
    reply=msgspec.json.Decoder(ClassificationList),
    repeatable=True,
    billed=True,
)


class TextClassification:
    """Classifies texts: ``client.dedicated.text_classification``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def classify(self, *, model: str, **options: Unpack[ClassificationOptions]) -> ClassificationList:
        """Classifies a text, or several.

        Args:
            model: Endpoint id, or ``ENDPOINT_ID:ADAPTER_ROUTE``.
            options: See ``ClassificationOptions``; ``input`` or ``tokens`` is what to classify.

        Returns:
            The classes in ``data``, with ``usage`` and ``meta``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._classify({"model": model}, options)

    async def _classify(self, required: dict[str, object], options: Mapping[str, object]) -> ClassificationList:
        return await self._engine.call(_CLASSIFY, _PARAMETERS.encode("classify", required, options, {}))


class ContainerTextClassification(TextClassification):
    """Classifies texts with a self-hosted engine, which has its model: ``client.container.text_classification``."""

    async def classify(
        self, *, model: str | None = None, **options: Unpack[ClassificationOptions]
    ) -> ClassificationList:
        """Classifies a text; see ``TextClassification.classify``. ``model`` names an adapter's route."""
        # Left out rather than null: engines that serve one model take no model for it.
        return await self._classify({} if model is None else {"model": model}, options)
