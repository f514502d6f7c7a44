"""Text classification: assigns texts to the classes of a model.

Wire: ``POST {deployment}/classify``, the same for dedicated endpoints and containers; not available for serverless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Unpack

from friendli_async._core.body.arguments import ExtraOptions, Parameters, without_none
from friendli_async._core.resource import Resource, inference
from friendli_async._help import document_fields
from friendli_async.replies import Reply, TokenUsage, Value, always_encoded

__all__ = ["Classification", "ClassificationList", "ClassificationOptions", "ClassificationUsage"]
__all__ += ["ContainerTextClassification", "TextClassification"]


@document_fields
class ClassificationOptions(ExtraOptions, total=False):
    """The input to classify and optional parameters. Omitted ones are left to the server; None is sent as null."""

    input: str | Sequence[str] | None
    """The text or texts to classify. Friendli documents that either this or ``tokens`` is required."""
    tokens: Sequence[int] | None
    """The text to classify, as token ids."""


class Classification(Value, frozen=True, kw_only=True):
    """The classification of one text."""

    label: str
    """The most likely class."""
    index: int = always_encoded(0)
    """Index of the text in the input."""
    num_classes: int | None = None
    """Number of classes of the model."""
    probs: tuple[float, ...] = always_encoded(())
    """Probability of each class."""


class ClassificationUsage(TokenUsage, frozen=True):
    """Billed tokens of a classification. No tokens are generated."""

    prompt_tokens: int = always_encoded(0)
    total_tokens: int = always_encoded(0)


class ClassificationList(Reply, frozen=True, kw_only=True):
    """The classifications of all texts."""

    data: tuple[Classification, ...]
    object: str | None = None
    usage: ClassificationUsage | None = None


_PARAMETERS: Final = Parameters(ClassificationOptions, {"model": str})
_CLASSIFY: Final = inference("text_classification.classify", "POST /classify", ClassificationList)


class TextClassification(Resource):
    """Classifies texts: ``client.dedicated.text_classification``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed; see ``friendli_async.errors``.
    """

    async def classify(self, *, model: str, **options: Unpack[ClassificationOptions]) -> ClassificationList:
        """Classifies one or more texts.

        Args:
            model: Endpoint id, or ``ENDPOINT_ID:ADAPTER_ROUTE``.
            options: See ``ClassificationOptions``; ``input`` or ``tokens`` has the texts.

        Returns:
            The classifications in ``data``, with ``usage`` and ``meta``.
        """
        return await self._engine.call(_CLASSIFY, _PARAMETERS.encode("classify", {"model": model}, options))


class ContainerTextClassification(TextClassification):
    """Classifies texts on a self-hosted engine, which serves one model: ``client.container.text_classification``."""

    async def classify(
        self, *, model: str | None = None, **options: Unpack[ClassificationOptions]
    ) -> ClassificationList:
        """Classifies texts; see ``TextClassification.classify``. ``model`` selects an adapter route."""
        return await self._engine.call(_CLASSIFY, _PARAMETERS.encode("classify", without_none(model=model), options))
