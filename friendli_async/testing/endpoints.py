"""Dedicated endpoints, kept in memory, with the states of real ones: they start, sleep, wake and terminate.

A transition advances with each request for the status (`INITIALIZING` in three phases, then `RUNNING`). Only
`createdAt` and `updatedAt` depend on time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from friendli_async.testing.examples import fill
from friendli_async.testing.frames import timestamp
from friendli_async.testing.received import ReceivedRequest, section
from friendli_async.testing.route import Route, page_of, stored
from friendli_async.testing.script import Script, json_body

_Body = Mapping[str, Any]
_Spec = dict[str, Any]

_PATH: Final = "/dedicated/beta/endpoint"
_ARTIFACT_REPLY: Final = "DedicatedEndpointWandbArtifactCreateResponse"
_LIMIT: Final = 20
_MAX_LIMIT: Final = 100
_START_STATES: Final = (
    ("INITIALIZING", "REQUESTING_VIRTUAL_MACHINE"),
    ("INITIALIZING", "DOWNLOADING_MODEL"),
    ("INITIALIZING", "ENGINE_INITIALIZING"),
    ("RUNNING", None),
)
_TRANSITIONS: Final[Mapping[str, Sequence[tuple[str, str | None]]]] = {
    "restart": _START_STATES,
    "sleep": (("SLEEPING", None),),
    "wake": (("AWAKING", None), ("RUNNING", None)),
    "terminate": (("TERMINATING", None), ("TERMINATED", None)),
}
_NEW_SPEC: Final = {
    "gpuType": "NVIDIA H100",
    "numGpu": 1,
    "autoscalingMin": 0,
    "autoscalingMax": 1,
    "autoscalingCooldown": 300,
    "maxBatchSize": 128,
    "maxInputLength": None,
    "maxContextLength": None,
    **dict.fromkeys(("currReplicaCnt", "desiredReplicaCnt", "updatedReplicaCnt"), 1),
}
"""What the request does not say, as far as it is not made up by the schema."""


@dataclass
class _Endpoint:
    id: str
    versions: list[_Spec]
    """Its specifications, the oldest first."""
    created_at: str
    states: deque[tuple[str, str | None]] = field(default_factory=lambda: deque(_START_STATES))
    """Its current status and phase, followed by those of later status requests."""
    updated_at: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the status in the format of the API."""
        name, phase = self.states[0]
        return {
            "status": name,
            "phase": phase,
            "errorCode": None,
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
        }

    def advance(self) -> None:
        """Take the next step of a transition."""
        if len(self.states) > 1:
            self.states.popleft()


class EndpointStore:
    """The endpoints of one server."""

    def __init__(self) -> None:
        self._endpoints: dict[str, _Endpoint] = {}
        self._created = 0

    def routes(self) -> tuple[Route, ...]:
        """Return the routes of all operations on endpoints."""
        one, state, spec = f"{_PATH}/{{endpoint_id}}", "DedicatedEndpointStatus", "DedicatedEndpointSpec"

        def for_one(answer: Callable[[_Endpoint, ReceivedRequest], Script]) -> Callable[[ReceivedRequest], Script]:
            return stored("endpoint", self._endpoints, answer)

        return (
            Route("POST", _PATH, self._create, "DedicatedEndpointCreateBody", state),
            Route("GET", _PATH, self._list, query="DedicatedEndpointListQuery", reply="DedicatedEndpointListResponse"),
            Route("GET", one, for_one(_spec), reply=spec),
            Route("PUT", one, for_one(_update), body="DedicatedEndpointUpdateBody", reply=spec),
            Route("DELETE", one, for_one(self._delete)),
            Route("GET", f"{one}/status", for_one(_status), reply=state),
            Route(
                "GET",
                f"{one}/version",
                for_one(_versions),
                query="DedicatedEndpointVersionHistoryQuery",
                reply="DedicatedEndpointVersionHistoryResponse",
            ),
            *(Route("PUT", f"{one}/{verb}", for_one(_transition(verb)), reply=state) for verb in _TRANSITIONS),
            Route(
                "POST",
                "/dedicated/endpoint/wandb-artifact-create",
                self._create_from_artifact,
                body="DedicatedEndpointWandbArtifactCreateBody",
                reply=_ARTIFACT_REPLY,
            ),
        )

    def _create(self, request: ReceivedRequest) -> Script:
        return json_body(self._add(request, request.json_object).to_json())

    def _create_from_artifact(self, request: ReceivedRequest) -> Script:
        body = request.json_object
        project = body.get("projectId") or "project-1"
        name = body.get("name") or body["wandbArtifactVersionName"]
        endpoint = self._add(request, {**body, "name": name, "projectId": project})
        return json_body(fill(_ARTIFACT_REPLY, endpointId=endpoint.id, endpointName=name, projectId=project))

    def _add(self, request: ReceivedRequest, body: _Body) -> _Endpoint:
        self._created += 1
        spec = fill("DedicatedEndpointSpec", **_NEW_SPEC)
        spec |= {"projectId": body["projectId"], **_settings(body)}
        endpoint = _Endpoint(f"endpoint-{self._created}", [spec], timestamp(request.created))
        self._endpoints[endpoint.id] = endpoint
        return endpoint

    def _list(self, request: ReceivedRequest) -> Script:
        project = request.values.get("project_id")
        shown = {
            endpoint.id: endpoint.to_json()
            for endpoint in self._endpoints.values()
            if not project or endpoint.versions[-1]["projectId"] == project
        }
        return _page(request.values, shown)

    def _delete(self, endpoint: _Endpoint, _: ReceivedRequest) -> Script:
        del self._endpoints[endpoint.id]
        return json_body(None)


