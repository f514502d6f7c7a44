"""Endpoints: your own models on Friendli's hardware, from their creation to their end.

Wire: ``/dedicated/beta/endpoint...``, and ``/dedicated/endpoint/wandb-artifact-create``. Bodies are camelCase, but for
what is inside ``advanced``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Unpack

from friendli_async._core.body.arguments import Arguments, path_parameters
from friendli_async._core.pages import Listing, Pages
from friendli_async._core.resource import ANYTHING, Resource, operation
from friendli_async.endpoints.inputs import (
    CREATED,
    UPDATED,
    WANDB_ARTIFACT,
    AdvancedConfig,
    EndpointCreateOptions,
    EndpointListOptions,
    EndpointUpdateOptions,
    EndpointVersionOptions,
    WandbArtifactOptions,
    arguments_of,
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

__all__ = ["Endpoints"]


_ENDPOINT: Final = "/beta/endpoint/{endpoint_id}"

_CREATE: Final = operation("endpoint.create", "POST /beta/endpoint", EndpointStatus)
_DELETE: Final = operation("endpoint.delete", f"DELETE {_ENDPOINT}", ANYTHING, repeatable=True)
_GET_SPEC: Final = operation("endpoint.get_spec", f"GET {_ENDPOINT}", EndpointSpec, repeatable=True)
_GET_STATUS: Final = operation("endpoint.get_status", f"GET {_ENDPOINT}/status", EndpointStatus, repeatable=True)
_VERSIONS: Final = Listing(
    operation("endpoint.get_version_history", f"GET {_ENDPOINT}/version", EndpointVersionPage, repeatable=True),
    EndpointVersionOptions,
    cursor="cursor",
    items=lambda page: page.items,
    following=lambda page: page.next_cursor,
)
_LIST: Final = Listing(
    operation("endpoint.list", "GET /beta/endpoint", EndpointPage, repeatable=True),
    EndpointListOptions,
    cursor="cursor",
    items=lambda page: page.items,
    following=lambda page: page.next_cursor,
)
_RESTART: Final = operation("endpoint.restart", f"PUT {_ENDPOINT}/restart", EndpointStatus, repeatable=True)
_SLEEP: Final = operation("endpoint.sleep", f"PUT {_ENDPOINT}/sleep", EndpointStatus, repeatable=True)
_TERMINATE: Final = operation("endpoint.terminate", f"PUT {_ENDPOINT}/terminate", EndpointStatus, repeatable=True)
_UPDATE: Final = operation("endpoint.update", f"PUT {_ENDPOINT}", EndpointSpec, repeatable=True)
_WAKE: Final = operation("endpoint.wake", f"PUT {_ENDPOINT}/wake", EndpointStatus, repeatable=True)
_WANDB_ARTIFACT_CREATE: Final = operation(
    "endpoint.wandb_artifact_create", "POST /endpoint/wandb-artifact-create", WandbArtifactEndpoint
)

# --- the resource ----------------------------------------------------------------------------------------------------

# What can still come of a state that nothing good comes of by itself.
_LEADS_TO: Final[dict[str, frozenset[str]]] = {
    "FAILED": frozenset({"STOPPING", "TERMINATING", "TERMINATED"}),
    "TERMINATING": frozenset({"TERMINATED"}),
    "TERMINATED": frozenset(),
}


class Endpoints(Resource):
    """Your endpoints: ``client.dedicated.endpoint``. For calls to their models see ``client.dedicated.chat`` etc.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path; an id that is none. Nothing was sent.
        FriendliError: What went wrong with a call (of a list, once it is used); see ``friendli_async.errors``.
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
        """Creates an endpoint. The reply does not name its id: ``list`` does.

        Args:
            project_id: Project that it belongs to.
            name: Its name.
            instance_option_id: Id of the hardware to run on.
            advanced: How its engine works; at least ``tokenizer_skip_special_tokens`` and
                ``tokenizer_add_special_tokens``.
            options: See ``EndpointCreateOptions``.

        Returns:
            What it is doing.

        Raises:
            FriendliError: What went wrong with the call. It is not retried where it may have been accepted.
        """
        named = {"project_id": project_id, "name": name, "instance_option_id": instance_option_id}
        arguments = arguments_of(CREATED, "create", {**named, "advanced": advanced}, options)
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
            FriendliError: What went wrong with the call. It is not retried where it may have been accepted.
        """
        required = {"wandb_artifact_version_name": wandb_artifact_version_name}
        arguments = arguments_of(WANDB_ARTIFACT, "wandb_artifact_create", required, options)
        return await self._engine.call(_WANDB_ARTIFACT_CREATE, arguments)

    async def update(self, endpoint_id: str, **options: Unpack[EndpointUpdateOptions]) -> EndpointSpec:
        """Changes an endpoint.

        Args:
            endpoint_id: Its id.
            options: What to change; see ``EndpointUpdateOptions``.

        Returns:
            How it is set up now.
        """
        path = path_parameters(endpoint_id=endpoint_id)
        return await self._engine.call(_UPDATE, arguments_of(UPDATED, "update", {}, options, path))

    async def delete(self, endpoint_id: str) -> None:
        """Deletes an endpoint.

        Args:
            endpoint_id: Its id.
        """
        await self._engine.call(_DELETE, _at(endpoint_id))

    def list(self, **options: Unpack[EndpointListOptions]) -> Pages[ListedEndpoint, EndpointPage]:
        """The endpoints of the team.

        Args:
            options: See ``EndpointListOptions``.

        Returns:
            The endpoints: ``async for`` goes through them all, ``pages()`` through the pages, ``await`` gives one page.
        """
        return _LIST.of(self._engine, {}, options)

    def get_version_history(
        self, endpoint_id: str, **options: Unpack[EndpointVersionOptions]
    ) -> Pages[EndpointVersion, EndpointVersionPage]:
        """The versions of an endpoint.

        Args:
            endpoint_id: Its id.
            options: See ``EndpointVersionOptions``.

        Returns:
            The versions: ``async for`` goes through them all, ``pages()`` through the pages, ``await`` gives one page.
        """
        return _VERSIONS.of(self._engine, {}, options, path_parameters(endpoint_id=endpoint_id))

    async def get_spec(self, endpoint_id: str) -> EndpointSpec:
        """How an endpoint is set up.

        Args:
            endpoint_id: Its id.

        Returns:
            Its set-up, and how many replicas it has.
        """
        return await self._engine.call(_GET_SPEC, _at(endpoint_id))

    async def get_status(self, endpoint_id: str) -> EndpointStatus:
        """What an endpoint is doing.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, and why it failed if it did.
        """
        return await self._engine.call(_GET_STATUS, _at(endpoint_id))

    async def restart(self, endpoint_id: str) -> EndpointStatus:
        """Restarts an endpoint.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, as for ``get_status``.
        """
        return await self._engine.call(_RESTART, _at(endpoint_id))

    async def sleep(self, endpoint_id: str) -> EndpointStatus:
        """Puts an endpoint to sleep; ``wake`` wakes it.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, as for ``get_status``.
        """
        return await self._engine.call(_SLEEP, _at(endpoint_id))

    async def terminate(self, endpoint_id: str) -> EndpointStatus:
        """Terminates an endpoint.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, as for ``get_status``.
        """
        return await self._engine.call(_TERMINATE, _at(endpoint_id))

    async def wake(
        self, endpoint_id: str, *, wait: bool = False, timeout: float | None = 1800.0, interval: float = 5.0
    ) -> EndpointStatus:
        """Wakes a sleeping endpoint.

        Args:
            endpoint_id: Its id.
            wait: Whether to wait until it runs, as ``wait(endpoint_id)`` does.
            timeout: Seconds that the waiting may take, as for ``wait``.
            interval: Seconds between two looks, as for ``wait``.

        Returns:
            Its status: that of the moment, or, with ``wait``, the one that says that it runs.

        Raises:
            FriendliError: What went wrong with the call, or with the waiting.
        """
        _check_seconds(timeout, interval)
        status = await self._engine.call(_WAKE, _at(endpoint_id))
        return await self.wait(endpoint_id, timeout=timeout, interval=interval) if wait else status

    async def wait(
        self,
        endpoint_id: str,
        *,
        until: EndpointState = "RUNNING",
        timeout: float | None = 1800.0,
        interval: float = 5.0,
    ) -> EndpointStatus:
        """Waits until an endpoint is in a state. It only looks: a sleeping one sleeps on until ``wake``.

        Args:
            endpoint_id: Its id.
            until: The state to wait for.
            timeout: Seconds that it may take, calls included; None is no limit: then an endpoint that goes back to
                sleep is an error, and in a state that never changes it waits for ever.
            interval: Seconds between two looks.

        Returns:
            Its status, once it is in that state.

        Raises:
            APITimeoutError: It took longer than ``timeout`` (``limit`` is "total"); or a limit of one of the calls.
            APIStatusError: It has failed, ended, or (without a limit) gone back to sleep, and does not come to it:
                ``type`` is the state that it is in, ``code`` the endpoint's error code, ``status_code`` 0.
        """
        _check_seconds(timeout, interval)
        return await awaited(self, endpoint_id, until, timeout, interval, may_sleep=timeout is not None)


async def awaited(
    endpoints: Endpoints, endpoint_id: str, until: str, timeout: float | None, interval: float, *, may_sleep: bool
) -> EndpointStatus:
    """The status of an endpoint that has come to a state; see ``Endpoints.wait``.

    Args:
        endpoints: The endpoints.
        endpoint_id: Its id.
        until: The state.
        timeout: Seconds that it may take.
        interval: Seconds between two looks.
        may_sleep: Whether it may go to sleep meanwhile.
    """
    import asyncio  # loaded long since, by the client; but not by importing this module

    seen: EndpointStatus | None = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                before, seen = seen, await endpoints.get_status(endpoint_id)
                if seen.status == until:
                    return seen
                endless = not may_sleep and _fell_asleep(before, seen, until)
                if endless or until not in _LEADS_TO.get(seen.status, {until}):
                    raise _in_vain(endpoint_id, seen, until)
                await asyncio.sleep(interval)
    except APITimeoutError:  # of one of the calls
        raise
    except TimeoutError:
        raise _too_late(endpoint_id, seen, until, timeout or 0.0) from None


def _fell_asleep(before: EndpointStatus | None, seen: EndpointStatus, until: str) -> bool:
    """Whether it was awake, or about to be, and has gone to sleep: nothing wakes it by itself."""
    was_up = before is not None and before.status != "SLEEPING"
    return was_up and seen.status == "SLEEPING" and until in {"READY", "RUNNING"}


def _at(endpoint_id: str) -> Arguments:
    return Arguments(path=path_parameters(endpoint_id=endpoint_id))


def _check_seconds(timeout: object, interval: object) -> None:
    if timeout is not None and not (_is_seconds(timeout) and timeout):
        raise ArgumentError(f"timeout: must be a number of seconds, more than 0, not {timeout!r}")
    if not _is_seconds(interval):
        raise ArgumentError(f"interval: must be a number of seconds, 0 or more, not {interval!r}")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _in_vain(endpoint_id: str, seen: EndpointStatus, until: str) -> APIStatusError:
    why = f" ({seen.error_code})" if seen.error_code is not None else ""
    return APIStatusError(
        f"endpoint {endpoint_id} is {seen.status}{why} and will not be {until}",
        code=seen.error_code,
        type=seen.status,
        request_id=seen.meta.request_id,
        meta=seen.meta,
    )


def _too_late(endpoint_id: str, seen: EndpointStatus | None, until: str, seconds: float) -> APITimeoutError:
    state = "" if seen is None else f": it is {', '.join(filter(None, (seen.status, seen.phase)))}"
    return APITimeoutError(
        f"endpoint {endpoint_id} was not {until} within {seconds:g} s{state}",
        limit="total",
        seconds=seconds,
        sent=True,
        meta=None if seen is None else seen.meta,
    )
