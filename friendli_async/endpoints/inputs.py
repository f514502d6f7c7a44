"""Parameters of endpoint management: configurations and the options of each operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from friendli_async._core.body.arguments import ExtraOptions, ExtraQuery, Parameters
from friendli_async._help import document_fields
from friendli_async._pydantic import PydanticField

__all__: list[str] = ["AcceleratorRequirement", "AdvancedConfig", "AutoscalingPolicy", "ModelOptions"]
__all__ += ["EndpointCreateOptions", "EndpointUpdateOptions", "EndpointVersionOptions", "SimplescaleConfig"]
__all__ += ["EndpointListOptions", "WandbArtifactOptions"]


class AdvancedConfig(PydanticField, msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Engine configuration of an endpoint."""

    tokenizer_skip_special_tokens: bool
    tokenizer_add_special_tokens: bool
    max_batch_size: int | None = None
    max_token_count: int | msgspec.UnsetType = msgspec.UNSET
    enable_content_logging: bool | None = None
    max_input_length: int | None = None
    max_context_length: int | None = None
    queue_timeout_ms: int | None = None
    """In milliseconds."""
    queue_backpressure_metric_kind: (
        Literal["TPOT_MS", "TTFT_MS", "REQUEST_COUNT", "WORKSPACE_UTILIZATION", "QUEUED_PREFILL_TOKENS"] | str | None
    ) = None  # open
    queue_backpressure_metric_threshold: float | None = None


class SimplescaleConfig(PydanticField, msgspec.Struct, frozen=True):
    """A fixed number of replicas."""

    replicas: int


class AutoscalingPolicy(PydanticField, msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Scales the number of replicas with the load. As a dict, its keys are camelCase: ``{"maxReplica": 2}``."""

    min_replica: int | msgspec.UnsetType = msgspec.UNSET
    max_replica: int | msgspec.UnsetType = msgspec.UNSET
    cooldown_period: int | msgspec.UnsetType = msgspec.UNSET


class AcceleratorRequirement(PydanticField, msgspec.Struct, frozen=True):
    """The hardware that runs a Weights & Biases artifact."""

    type: str
    count: int


@document_fields
class ModelOptions(ExtraOptions, total=False):
    """Optional parameters of both ``create`` and ``update``: the model and its replicas."""

    simplescale: SimplescaleConfig | Mapping[str, object] | None
    """``{"replicas": int}``: a fixed number of replicas."""
    autoscaling_policy: AutoscalingPolicy | Mapping[str, object] | None
    """``{"minReplica": int, "maxReplica": int, "cooldownPeriod": int}``."""
    hf_model_repo: str | None
    """Hugging Face repository of the model, as ``org/repo``."""
    hf_model_repo_revision: str | None
    """Revision of the repository: branch, tag or commit."""
    uploaded_model_id: str | None
    """Id of a model uploaded to Friendli."""


@document_fields
class EndpointCreateOptions(ModelOptions, total=False):
    """Optional parameters of a new endpoint. Omitted ones are left to the server; None is sent as null."""

    initial_version_comment: str | None
    """Comment on the first version."""


@document_fields
class EndpointUpdateOptions(ModelOptions, total=False):
    """Changes to an endpoint. Omitted parameters stay unchanged; None is sent as null."""

    name: str | None
    """Its name."""
    advanced: AdvancedConfig | Mapping[str, object] | None
    """Engine configuration; see ``AdvancedConfig``."""
    instance_option_id: str | None
    """Id of the hardware to run on."""
    new_version_comment: str | None
    """Comment on the new version."""


@document_fields
class WandbArtifactOptions(ExtraOptions, total=False):
    """Optional parameters of an endpoint for an artifact. Omitted ones are left to the server; None is sent as null."""

    accelerator: AcceleratorRequirement | Mapping[str, object] | None
    """``{"type": str, "count": int}``: the hardware to run on."""
    name: str | None
    """Name of the endpoint."""
    project_id: str | None
    """Project that owns the endpoint."""
    idempotency_key: str | None
    """An idempotency key of your choice."""
    autoscaling_policy: AutoscalingPolicy | Mapping[str, object] | None
    """``{"minReplica": int, "maxReplica": int, "cooldownPeriod": int}``."""


@document_fields
class EndpointVersionOptions(ExtraQuery, total=False):
    """Optional parameters of a list of versions. Omitted ones and None are left to the server."""

    cursor: str | None
    """Where to start: the ``next_cursor`` of an earlier page."""
    limit: int | None
    """Maximum number of items per page."""


@document_fields
class EndpointListOptions(EndpointVersionOptions, total=False):
    """Optional parameters of a list of endpoints. Omitted ones and None are left to the server."""

    project_id: str | None
    """Only the endpoints of this project."""


_TYPES: Final[dict[str, Any]] = {
    "accelerator": AcceleratorRequirement | None,
    "advanced": AdvancedConfig | None,
    "autoscaling_policy": AutoscalingPolicy | None,
    "simplescale": SimplescaleConfig | None,
}


_REQUIRED: Final = {"project_id": str, "name": str, "instance_option_id": str}
CREATE_PARAMETERS: Final = Parameters(EndpointCreateOptions, _REQUIRED, {**_TYPES, "advanced": AdvancedConfig})
UPDATE_PARAMETERS: Final = Parameters(EndpointUpdateOptions, {}, _TYPES)
WANDB_ARTIFACT_PARAMETERS: Final = Parameters(WandbArtifactOptions, {"wandb_artifact_version_name": str}, _TYPES)