def _status(endpoint: _Endpoint, _: ReceivedRequest) -> Script:
    endpoint.advance()
    return json_body(endpoint.to_json())


def _spec(endpoint: _Endpoint, _: ReceivedRequest) -> Script:
    return json_body(endpoint.versions[-1])


def _versions(endpoint: _Endpoint, request: ReceivedRequest) -> Script:
    newest_first = {str(len(endpoint.versions) - at): spec for at, spec in enumerate(reversed(endpoint.versions))}
    return _page(request.values, newest_first)


def _update(endpoint: _Endpoint, request: ReceivedRequest) -> Script:
    endpoint.versions.append({**endpoint.versions[-1], **_settings(request.json_object)})
    if endpoint.states[0][0] == "RUNNING":
        # Twice: a status request shows the next state, and the reply to this request shows none.
        endpoint.states = deque([("UPDATING", None), ("UPDATING", None), ("RUNNING", None)])
    endpoint.updated_at = timestamp(request.created)
    return json_body(endpoint.versions[-1])


def _transition(verb: str) -> Callable[[_Endpoint, ReceivedRequest], Script]:
    def change(endpoint: _Endpoint, request: ReceivedRequest) -> Script:
        steps = _TRANSITIONS[verb]
        if endpoint.states[-1] != steps[-1] or verb == "restart":  # else it is in that state, or in transition to it
            endpoint.states = deque(steps)
            endpoint.updated_at = timestamp(request.created)
        return json_body(endpoint.to_json())

    return change


def _settings(body: _Body) -> _Spec:
    """Translate the settings in a request body to the field names of a specification."""
    scaling, advanced = section(body, "autoscalingPolicy"), section(body, "advanced")
    accelerator = section(body, "accelerator")
    settings: _Body = {
        "name": body.get("name"),
        "instanceId": body.get("instanceOptionId"),
        "autoscalingMin": scaling.get("minReplica"),
        "autoscalingMax": scaling.get("maxReplica"),
        "autoscalingCooldown": scaling.get("cooldownPeriod"),
        "desiredReplicaCnt": section(body, "simplescale").get("replicas"),
        "maxBatchSize": advanced.get("max_batch_size"),
        "maxInputLength": advanced.get("max_input_length"),
        "maxContextLength": advanced.get("max_context_length"),
        "tokenizerSkipSpecialTokens": advanced.get("tokenizer_skip_special_tokens"),
        "tokenizerAddSpecialTokens": advanced.get("tokenizer_add_special_tokens"),
        "numGpu": accelerator.get("count"),
        "gpuType": accelerator.get("type"),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _page(query: Mapping[str, object], items: Mapping[str, object]) -> Script:
    shown, following = page_of(query, "cursor", len(items), usual=_LIMIT, most=_MAX_LIMIT)
    names = [*items]
    return json_body({"data": {names[at]: items[names[at]] for at in shown}, "nextCursor": following})
