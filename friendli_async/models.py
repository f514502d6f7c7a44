"""Models: Friendli's catalogue.

Wire: ``GET /serverless/v1/models``; it takes no team.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TypedDict, Unpack

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, check_keywords, encode_query
from friendli_async._core.protocol import Operation
from friendli_async.replies import Reply

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "Modality",
    "Model",
    "ModelFunctionality",
    "ModelList",
    "ModelPricing",
    "ModelReasoningOption",
    "ModelSamplingDefaults",
    "Models",
    "ModelsOptions",
]

Modality = Literal["text", "audio", "image", "video", "pdf"] | str  # open: new kinds must not break old clients


class ModelsOptions(TypedDict, total=False):
    """Optional parameters of the catalogue."""

    extra_query: Mapping[str, object]
    """Query parameters."""


class ModelPricing(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """What a model costs: decimal numbers as text, so that nothing is rounded."""

    input: str | None = None
    output: str | None = None
    prompt: str | None = None
    completion: str | None = None
    input_cache_read: str | None = None
    cache_write: str | None = None
    audio_minute: str | None = None


class ModelFunctionality(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """What a model can do; None where the server does not say."""

    tool_call: bool | None = None
    parallel_tool_call: bool | None = None
    structured_output: bool | None = None
    tool_choice: bool | None = None
    system_messages: bool | None = None


class ModelReasoningOption(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One way to steer how a model reasons."""

    type: Literal["budget_tokens", "effort", "toggle"] | str | None = None  # open
    min: int | None = None
    """The least budget, in tokens (``budget_tokens``)."""
    max: int | None = None
    """The greatest budget, in tokens (``budget_tokens``)."""
    values: tuple[str, ...] | None = None
    """The efforts that there are (``effort``)."""


class ModelSamplingDefaults(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """What sampling parameters are where a call leaves them out."""

    repetition_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: int | None = None


class Model(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One model of the catalogue."""

    id: str
    """What a call's ``model`` takes."""
    name: str | None = None
    created: int | None = None
    """Unix time in seconds."""
    context_length: int | None = None
    """The most tokens of prompt and answer together."""
    max_completion_tokens: int | None = None
    pricing: ModelPricing | None = None
    functionality: ModelFunctionality | None = None
    description: str | None = None
    deprecation_date: str | None = None
    reasoning: bool | None = None
    """Whether it reasons before it answers."""
    reasoning_options: tuple[ModelReasoningOption, ...] | None = None
    input_modalities: tuple[Modality, ...] | None = None
    output_modalities: tuple[Modality, ...] | None = None
    interleaved: bool | Literal["reasoning_content", "reasoning_details"] | str | None = None  # open
    """Whether it reasons between tool calls, and in which field of a message its reasoning is to be sent back."""
    base_model: str | None = None
    mode: Literal["chat", "completion", "embedding"] | str | None = None  # open
    default_params: ModelSamplingDefaults | None = None


class ModelList(Reply, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """The models that can be called."""

    data: tuple[Model, ...]


_KNOWN: Final = frozenset(ModelsOptions.__annotations__)
_PARAMETERS: Final = Parameters(ModelsOptions, {}, {})
_LIST: Final = Operation(
    method="GET", path="/v1/models", reply=msgspec.json.Decoder(ModelList), repeatable=True, team=False
)


class Models:
    """Friendli's catalogue: ``client.serverless.model``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def list(self, **options: Unpack[ModelsOptions]) -> ModelList:
        """Lists the models that serverless calls can name.

        Args:
            options: See ``ModelsOptions``.

        Returns:
            The models in ``data``, with ``meta``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        check_keywords(options, _KNOWN, "list")
        _PARAMETERS.check(options)
        return await self._engine.call(_LIST, Arguments(query=encode_query(options.get("extra_query") or {})))
