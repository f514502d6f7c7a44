"""Models: Friendli's model catalogue.

Wire: ``GET /serverless/v1/models``, without a team header.
"""

from __future__ import annotations

from typing import Final, Literal, Unpack

from friendli_async._core.body.arguments import ExtraQuery, path_arguments
from friendli_async._core.resource import Resource, operation
from friendli_async._help import document_fields
from friendli_async.replies import Reply, Value

__all__ = ["Modality", "ModelFunctionality", "ModelPricing", "ModelReasoningOption", "ModelsOptions"]
__all__ += ["Model", "ModelList", "ModelSamplingDefaults", "Models"]

Modality = Literal["text", "audio", "image", "video", "pdf"] | str  # open: new kinds must not break old clients


@document_fields
class ModelsOptions(ExtraQuery, total=False):
    """Optional parameters of the catalogue."""


class ModelPricing(Value, frozen=True):
    """Prices of a model, as decimal text to avoid rounding."""

    input: str | None = None
    output: str | None = None
    prompt: str | None = None
    completion: str | None = None
    input_cache_read: str | None = None
    cache_write: str | None = None
    audio_minute: str | None = None


class ModelFunctionality(Value, frozen=True):
    """Capabilities of a model; None if the server does not specify one."""

    tool_call: bool | None = None
    parallel_tool_call: bool | None = None
    structured_output: bool | None = None
    tool_choice: bool | None = None
    system_messages: bool | None = None
    builtin_tool: bool | None = None


class ModelReasoningOption(Value, frozen=True):
    """One way to control the reasoning of a model."""

    type: Literal["budget_tokens", "effort", "toggle"] | str | None = None  # open
    min: int | None = None
    """Minimum budget in tokens (``budget_tokens``)."""
    max: int | None = None
    """Maximum budget in tokens (``budget_tokens``)."""
    values: tuple[str, ...] | None = None
    """Available efforts (``effort``)."""


class ModelSamplingDefaults(Value, frozen=True):
    """Default sampling parameters of a model."""

    repetition_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: int | None = None


class Model(Value, frozen=True):
    """One model of the catalogue."""

    id: str
    """The value for the ``model`` parameter of calls."""
    name: str | None = None
    created: int | None = None
    """Unix time in seconds."""
    context_length: int | None = None
    """Maximum number of tokens of prompt and answer together."""
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
    """Whether it reasons between tool calls, or the message field in which to send its reasoning back."""
    base_model: str | None = None
    mode: Literal["chat", "completion", "embedding"] | str | None = None  # open
    default_params: ModelSamplingDefaults | None = None
    license: str | None = None
    hugging_face_id: str | None = None
    hugging_face_url: str | None = None
    discount_to_user: float | str | None = None


class ModelList(Reply, frozen=True, kw_only=True):
    """The available models."""

    data: tuple[Model, ...]


_LIST: Final = operation("model.list", "GET /v1/models", ModelList, team=False)


class Models(Resource):
    """Friendli's catalogue: ``client.serverless.model``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed; see ``friendli_async.errors``.
    """

    async def list(self, **options: Unpack[ModelsOptions]) -> ModelList:
        """Lists the models available to serverless calls.

        Args:
            options: See ``ModelsOptions``.

        Returns:
            The models in ``data``, with ``meta``.
        """
        return await self._engine.call(_LIST, path_arguments("list", options))
