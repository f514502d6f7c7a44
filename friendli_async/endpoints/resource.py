"""Endpoints: dedicated deployments of your models, from creation to deletion.

Wire: ``/dedicated/beta/endpoint...``, and ``/dedicated/endpoint/wandb-artifact-create``. Bodies use camelCase
keys, except inside ``advanced``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Unpack, cast

from friendli_async._core.body.arguments import Arguments, ExtraQuery, Parameters, path_arguments, path_parameters
from friendli_async._core.body.json_values import encode_body
from friendli_async._core.pages import Listing, PageFormat, Pages
from friendli_async._core.resource import ANYTHING, Resource, operation
from friendli_async.endpoints.inputs import (
    CREATE_PARAMETERS,
    UPDATE_PARAMETERS,
    WANDB_ARTIFACT_PARAMETERS,
    AdvancedConfig,
    EndpointCreateOptions,
    EndpointListOptions,
    EndpointUpdateOptions,
    EndpointVersionOptions,
    WandbArtifactOptions,
)
from friendli_async.endpoints.replies import (
    EndpointPage,
    EndpointSpec,
    EndpointState,
    EndpointStatus,
    EndpointVersion,
    EndpointVersionPage,
    ListedEndpoint,
    WandbArtifactEndpoint,
)
from friendli_async.errors import APIStatusError, APITimeoutError, ArgumentError
from friendli_async.options import is_finite

__all__ = ["Endpoints"]


_ENDPOINT: Final = "/beta/endpoint/{endpoint_id}"

_CREATE: Final = operation("endpoint.create", "POST /beta/endpoint", EndpointStatus)
_DELETE: Final = operation("endpoint.delete", f"DELETE {_ENDPOINT}", ANYTHING)
_GET_SPEC: Final = operation("endpoint.get_spec", f"GET {_ENDPOINT}", EndpointSpec)
_GET_STATUS: Final = operation("endpoint.get_status", f"GET {_ENDPOINT}/status", EndpointStatus)
_PAGES: Final = PageFormat(
    cursor="cursor", items=lambda page: page.items, following=lambda page: page.next_cursor or None
)
_VERSIONS: Final[Listing[EndpointVersion, EndpointVersionPage]] = Listing(
    operation("endpoint.get_version_history", f"GET {_ENDPOINT}/version", EndpointVersionPage),
    Parameters(EndpointVersionOptions),
    _PAGES,
)
_LIST: Final[Listing[ListedEndpoint, EndpointPage]] = Listing(
    operation("endpoint.list", "GET /beta/endpoint", EndpointPage), Parameters(EndpointListOptions), _PAGES
)
_RESTART: Final = operation("endpoint.restart", f"PUT {_ENDPOINT}/restart", EndpointStatus)
_SLEEP: Final = operation("endpoint.sleep", f"PUT {_ENDPOINT}/sleep", EndpointStatus)
_TERMINATE: Final = operation("endpoint.terminate", f"PUT {_ENDPOINT}/terminate", EndpointStatus)
_UPDATE: Final = operation("endpoint.update", f"PUT {_ENDPOINT}", EndpointSpec)
_WAKE: Final = operation("endpoint.wake", f"PUT {_ENDPOINT}/wake", EndpointStatus)
_WANDB_ARTIFACT_CREATE: Final = operation(
    "endpoint.wandb_artifact_create", "POST /endpoint/wandb-artifact-create", WandbArtifactEndpoint
)

# --- the resource ----------------------------------------------------------------------------------------------------

# The defaults of ``wait``, in seconds.
WAIT_TIMEOUT: Final = 1800.0
POLL_INTERVAL: Final = 5.0
# States that a failed or terminating endpoint can still reach by itself. Other endpoints may reach any state.
_REACHABLE_STATES: Final[dict[str, frozenset[str]]] = {
    "FAILED": frozenset({"STOPPING", "TERMINATING", "TERMINATED"}),
    "TERMINATING": frozenset({"TERMINATED"}),
    "TERMINATED": frozenset(),
}


class Endpoints(Resource):
    """Manages endpoints: ``client.dedicated.endpoint``. To call their models, see ``client.dedicated.chat`` etc.

    ``endpoint_id`` is the id of an endpoint; ``list`` returns it. Every method but ``wait`` accepts ``extra_query``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path, or an invalid id. Nothing was sent.
        FriendliError: The call failed (a list raises on use); see ``friendli_async.errors``.
    """

    async def create(
        self,
        *,
        project_id: str,
        name: str,
        instance_option_id: str,
        advanced: AdvancedConfig | Mapping[str, object],
        **options: Unpack[EndpointCreateOptions],
    ) -> EndpointStatus:
        """Creates an endpoint. The reply does not contain its id; ``list`` does.

        Args:
            project_id: Project that owns the endpoint.
            name: Its name.
            instance_option_id: Id of the hardware to run on.
            advanced: Engine configuration; at least ``tokenizer_skip_special_tokens`` and
                ``tokenizer_add_special_tokens``.
            options: See ``EndpointCreateOptions``.

        Returns:
            Its status.

        Raises:
            FriendliError: The call failed. It is not retried if the server may have accepted it.
        """
        required = {"project_id": project_id, "name": name, "instance_option_id": instance_option_id}
        arguments = _body_arguments(CREATE_PARAMETERS, "create", {**required, "advanced": advanced}, options)
        return await self._engine.call(_CREATE, arguments)

    async def wandb_artifact_create(
        self, *, wandb_artifact_version_name: str, **options: Unpack[WandbArtifactOptions]
    ) -> WandbArtifactEndpoint:
        """Creates an endpoint for a Weights & Biases artifact.

        Args:
            wandb_artifact_version_name: As ``entity/project/artifact:v1``.
            options: See ``WandbArtifactOptions``.

        Returns:
            Ids and names of the endpoint, its project and its team.

        Raises:
            FriendliError: The call failed. It is not retried if the server may have accepted it.
        """
        required = {"wandb_artifact_version_name": wandb_artifact_version_name}
        arguments = _body_arguments(WANDB_ARTIFACT_PARAMETERS, "wandb_artifact_create", required, options)
        return await self._engine.call(_WANDB_ARTIFACT_CREATE, arguments)

    async def update(self, endpoint_id: str, **options: Unpack[EndpointUpdateOptions]) -> EndpointSpec:
        """Updates an endpoint, and returns its new configuration.

        Args:
            endpoint_id: Its id.
            options: What to change; see ``EndpointUpdateOptions``.
        """
        arguments = _body_arguments(UPDATE_PARAMETERS, "update", {}, options, endpoint_id=endpoint_id)
        return await self._engine.call(_UPDATE, arguments)

    async def delete(self, endpoint_id: str, **options: Unpack[ExtraQuery]) -> None:
        """Deletes an endpoint."""
        await self._engine.call(_DELETE, path_arguments("delete", options, endpoint_id=endpoint_id))

    def list(self, **options: Unpack[EndpointListOptions]) -> Pages[ListedEndpoint, EndpointPage]:
        """Lists the endpoints of the team.

        Args:
            options: See ``EndpointListOptions``.

        Returns:
            The endpoints. ``async for`` iterates over all of them, ``pages()`` over pages; ``await`` gives one page.
        """
        return _LIST.of(self._engine, {}, options)

    def get_version_history(
        self, endpoint_id: str, **options: Unpack[EndpointVersionOptions]
    ) -> Pages[EndpointVersion, EndpointVersionPage]:
        """Lists the versions of an endpoint.

        Args:
            endpoint_id: Its id.
            options: See ``EndpointVersionOptions``.

        Returns:
            The versions. ``async for`` iterates over all of them, ``pages()`` over pages; ``await`` gives one page.
        """
        return _VERSIONS.of(self._engine, {}, options, endpoint_id=endpoint_id)

    async def get_spec(self, endpoint_id: str, **options: Unpack[ExtraQuery]) -> EndpointSpec:
        """Returns the configuration of an endpoint, and its numbers of replicas."""
        return await self._engine.call(_GET_SPEC, path_arguments("get_spec", options, endpoint_id=endpoint_id))

    async def get_status(self, endpoint_id: str, **options: Unpack[ExtraQuery]) -> EndpointStatus:
        """Returns the status of an endpoint, with an error code if it failed."""
        return await self._engine.call(_GET_STATUS, path_arguments("get_status", options, endpoint_id=endpoint_id))

    async def restart(self, endpoint_id: str, **options: Unpack[ExtraQuery]) -> EndpointStatus:
        """Restarts an endpoint, and returns its status."""
        return await self._engine.call(_RESTART, path_arguments("restart", options, endpoint_id=endpoint_id))

    async def sleep(self, endpoint_id: str, **options: Unpack[ExtraQuery]) -> EndpointStatus:
        """Puts an endpoint to sleep, and returns its status; ``wake`` wakes it."""
        return await self._engine.call(_SLEEP, path_arguments("sleep", options, endpoint_id=endpoint_id))

    async def terminate(self, endpoint_id: str, **options: Unpack[ExtraQuery]) -> EndpointStatus:
        """Terminates an endpoint, and returns its status."""
        return await self._engine.call(_TERMINATE, path_arguments("terminate", options, endpoint_id=endpoint_id))

    async def wake(self, endpoint_id: str, **options: Unpack[ExtraQuery]) -> EndpointStatus:
        """Wakes a sleeping endpoint, and returns its status; ``wait`` waits until it runs."""
        return await self._engine.call(_WAKE, path_arguments("wake", options, endpoint_id=endpoint_id))

    async def wait(
        self,
        endpoint_id: str,
        *,
        until: EndpointState = "RUNNING",
        timeout: float | None = WAIT_TIMEOUT,
        interval: float = POLL_INTERVAL,
    ) -> EndpointStatus:
        """Polls an endpoint until it reaches a state. This does not wake a sleeping endpoint; ``wake`` does.

        Args:
            endpoint_id: Its id.
            until: The state to wait for.
            timeout: Maximum wait in seconds, including the calls; default half an hour, None is no limit. Without a
                limit, an endpoint that goes back to sleep is an error, and a state that never changes is waited on
                forever.
            interval: Seconds between polls; default 5.

        Returns:
            Its status in that state.

        Raises:
            APITimeoutError: The wait exceeded ``timeout`` (``limit`` is "total"), or one of the calls timed out.
            APIStatusError: The endpoint cannot reach the state: it has failed, terminated, or (without a limit) gone
                back to sleep. ``type`` is its current state, ``code`` its error code, ``status_code`` 0.
            ArgumentError: An invalid argument, such as a state in small letters. Nothing was sent.
        """
        if not isinstance(cast("object", until), str) or not until.isupper():  # a server may have new states
            raise ArgumentError(f"Expected a state in capital letters, such as 'RUNNING', got {until!r}", "until")
        _check_seconds(timeout, interval)
        return await wait_for_state(self, endpoint_id, until, timeout, interval, may_sleep=timeout is not None)


async def wait_for_state(
    endpoints: Endpoints, endpoint_id: str, until: str, timeout: float | None, interval: float, *, may_sleep: bool
) -> EndpointStatus:
    """Waits until an endpoint reaches a state, and returns its status; see ``Endpoints.wait``.

    Args:
        endpoints: The endpoints.
        endpoint_id: Its id.
        until: The state.
        timeout: Maximum wait in seconds; None is no limit.
        interval: Seconds between polls.
        may_sleep: Whether to keep waiting if it goes to sleep.
    """
    # Already imported by the client, but not needed to import this module.
    import asyncio

    from friendli_async._core.net.clock import TimeLimit

    seen: EndpointStatus | None = None
    limit = TimeLimit(timeout)
    try:
        with limit:
            while True:
                before, seen = seen, await endpoints.get_status(endpoint_id)
                if seen.status == until:
                    return seen
                is_stuck = not may_sleep and _fell_asleep(before, seen, until)
                if is_stuck or until not in _REACHABLE_STATES.get(seen.status, {until}):
                    raise _unreachable_error(endpoint_id, seen, until)
                await asyncio.sleep(interval)
    except TimeoutError:
        if timeout is None or not limit.expired:  # of one of the calls, or of a token callable
            raise
        raise _timeout_error(endpoint_id, seen, until, timeout) from None
    finally:
        del limit  # it has the task, which may keep the error that is raised here: a cycle through its traceback


def _fell_asleep(before: EndpointStatus | None, seen: EndpointStatus, until: str) -> bool:
    """Whether the endpoint was awake, or waking up, and has gone to sleep: it will not wake by itself."""
    was_up = before is not None and before.status != "SLEEPING"
    return was_up and seen.status == "SLEEPING" and until in {"READY", "RUNNING"}


def _body_arguments(
    parameters: Parameters, method: str, required: Mapping[str, object], options: Mapping[str, object], **path: str
) -> Arguments:
    """Validates a method's parameters and encodes them as a body with camelCase keys.

    ``path`` has the parameters of the operation's path.
    """
    given, extra, query = parameters.checked_parts(method, required, options)
    sent = {_camel(name): value for name, value in given.items()}
    return Arguments(encode_body({**sent, **extra}), query, path_parameters(**path))


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _check_seconds(timeout: object, interval: object) -> None:
    if timeout is not None and not (is_finite(timeout) and timeout > 0):
        raise ArgumentError(f"must be a number of seconds greater than 0, not {timeout!r}", "timeout")
    if not (is_finite(interval) and interval >= 0):
        raise ArgumentError(f"must be a number of seconds, at least 0, not {interval!r}", "interval")


def _unreachable_error(endpoint_id: str, seen: EndpointStatus, until: str) -> APIStatusError:
    why = f" ({seen.error_code})" if seen.error_code is not None else ""
    return APIStatusError(
        f"endpoint {endpoint_id} is {seen.status}{why} and will not be {until}",
        code=seen.error_code,
        type=seen.status,
        request_id=seen.meta.request_id,
        meta=seen.meta,
    )


def _timeout_error(endpoint_id: str, seen: EndpointStatus | None, until: str, seconds: float) -> APITimeoutError:
    state = "" if seen is None else f": it is {', '.join(filter(None, (seen.status, seen.phase)))}"
    return APITimeoutError(
        f"endpoint {endpoint_id} was not {until} within {seconds:g} s{state}",
        limit="total",
        seconds=seconds,
        sent=True,
        meta=None if seen is None else seen.meta,
    )
