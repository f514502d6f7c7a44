"""Dedicated endpoints, kept in memory, with the states of real ones: they start, sleep, wake and terminate.

A transition advances with each request for the status (`INITIALIZING` in three phases, then `RUNNING`). Only
`createdAt` and `updatedAt` depend on time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from friendli_async.testing.examples import fill
from friendli_async.testing.received import ReceivedRequest, section
from friendli_async.testing.route import Route, refuse
from friendli_async.testing.schema import from_text
from friendli_async.testing.script import Script, json_body, status

__all__ = ["Body", "EndpointStore", "StoredEndpoint"]

Body = Mapping[str, Any]

_PATH: Final = "/dedicated/beta/endpoint"
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
_FINAL_STATES: Final = ("TERMINATING", "TERMINATED")


@dataclass
class StoredEndpoint:
    """One endpoint.

    Args:
        id: Its ID.
        versions: Its specifications, the oldest first.
        created_at: When it was created.
        states: Its current status and phase, followed by those of later status requests.
        updated_at: When it was last changed.
    """

    id: str
    versions: list[dict[str, Any]]
    created_at: str
    states: deque[tuple[str, str | None]] = field(default_factory=lambda: deque(_START_STATES))
    updated_at: str | None = None

    @property
    def status(self) -> str:
        """Its current status, without advancing it."""
        return self.states[0][0]

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
        self._endpoints: dict[str, StoredEndpoint] = {}
        self._created = 0

    def routes(self) -> tuple[Route, ...]:
        """Return the routes of all operations on endpoints."""
        one = f"{_PATH}/{{endpoint_id}}"
        state = "DedicatedEndpointStatus"
        return (
            Route(method="POST", path=_PATH, answer=self._create, body="DedicatedEndpointCreateBody", reply=state),
            Route(
                method="GET",
                path=_PATH,
                answer=self._list,
                query="DedicatedEndpointListQuery",
                reply="DedicatedEndpointListResponse",
            ),
            Route(method="GET", path=one, answer=self._for_endpoint(_spec), reply="DedicatedEndpointSpec"),
            Route(
                method="PUT",
                path=one,
                answer=self._for_endpoint(_update),
                body="DedicatedEndpointUpdateBody",
                reply="DedicatedEndpointSpec",
            ),
            Route(method="DELETE", path=one, answer=self._for_endpoint(self._delete)),
            Route(method="GET", path=f"{one}/status", answer=self._for_endpoint(_status), reply=state),
            Route(
                method="GET",
                path=f"{one}/version",
                answer=self._for_endpoint(_versions),
                query="DedicatedEndpointVersionHistoryQuery",
                reply="DedicatedEndpointVersionHistoryResponse",
            ),
            *(
                Route(method="PUT", path=f"{one}/{verb}", answer=self._for_endpoint(_transition(verb)), reply=state)
                for verb in _TRANSITIONS
            ),
            self._artifact_route(),
        )

    def _artifact_route(self) -> Route:
        return Route(
            method="POST",
            path="/dedicated/endpoint/wandb-artifact-create",
            answer=self._create_from_artifact,
            body="DedicatedEndpointWandbArtifactCreateBody",
            reply="DedicatedEndpointWandbArtifactCreateResponse",
        )

    def _create(self, request: ReceivedRequest) -> Script:
        return json_body(self._add(request, _new_spec(request.json_object)).to_json())

    def _create_from_artifact(self, request: ReceivedRequest) -> Script:
        body = request.json_object
        project = body.get("projectId") or "project-1"
        name = body.get("name") or body["wandbArtifactVersionName"]
        endpoint = self._add(request, _new_spec({**body, "name": name, "projectId": project}))
        reply = fill(
            "DedicatedEndpointWandbArtifactCreateResponse",
            endpointId=endpoint.id,
            endpointName=name,
            projectId=project,
            projectName="Project 1",
            teamId="team-1",
            teamName="Team 1",
        )
        return json_body(reply)

    def _add(self, request: ReceivedRequest, spec: dict[str, Any]) -> StoredEndpoint:
        self._created += 1
        endpoint = StoredEndpoint(f"endpoint-{self._created}", [spec], _now(request))
        self._endpoints[endpoint.id] = endpoint
        return endpoint

    def _list(self, request: ReceivedRequest) -> Script:
        project = "".join(request.query.get("project_id", ()))
        shown = {
            endpoint.id: endpoint.to_json()
            for endpoint in self._endpoints.values()
            if not project or endpoint.versions[-1]["projectId"] == project
        }
        return _page(request, "DedicatedEndpointListQuery", shown)

    def _delete(self, endpoint: StoredEndpoint, _: ReceivedRequest) -> Script:
        del self._endpoints[endpoint.id]
        return json_body(None)

    def _for_endpoint(
        self, answer: Callable[[StoredEndpoint, ReceivedRequest], Script]
    ) -> Callable[[ReceivedRequest], Script]:
        def find(request: ReceivedRequest) -> Script:
            name = request.path_parameters["endpoint_id"]
            endpoint = self._endpoints.get(name)
            return (
                status(404, message=f"there is no endpoint {name}") if endpoint is None else answer(endpoint, request)
            )

        return find


def _status(endpoint: StoredEndpoint, _: ReceivedRequest) -> Script:
    endpoint.advance()
    return json_body(endpoint.to_json())


def _spec(endpoint: StoredEndpoint, _: ReceivedRequest) -> Script:
    return json_body(endpoint.versions[-1])


def _versions(endpoint: StoredEndpoint, request: ReceivedRequest) -> Script:
    newest_first = {str(len(endpoint.versions) - at): spec for at, spec in enumerate(reversed(endpoint.versions))}
    return _page(request, "DedicatedEndpointVersionHistoryQuery", newest_first)


def _update(endpoint: StoredEndpoint, request: ReceivedRequest) -> Script:
    if endpoint.status in _FINAL_STATES:
        return _conflict(endpoint, "be updated")
    endpoint.versions.append({**endpoint.versions[-1], **_settings(request.json_object)})
    if endpoint.status == "RUNNING":
        endpoint.states = deque([("UPDATING", None), ("RUNNING", None)])
    endpoint.updated_at = _now(request)
    return json_body(endpoint.versions[-1])


def _transition(verb: str) -> Callable[[StoredEndpoint, ReceivedRequest], Script]:
    def change(endpoint: StoredEndpoint, request: ReceivedRequest) -> Script:
        if endpoint.status in _FINAL_STATES and verb != "terminate":
            return _conflict(endpoint, verb)
        steps = _TRANSITIONS[verb]
        if endpoint.states[-1] != steps[-1] or verb == "restart":  # else it is in that state, or in transition to it
            endpoint.states = deque(steps)
            endpoint.updated_at = _now(request)
        return json_body(endpoint.to_json())

    return change


def _conflict(endpoint: StoredEndpoint, what: str) -> Script:
    message = f"{endpoint.id} is {endpoint.status}, so it cannot {what}"
    return status(409, message=message)


def _new_spec(body: Body) -> dict[str, Any]:
    spec = fill(
        "DedicatedEndpointSpec",
        gpuType="NVIDIA H100",
        numGpu=1,
        creatorId="user-1",
        teamId="team-1",
        autoscalingMin=0,
        autoscalingMax=1,
        autoscalingCooldown=300,
        maxBatchSize=128,
        tokenizerSkipSpecialTokens=True,
        tokenizerAddSpecialTokens=True,
        instanceId=body.get("instanceOptionId"),
        currReplicaCnt=1,
        desiredReplicaCnt=1,
        updatedReplicaCnt=1,
        maxInputLength=None,
        maxContextLength=None,
    )
    return {**spec, "projectId": body["projectId"], **_settings(body)}


def _settings(body: Body) -> dict[str, Any]:
    """Translate the settings in a request body to the field names of a specification."""
    scaling, advanced = section(body, "autoscalingPolicy"), section(body, "advanced")
    accelerator = section(body, "accelerator")
    settings: Body = {
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


def _page(request: ReceivedRequest, schema: str, items: Mapping[str, object]) -> Script:
    query = from_text(schema, request.query)
    limit, cursor = query.get("limit", _LIMIT), str(query.get("cursor", "after-0")).removeprefix("after-")
    if not isinstance(limit, int) or not 1 <= limit <= _MAX_LIMIT:
        message = f"Input should be between 1 and {_MAX_LIMIT}"
        return refuse([{"loc": ["query", "limit"], "msg": message, "type": "value_error"}])
    if not cursor.isdecimal() or len(cursor) > 9:
        return refuse([{"loc": ["query", "cursor"], "msg": "Invalid nextCursor", "type": "value_error"}])
    end = int(cursor) + limit
    names = list(items)[int(cursor) : end]
    more = end < len(items)
    return json_body({"data": {name: items[name] for name in names}, "nextCursor": f"after-{end}" if more else None})


def _now(request: ReceivedRequest) -> str:
    return datetime.fromtimestamp(request.created, UTC).isoformat().replace("+00:00", "Z")
