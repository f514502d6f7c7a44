"""Sleeping endpoints: calls of ``client.dedicated`` that fail because of it say so, or wake the endpoint and go on."""

from __future__ import annotations

from typing import Final

import msgspec

from friendli_async._core.body.arguments import Arguments
from friendli_async.endpoints.resource import Endpoints, awaited
from friendli_async.errors import APIStatusError, FriendliError

__all__ = ["Waker"]

# What can mean that it sleeps. The wire does not tell which of them a sleeping endpoint answers with.
_PERHAPS_ASLEEP: Final = frozenset({400, 404, 409, 503})
# On its way to run by itself: to wake it would be refused.
_COMING: Final = frozenset({"AWAKING", "INITIALIZING", "UPDATING"})
# As ``Endpoints.wait`` waits by itself, seconds.
_LONGEST: Final = 1800.0
_INTERVAL: Final = 5.0
_REFUSED: Final = frozenset({400, 409})


class _Call(msgspec.Struct):
    model: str


_call: Final = msgspec.json.Decoder(_Call)


class Waker:
    """Looks whether a call failed because its endpoint sleeps, and wakes it where the client is to.

    Args:
        endpoints: The endpoints.
        wake: Whether to wake it, rather than only to say that it sleeps.
    """

    def __init__(self, endpoints: Endpoints, *, wake: bool) -> None:
        self._endpoints = endpoints
        self._wake = wake

    async def __call__(self, arguments: Arguments, error: APIStatusError) -> bool:
        """Says whether the call is worth another attempt.

        Raises:
            FriendliError: The endpoint could not be woken.
        """
        endpoint_id = _endpoint_of(arguments)
        if endpoint_id is None or error.status_code not in _PERHAPS_ASLEEP:
            return False
        try:
            state = (await self._endpoints.get_status(endpoint_id)).status
        except FriendliError:  # whatever it is, the call's own error is the one to tell
            return False
        if state == "RUNNING":
            # It may have come up between the call and the look. Where the server names a time, the retries keep it.
            return self._wake and error.retry_after is None
        if state != "SLEEPING" and state not in _COMING:
            return False
        if not self._wake:
            does = "wakes it" if state == "SLEEPING" else "waits for it"
            error.message = f"endpoint {endpoint_id} is {state} (with_options(wake=True) {does}): {error.message}"
            return False
        if state == "SLEEPING":
            await self._wake_up(endpoint_id)
        # A total of the call's own ends it earlier.
        await awaited(self._endpoints, endpoint_id, "RUNNING", _LONGEST, _INTERVAL, may_sleep=False)
        return True

    async def _wake_up(self, endpoint_id: str) -> None:
        try:
            await self._endpoints.wake(endpoint_id)
        except APIStatusError as refusal:
            # Another call may have woken it meanwhile, and a second wake is refused.
            if refusal.status_code not in _REFUSED:
                raise
            if (await self._endpoints.get_status(endpoint_id)).status == "SLEEPING":
                raise


def _endpoint_of(arguments: Arguments) -> str | None:
    """The endpoint that a call goes to, if it names one; ``ENDPOINT_ID:ADAPTER_ROUTE`` names an adapter of it."""
    if not isinstance(arguments.body, bytes):
        return None
    try:
        return _call.decode(arguments.body).model.partition(":")[0] or None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
