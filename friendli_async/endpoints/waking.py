"""Sleeping endpoints: failed calls of ``client.dedicated`` report the sleep, or wake the endpoint and are retried."""

from __future__ import annotations

from typing import Final

from friendli_async._core.body.arguments import Arguments
from friendli_async.endpoints.resource import POLL_INTERVAL, WAIT_TIMEOUT, Endpoints, wait_for_state
from friendli_async.errors import APIStatusError, FriendliError

__all__ = ["Waker"]

# Statuses that may mean a sleeping endpoint. The API does not specify which one a sleeping endpoint returns.
_MAYBE_ASLEEP: Final = frozenset({400, 404, 409, 503})
# States that lead to RUNNING by themselves; the server rejects a wake request in them.
_STARTING: Final = frozenset({"AWAKING", "INITIALIZING", "UPDATING"})
_WAKE_REJECTED: Final = frozenset({400, 409})


class Waker:
    """Checks whether a call failed because its endpoint sleeps, and wakes it if ``wake`` is true.

    Otherwise the error message only mentions its state.
    """

    def __init__(self, endpoints: Endpoints, *, wake: bool) -> None:
        self._endpoints = endpoints
        self._wake = wake

    async def __call__(self, arguments: Arguments, error: APIStatusError) -> bool:
        """Returns whether the call should be retried.

        Raises:
            FriendliError: The endpoint could not be woken.
        """
        endpoint_id = (arguments.model or "").partition(":")[0]  # ENDPOINT_ID:ADAPTER_ROUTE names an adapter
        if not endpoint_id or error.status_code not in _MAYBE_ASLEEP:
            return False
        try:
            state = (await self._endpoints.get_status(endpoint_id)).status
        except (FriendliError, ValueError):  # also for an invalid id: the caller should see the error of its own call
            return False
        if state == "RUNNING":
            # It may have started since the call. With a Retry-After, leave the delay to the regular retries.
            return self._wake and error.retry_after is None
        if state != "SLEEPING" and state not in _STARTING:
            return False
        if not self._wake:
            effect = "wakes it" if state == "SLEEPING" else "waits for it"
            error.message = f"endpoint {endpoint_id} is {state} (with_options(wake=True) {effect}): {error.message}"
            return False
        if state == "SLEEPING":
            await self._wake_up(endpoint_id)
        # The call's own total timeout may end this earlier.
        await wait_for_state(self._endpoints, endpoint_id, "RUNNING", WAIT_TIMEOUT, POLL_INTERVAL, may_sleep=False)
        return True

    async def _wake_up(self, endpoint_id: str) -> None:
        try:
            await self._endpoints.wake(endpoint_id)
        except APIStatusError as error:
            # Another call may have woken it already, and the server rejects a second wake.
            if error.status_code not in _WAKE_REJECTED:
                raise
            if (await self._endpoints.get_status(endpoint_id)).status == "SLEEPING":
                raise
