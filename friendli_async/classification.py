"""Text classification: which of a model's classes a text belongs to.

Wire: ``POST {deployment}/classify``, the same for dedicated endpoints and containers; serverless has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Unpack

from friendli_async._core.body.arguments import ExtraOptions, Parameters, without_none
from friendli_async._core.resource import Resource, operation
from friendli_async._help import described
from friendli_async.replies import Reply, Value, always

__all__ = ["Classification", "ClassificationList", "ClassificationOptions", "ClassificationUsage"]
__all__ += ["ContainerTextClassification", "TextClassification"]


@described
class ClassificationOptions(ExtraOptions, total=False):
    """What to classify, and optional parameters. What is left out is left to the server; None is sent as null."""

    input: str | Sequence[str] | None
    """The text to classify, or several. Friendli documents that either this or ``tokens`` is wanted."""
    tokens: Sequence[int] | None
    """The text to classify, as token ids."""


class Classification(Value, frozen=True, kw_only=True):
    """What one text was found to be."""

    label: str
    """The likeliest class."""
    index: int = always(0)
    """Which of the texts it is of."""
    num_classes: int | None = None
    """How many classes the model knows."""
    probs: tuple[float, ...] = always(())
    """The probability of each class."""


class ClassificationUsage(Value, frozen=True):
    """Tokens that a classification was billed for: nothing is generated."""

    prompt_tokens: int = always(0)
    total_tokens: int = always(0)


class ClassificationList(Reply, frozen=True, kw_only=True):
    """The classes of all texts."""

    data: tuple[Classification, ...]
    object: str | None = None
    usage: ClassificationUsage | None = None


_PARAMETERS: Final = Parameters(ClassificationOptions, {"model": str}, {})
_CLASSIFY: Final = operation(
    "text_classification.classify", "POST /classify", ClassificationList, repeatable=True, billed=True
)


class TextClassification(Resource):
    """Classifies texts: ``client.dedicated.text_classification``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call; see ``friendli_async.errors``.
    """

    async def classify(self, *, model: str, **options: Unpack[ClassificationOptions]) -> ClassificationList:
        """Classifies a text, or several.

        Args:
            model: Endpoint id, or ``ENDPOINT_ID:ADAPTER_ROUTE``.
            options: See ``ClassificationOptions``; ``input`` or ``tokens`` is what to classify.

        Returns:
            The classes in ``data``, with ``usage`` and ``meta``.
        """
        return await self._engine.call(_CLASSIFY, _PARAMETERS.encode("classify", {"model": model}, options))


class ContainerTextClassification(TextClassification):
    """Classifies texts with a self-hosted engine, which has its model: ``client.container.text_classification``."""

    async def classify(
        self, *, model: str | None = None, **options: Unpack[ClassificationOptions]
    ) -> ClassificationList:
        """Classifies a text; see ``TextClassification.classify``. ``model`` names an adapter's route."""
        return await self._engine.call(_CLASSIFY, _PARAMETERS.encode("classify", without_none(model=model), options))
