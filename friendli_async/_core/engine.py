"""What the APIs call: an engine makes the plain calls of a deployment, and opens its streams."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

from friendli_async._core.body.arguments import Arguments, model_of
from friendli_async._core.call import Call, Recovery, Sink
from friendli_async._core.events.reader import Collector
from friendli_async._core.events.stream import OpenStream, Outcome, StreamState
from friendli_async._core.held import Held, reject_stop_iteration
from friendli_async._core.loops import running_loop, wait_done, wait_ended
from friendli_async._core.net.clock import CallClock, ReadClock
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.protocol import Deployment, Operation, RequestBuilder
from friendli_async._core.reporting import RunReporter
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async._core.work import Work
from friendli_async._locks import cached_property
from friendli_async.errors import ConfigurationError, FriendliError, StreamInterruptedError
from friendli_async.options import is_count

T = TypeVar("T")
E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")


class Engine:
    """Makes the calls of one deployment with one set of settings, on the client's runtime."""

    def __init__(
        self, runtime: Runtime, settings: Settings, deployment: Deployment, recover: Recovery | None = None
    ) -> None:
        self.runtime = runtime
        self.settings = settings
        self.deployment = deployment
        self.recover = recover

    @cached_property
    def request_builder(self) -> RequestBuilder:
        """Builds the requests. Created lazily: a copy of a client has every engine, but uses only one."""
        return RequestBuilder(self.settings, self.deployment)

    def billed_team(self, operation: Operation[Any]) -> str | None:
        """Returns the team that a call of the operation is billed to, if the client names one."""
        return None if self.deployment.container or not operation.team else self.settings.team

    def with_options(self, options: Mapping[str, object]) -> Engine:
        """Returns an engine for the same deployment with these options; see ``Settings.with_changes``."""
        return Engine(self.runtime, self.settings.with_changes(options), self.deployment, self.recover)

    def with_recovery(self, recover: Recovery) -> Engine:
        """Returns a copy that tries ``recover`` after an error response."""
        return Engine(self.runtime, self.settings, self.deployment, recover)

    def __reduce__(self) -> NoReturn:  # copying any part of a client ends up here
        raise TypeError("the parts of a client hold connections and a token, so they cannot be pickled or copied")

    async def call(self, operation: Operation[T], arguments: Arguments) -> T:
        """Makes a plain call and returns the decoded reply.

        Raises:
            FriendliError: See ``friendli_async.errors``.
        """
        call = Call(self, operation, arguments, "json")
        return await call.run(call.read_reply)

    def opening(
        self,
        operation: Operation[Any],
        arguments: Arguments,
        make_collector: Callable[[], Collector[E, R, U]],
        run_reporter: RunReporter | None = None,
    ) -> StreamOpening[E, R, U]:
        """Returns the opening of an EventStream.

        ``make_collector`` creates a new collector for each attempt. ``run_reporter`` reports the run that the
        stream is a turn of, if there is one.
        """
        return StreamOpening(self, Call(self, operation, arguments, "events", run_reporter), make_collector)

    def run_reporter(self, operation: Operation[Any], required: Mapping[str, object]) -> RunReporter:
        """Returns a reporter for a new run that calls the operation with these arguments."""
        deployment, team = self.deployment.name, self.billed_team(operation)
        return RunReporter(self.settings.observers, deployment=deployment, model=model_of(required), team=team)

    async def receive(self, operation: Operation[Any], arguments: Arguments, sink: Sink | None = None) -> None:
        """Makes a call whose response body is not JSON, and passes the body to ``sink``, or discards it.

        Raises:
            FriendliError: See ``friendli_async.errors``.
        """
        call = Call(self, operation, arguments, "bytes")
        await call.run(lambda exchange: call.read_into(exchange, sink))

    async def warm_up(self, connections: int) -> None:
        """Opens connections and leaves them in the pool; see ``AsyncFriendli.warm_up``."""
        most = self.runtime.max_connections
        if not is_count(connections) or connections > most:
            raise ConfigurationError(f"warm_up() opens 1 to {most} connections (max_connections), not {connections!r}")
        running_loop()  # without one nothing begins
        tasks = [asyncio.create_task(self._open_connection()) for _ in range(connections)]
        try:
            await wait_done(tasks)  # not ``gather``, after whose CancelledError a cancel scope of anyio may not end
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await wait_ended(tasks)
            raise
        failures = [failure for task in tasks if (failure := task.result()) is not None]
        if failures:
            raise failures[0].take()

    async def _open_connection(self) -> Held[FriendliError] | None:
        """Opens a connection, or returns the error."""
        try:
            self.runtime.check()
            with CallClock(self.settings.timeout, asyncio.get_running_loop()) as clock:
                dial = DialContext(clock, warming=True)
                await self.runtime.transport.warm(self.request_builder.base, dial)
        except FriendliError as error:
            return Held(error)
        return None


class StreamOpening(Generic[E, R, U]):
    """Opens one stream; ``EventStream`` holds it.

    Attributes:
        state: The state of the stream, also after it was opened.
        make_collector: Creates a new collector of the stream's events.
    """

    def __init__(self, engine: Engine, call: Call[Any], make_collector: Callable[[], Collector[E, R, U]]) -> None:
        self._engine = engine  # keeps the client open while the stream exists
        self._call = call  # until the stream is open
        self.state: StreamState = StreamState()
        self.make_collector = make_collector

    async def open(self) -> OpenStream[E, R, U]:
        """Opens the stream, and returns it once its first event has arrived.

        Raises:
            FriendliError: No attempt received an event.
            Exception: What ``Call.run`` raises.
        """
        running_loop()  # without one nothing begins, and only this read fails
        call = self._call
        try:
            exchange, reader, collector, kept = await call.run(
                lambda exchange: call.read_first_event(exchange, self.make_collector())
            )
        except BaseException as error:
            self._fail(error)
            reject_stop_iteration(error)
            raise
        clock = ReadClock(self._engine.settings.timeout, call.clock.total_at, call.loop, exchange.abort_with)
        del self._call  # releases the request body
        return OpenStream(
            self.state, exchange, reader, collector, clock, call.meta(), call.stopwatch, call.reporter, kept, call.token
        )

    def _fail(self, error: BaseException) -> None:
        """Ends the stream with what ``open`` raises; observers were told the same."""
        state, call = self.state, self._call
        was_stopped = state.outcome != "open"
        if not was_stopped:
            state.outcome = call.outcome_of(error)
        if isinstance(error, FriendliError):
            state.error = copy.copy(error)
        elif not was_stopped:
            what = f"failed with {type(error).__name__}" if isinstance(error, Exception) else "was cancelled"
            message = f"the opening of the stream {what}"
            state.error = StreamInterruptedError(message, sent=call.may_have_been_sent, meta=call.meta())

    def stop(self, reason: str, outcome: Outcome, *, waited_for: bool) -> None:
        """Ends the stream before it was opened, like ``OpenStream.stop``; an ``open`` in progress raises an error."""
        state = self.state
        if state.outcome != "open":
            return
        state.error = error = StreamInterruptedError(f"{reason} before it was opened", sent=waited_for)
        if waited_for:
            self._call.interrupt(StreamInterruptedError(reason), outcome)
            outcome = self._call.outcome_of(error)  # of the first interruption
        state.outcome = outcome

    def include_in(self, work: Work) -> None:
        """Makes the stream, which is open, a part of some work, for which a drain of the client waits."""
        work.begin(self._engine.runtime.works, asyncio.get_running_loop())
