"""Replies of endpoint management: status, configuration, and pages of them."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from friendli_async.replies import Reply, always_encoded

__all__: list[str] = ["EndpointErrorCode", "EndpointPage", "EndpointPhase", "EndpointState", "EndpointStatus"]
__all__ += ["EndpointSpec", "EndpointVersion", "EndpointVersionPage", "ListedEndpoint", "WandbArtifactEndpoint"]

# All three are open: a new value must not break old clients.
EndpointState = (
    Literal[
        "UNKNOWN",
        "INITIALIZING",
        "RUNNING",
        "READY",
        "UPDATING",
        "SLEEPING",
        "AWAKING",
        "FAILED",
        "STOPPING",
        "TERMINATING",
        "TERMINATED",
    ]
    | str
)
EndpointPhase = Literal["REQUESTING_VIRTUAL_MACHINE", "DOWNLOADING_MODEL", "ENGINE_INITIALIZING"] | str
EndpointErrorCode = (
    Literal[
        "WORKLOAD_INIT_UNKNOWN_ERROR",
        "WORKLOAD_INIT_SETTINGS_ERROR",
        "WORKLOAD_INIT_GRPC_ERROR",
        "WORKLOAD_INIT_MANIFEST_NOT_FOUND_ERROR",
        "WORKLOAD_INIT_MANIFEST_TYPE_ERROR",
        "WORKLOAD_INIT_DOWNLOAD_ERROR",
        "WORKLOAD_INIT_INVALID_TOKEN_ERROR",
        "WORKLOAD_INIT_CANNOT_ACCESS_REPO_ERROR",
        "WORKLOAD_INIT_HF_WANDB_API_ERROR",
        "WORKLOAD_INIT_INSUFFICIENT_DISK_ERROR",
        "INFERENCE_ENGINE_UNKNOWN_ERROR",
        "INFERENCE_ENGINE_INVALID_ARGUMENT_ERROR",
        "INFERENCE_ENGINE_MEMORY_ERROR",
        "INFERENCE_ENGINE_METERING_CLIENT_CONFIG_ERROR",
    ]
    | str
)


class EndpointStatus(Reply, frozen=True, kw_only=True, rename="camel"):
    """The current status of an endpoint."""

    _answered_by: ClassVar[tuple[str, ...]] = ("status",)

    status: EndpointState
    created_at: datetime | None = None
    updated_at: datetime | None = None
    error_code: EndpointErrorCode | None = None
    """Why it failed."""
    phase: EndpointPhase | None = None
    """Progress of its startup."""


class ListedEndpoint(EndpointStatus, frozen=True, kw_only=True, rename="camel"):
    """An endpoint in a list: its status and its id. Only the page that contains it has ``meta``."""

    id: str


class EndpointPage(Reply, frozen=True, kw_only=True, rename="camel"):
    """One page of endpoints."""

    data: dict[str, EndpointStatus] = always_encoded({})
    """By endpoint id."""
    next_cursor: str | None = None
    """The ``cursor`` of the next page."""

    @property
    def items(self) -> tuple[ListedEndpoint, ...]:
        """The endpoints with their ids."""
        return tuple(ListedEndpoint(id=key, **msgspec.structs.asdict(item)) for key, item in self.data.items())


class EndpointSpec(Reply, frozen=True, kw_only=True, rename="camel"):
    """The configuration of an endpoint."""

    name: str
    gpu_type: str | None = None
    num_gpu: int | None = None
    project_id: str | None = None
    creator_id: str | None = None
    team_id: str | None = None
    autoscaling_min: int | None = None
    """Minimum number of replicas."""
    autoscaling_max: int | None = None
    """Maximum number of replicas."""
    autoscaling_cooldown: int | None = None
    max_batch_size: int | None = None
    tokenizer_skip_special_tokens: bool | None = None
    tokenizer_add_special_tokens: bool | None = None
    instance_id: str | None = None
    max_input_length: int | None = None
    max_context_length: int | None = None
    curr_replica_cnt: int | None = None
    """Current number of replicas."""
    desired_replica_cnt: int | None = None
    """Desired number of replicas."""
    updated_replica_cnt: int | None = None
    """Number of replicas that run the current version."""


class EndpointVersion(EndpointSpec, frozen=True, kw_only=True, rename="camel"):
    """A version of an endpoint: its configuration and its id. Only the page that contains it has ``meta``."""

    id: str


class EndpointVersionPage(Reply, frozen=True, kw_only=True, rename="camel"):
    """One page of an endpoint's versions."""

    data: dict[str, EndpointSpec] = always_encoded({})
    """By version id."""
    next_cursor: str | None = None
    """The ``cursor`` of the next page."""

    @property
    def items(self) -> tuple[EndpointVersion, ...]:
        """The versions with their ids."""
        return tuple(EndpointVersion(id=key, **msgspec.structs.asdict(item)) for key, item in self.data.items())


class WandbArtifactEndpoint(Reply, frozen=True, kw_only=True, rename="camel"):
    """The endpoint that serves a Weights & Biases artifact."""

    endpoint_id: str
    endpoint_name: str | None = None
    project_id: str | None = None
    project_name: str | None = None
    team_id: str | None = None
    team_name: str | None = None
