"""Sleeping endpoints: failed calls of ``client.dedicated`` report the sleep, or wake the endpoint and are retried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from friendli_async._core.body.arguments import Arguments
from friendli_async._lazy import LazyModule
from friendli_async.endpoints.resource import POLL_INTERVAL, WAIT_TIMEOUT, Endpoints, wait_for_state
from friendli_async.errors import APIStatusError, FriendliError

if TYPE_CHECKING:
    from friendli_async._core import engine as engine_module
else:
    engine_module = LazyModule("friendli_async._core.engine")

# Statuses that may mean a sleeping endpoint. The API does not specify which one a sleeping endpoint returns.
_MAYBE_ASLEEP: Final = frozenset({400, 404, 409, 503})
# States that lead to RUNNING by themselves; the server rejects a wake request in them.
_STARTING: Final = frozenset({"AWAKING", "INITIALIZING", "UPDATING"})
_WAKE_REJECTED: Final = frozenset({400, 409})
_LOOK: Final = {"retry": None, "timeout": 5.0}


class Waker:
    """Checks whether a call failed because its endpoint sleeps, and wakes it if the client's ``wake`` is true.

    Otherwise the error message only mentions its state.
    """

    def __init__(self, engine: engine_module.Engine) -> None:
        self._engine = engine
        self._wake = engine.settings.wake

    async def __call__(self, arguments: Arguments, error: APIStatusError) -> bool:
        """Returns whether the call should be retried.

        Raises:
            FriendliError: The endpoint could not be woken.
        """
        if error.status_code not in _MAYBE_ASLEEP:
            return False
        endpoint_id = (arguments.model or "").partition(":")[0]  # ENDPOINT_ID:ADAPTER_ROUTE names an adapter
        # A state that only adds to a message is asked for once, and briefly: the caller's error must not wait for it.
        endpoints = Endpoints(self._engine if self._wake else self._engine.with_options(_LOOK))
        try:
            state = (await endpoints.get_status(endpoint_id)).status
        except (FriendliError, ValueError):  # also for an invalid id: the caller should see the error of its own call
            return False
        if state == "RUNNING":
            # It may have started since the call. With a Retry-After, leave the delay to the regular retries.
            return self._wake and error.retry_after is None
        if state != "SLEEPING" and state not in _STARTING:
            return False
        if not self._wake:
            effect = "wakes it" if state == "SLEEPING" else "waits for it"
            error._before = f"endpoint {endpoint_id} is {state} (with_options(wake=True) {effect}): "  # pyright: ignore[reportPrivateUsage]  # our own addition
            return False
        if state == "SLEEPING":
            await _wake_up(endpoints, endpoint_id)
        # The call's own total timeout may end this earlier.
        await wait_for_state(endpoints, endpoint_id, "RUNNING", WAIT_TIMEOUT, POLL_INTERVAL, may_sleep=False)
        return True


async def _wake_up(endpoints: Endpoints, endpoint_id: str) -> None:
    try:
        await endpoints.wake(endpoint_id)
    except APIStatusError as error:
        # Another call may have woken it already, and the server rejects a second wake.
        if error.status_code not in _WAKE_REJECTED:
            raise
        if (await endpoints.get_status(endpoint_id)).status == "SLEEPING":
            raise
