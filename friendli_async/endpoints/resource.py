"""Endpoints: your own models on Friendli's hardware, from their creation to their end.

Wire: ``/dedicated/beta/endpoint...``, and ``/dedicated/endpoint/wandb-artifact-create``. Bodies are camelCase, but for
what is inside ``advanced``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack

import msgspec

from friendli_async._core.body.arguments import (
    Arguments,
    Parameters,
    encode_json,
    path_parameters,
)
from friendli_async._core.pages import PageQuery, Pages
from friendli_async._core.protocol import Operation
from friendli_async.endpoints.inputs import (
    AcceleratorRequirement,
    AdvancedConfig,
    AutoscalingPolicy,
    EndpointCreateOptions,
    EndpointListOptions,
    EndpointUpdateOptions,
    EndpointVersionOptions,
    SimplescaleConfig,
    WandbArtifactOptions,
)
from friendli_async.endpoints.replies import (
    EndpointErrorCode,
    EndpointPage,
    EndpointPhase,
    EndpointSpec,
    EndpointState,
    EndpointStatus,
    EndpointVersion,
    EndpointVersionPage,
    ListedEndpoint,
    WandbArtifactEndpoint,
)
from friendli_async.errors import APIStatusError, APITimeoutError

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "AcceleratorRequirement",
    "AdvancedConfig",
    "AutoscalingPolicy",
    "EndpointCreateOptions",
    "EndpointErrorCode",
    "EndpointListOptions",
    "EndpointPage",
    "EndpointPhase",
    "EndpointSpec",
    "EndpointState",
    "EndpointStatus",
    "EndpointUpdateOptions",
    "EndpointVersion",
    "EndpointVersionOptions",
    "EndpointVersionPage",
    "Endpoints",
    "ListedEndpoint",
    "SimplescaleConfig",
    "WandbArtifactEndpoint",
    "WandbArtifactOptions",
]

# --- what goes in --------------------------------------------------------------------------------------------------

_CHECKS: Final[dict[str, Any]] = {
    "accelerator": AcceleratorRequirement | None,
    "advanced": AdvancedConfig | None,
    "autoscaling_policy": AutoscalingPolicy | None,
    "simplescale": SimplescaleConfig | None,
}


def _parameters(options: type, required: Mapping[str, Any]) -> Parameters:
    return Parameters(options, required, {name: _CHECKS[name] for name in _CHECKS if name in options.__annotations__})


def _body(
    taken: tuple[Mapping[str, object], Mapping[str, object], str], path: Mapping[str, str] | None = None
) -> Arguments:
    """Makes what ``Parameters.take`` gives into a body whose keys are camelCase."""
    given, extra, query = taken
    sent = {_camel(name): value for name, value in given.items()}
    return Arguments(encode_json({**sent, **extra}), query, path or {})


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


_CREATE_PARAMETERS: Final = _parameters(
    EndpointCreateOptions, {"project_id": str, "name": str, "instance_option_id": str, "advanced": AdvancedConfig}
)
_UPDATE_PARAMETERS: Final = _parameters(EndpointUpdateOptions, {})
_WANDB_ARTIFACT_PARAMETERS: Final = _parameters(WandbArtifactOptions, {"wandb_artifact_version_name": str})
_LIST_QUERY: Final = PageQuery(EndpointListOptions, {}, cursor="cursor")
_VERSION_QUERY: Final = PageQuery(EndpointVersionOptions, {}, cursor="cursor")


class _NoError(msgspec.Struct):
    error: None = None


_ENDPOINT: Final = "/beta/endpoint/{endpoint_id}"
_STATUS_REPLY: Final = msgspec.json.Decoder(EndpointStatus)
_SPEC_REPLY: Final = msgspec.json.Decoder(EndpointSpec)

_CREATE: Final = Operation(method="POST", path="/beta/endpoint", reply=_STATUS_REPLY)
_DELETE: Final = Operation(
    method="DELETE",
    path=_ENDPOINT,
    # The schema promises nothing: it may be any JSON, or no body; but not an error.
    reply=msgspec.json.Decoder(_NoError | list[Any] | str | float | bool | None),
    repeatable=True,
)
_GET_SPEC: Final = Operation(method="GET", path=_ENDPOINT, reply=_SPEC_REPLY, repeatable=True)
_GET_STATUS: Final = Operation(method="GET", path=f"{_ENDPOINT}/status", reply=_STATUS_REPLY, repeatable=True)
_GET_VERSION_HISTORY: Final = Operation(
    method="GET", path=f"{_ENDPOINT}/version", reply=msgspec.json.Decoder(EndpointVersionPage), repeatable=True
)
_LIST: Final = Operation(method="GET", path="/beta/endpoint", reply=msgspec.json.Decoder(EndpointPage), repeatable=True)
_RESTART: Final = Operation(method="PUT", path=f"{_ENDPOINT}/restart", reply=_STATUS_REPLY, repeatable=True)
_SLEEP: Final = Operation(method="PUT", path=f"{_ENDPOINT}/sleep", reply=_STATUS_REPLY, repeatable=True)
_TERMINATE: Final = Operation(method="PUT", path=f"{_ENDPOINT}/terminate", reply=_STATUS_REPLY, repeatable=True)
_UPDATE: Final = Operation(method="PUT", path=_ENDPOINT, reply=_SPEC_REPLY, repeatable=True)
_WAKE: Final = Operation(method="PUT", path=f"{_ENDPOINT}/wake", reply=_STATUS_REPLY, repeatable=True)
_WANDB_ARTIFACT_CREATE: Final = Operation(
    method="POST", path="/endpoint/wandb-artifact-create", reply=msgspec.json.Decoder(WandbArtifactEndpoint)
)

# --- the resource ----------------------------------------------------------------------------------------------------

# What can still come of a state that nothing good comes of by itself.
_LEADS_TO: Final[dict[str, frozenset[str]]] = {
    "FAILED": frozenset({"STOPPING", "TERMINATING", "TERMINATED"}),
    "TERMINATING": frozenset({"TERMINATED"}),
    "TERMINATED": frozenset(),
}


class Endpoints:
    """Your endpoints: ``client.dedicated.endpoint``. For calls to their models see ``client.dedicated.chat`` etc."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call. It is not retried where it may have been accepted.
        """
        required = {
            "project_id": project_id,
            "name": name,
            "instance_option_id": instance_option_id,
            "advanced": advanced,
        }
        return await self._engine.call(_CREATE, _body(_CREATE_PARAMETERS.take("create", required, options)))

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
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call. It is not retried where it may have been accepted.
        """
        required = {"wandb_artifact_version_name": wandb_artifact_version_name}
        taken = _WANDB_ARTIFACT_PARAMETERS.take("wandb_artifact_create", required, options)
        return await self._engine.call(_WANDB_ARTIFACT_CREATE, _body(taken))

    async def update(self, endpoint_id: str, **options: Unpack[EndpointUpdateOptions]) -> EndpointSpec:
        """Changes an endpoint.

        Args:
            endpoint_id: Its id.
            options: What to change; see ``EndpointUpdateOptions``.

        Returns:
            How it is set up now.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        path = path_parameters(endpoint_id=endpoint_id)
        return await self._engine.call(_UPDATE, _body(_UPDATE_PARAMETERS.take("update", {}, options), path))

    async def delete(self, endpoint_id: str) -> None:
        """Deletes an endpoint.

        Args:
            endpoint_id: Its id.

        Raises:
            ValueError: The id is no id. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        await self._engine.call(_DELETE, _at(endpoint_id))

    def list(self, **options: Unpack[EndpointListOptions]) -> Pages[ListedEndpoint, EndpointPage]:
        """The endpoints of the team.

        Args:
            options: See ``EndpointListOptions``.

        Returns:
            The endpoints: ``async for`` goes through them all, ``pages()`` through the pages, ``await`` gives one page.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its name.
            FriendliError: Once it is used: what went wrong with a call; see ``friendli_async.errors``.
        """
        query, begin = _LIST_QUERY.encode("list", {}, options)
        return Pages(
            self._engine,
            _LIST,
            Arguments(query=query),
            cursor=_LIST_QUERY.cursor,
            begin=begin,
            items=lambda page: page.items,
            following=lambda page: page.next_cursor,
        )

    def get_version_history(
        self, endpoint_id: str, **options: Unpack[EndpointVersionOptions]
    ) -> Pages[EndpointVersion, EndpointVersionPage]:
        """The versions of an endpoint.

        Args:
            endpoint_id: Its id.
            options: See ``EndpointVersionOptions``.

        Returns:
            The versions: ``async for`` goes through them all, ``pages()`` through the pages, ``await`` gives one page.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its name.
            FriendliError: Once it is used: what went wrong with a call; see ``friendli_async.errors``.
        """
        query, begin = _VERSION_QUERY.encode("get_version_history", {}, options)
        return Pages(
            self._engine,
            _GET_VERSION_HISTORY,
            Arguments(query=query, path=path_parameters(endpoint_id=endpoint_id)),
            cursor=_VERSION_QUERY.cursor,
            begin=begin,
            items=lambda page: page.items,
            following=lambda page: page.next_cursor,
        )

    async def get_spec(self, endpoint_id: str) -> EndpointSpec:
        """How an endpoint is set up.

        Args:
            endpoint_id: Its id.

        Returns:
            Its set-up, and how many replicas it has.

        Raises:
            ValueError: The id is no id. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._engine.call(_GET_SPEC, _at(endpoint_id))

    async def get_status(self, endpoint_id: str) -> EndpointStatus:
        """What an endpoint is doing.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, and why it failed if it did.

        Raises:
            ValueError: The id is no id. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._engine.call(_GET_STATUS, _at(endpoint_id))

    async def restart(self, endpoint_id: str) -> EndpointStatus:
        """Restarts an endpoint.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, as for ``get_status``.

        Raises:
            ValueError: The id is no id. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._engine.call(_RESTART, _at(endpoint_id))

    async def sleep(self, endpoint_id: str) -> EndpointStatus:
        """Puts an endpoint to sleep; ``wake`` wakes it.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, as for ``get_status``.

        Raises:
            ValueError: The id is no id. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._engine.call(_SLEEP, _at(endpoint_id))

    async def terminate(self, endpoint_id: str) -> EndpointStatus:
        """Terminates an endpoint.

        Args:
            endpoint_id: Its id.

        Returns:
            Its status, as for ``get_status``.

        Raises:
            ValueError: The id is no id. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
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
            ValueError: A bad value. Nothing was sent.
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
            timeout: Seconds that it may take, calls included; None is no limit.
            interval: Seconds between two looks.

        Returns:
            Its status, once it is in that state.

        Raises:
            ValueError: A bad value. Nothing was sent.
            APITimeoutError: It took longer than ``timeout`` (``limit`` is "total"); or a limit of one of the calls.
            APIStatusError: It has failed or ended and cannot come to that state: ``type`` is the state that it is in,
                ``code`` the endpoint's error code, ``status_code`` 0.
            FriendliError: What else went wrong with a call; see ``friendli_async.errors``.
        """
        import asyncio  # loaded long since, by the client; but not by importing this module

        _check_seconds(timeout, interval)
        seen: EndpointStatus | None = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    seen = await self.get_status(endpoint_id)
                    if seen.status == until:
                        return seen
                    if until not in _LEADS_TO.get(seen.status, {until}):
                        raise _in_vain(endpoint_id, seen, until)
                    await asyncio.sleep(interval)
        except APITimeoutError:  # of one of the calls
            raise
        except TimeoutError:
            raise _too_late(endpoint_id, seen, until, timeout or 0.0) from None


def _at(endpoint_id: str) -> Arguments:
    return Arguments(path=path_parameters(endpoint_id=endpoint_id))


def _check_seconds(timeout: object, interval: object) -> None:
    for name, value, least in (("timeout", timeout, "more than 0"), ("interval", interval, "0 or more")):
        if name == "timeout" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: must be a number of seconds, {least}, not {value!r}")
    if timeout == 0:
        raise ValueError("timeout: must be a number of seconds, more than 0, not 0")


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
