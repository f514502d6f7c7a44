"""One call: build the request, attempt, judge, wait, and again. The only place where all parts of the machine meet."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

import msgspec

from friendli_async._core.body.arguments import Arguments
from friendli_async._core.body.forms import Form
from friendli_async._core.events.decoding import decode_reply
from friendli_async._core.events.reader import Collector, EventReader
from friendli_async._core.events.stream import OpenStream, Outcome
from friendli_async._core.held import Held
from friendli_async._core.net.clock import CallClock, ReadClock
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.net.exchange import Exchange
from friendli_async._core.observers import (
    AttemptEnded,
    AttemptStarted,
    CallReporter,
    CallStarted,
    Connected,
    FirstEvent,
    parameters_of,
)
from friendli_async._core.pacing import LimitScope, jitter
from friendli_async._core.protocol import Accept, Deployment, Operation, Request, RequestBuilder
from friendli_async._core.retry import REFUSED, Retries, may_repeat
from friendli_async._core.runtime import Runtime
from friendli_async._core.settings import Settings
from friendli_async._core.status_errors import excerpt, status_error, unframed
from friendli_async._core.timing import Stopwatch
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    ConfigurationError,
    FriendliError,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async.replies import Attempt, Headers, Meta, attach_meta, keep_raw, usage_of

__all__ = ["Call", "Engine", "Recovery", "Sink", "StreamOpening"]

T = TypeVar("T")
E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")

_logger: Final = logging.getLogger("friendli_async")
# The status is known by then: its words must not keep the caller, or the place in the pool, for long.
_ERROR_BODY_SECONDS: Final = 5.0
# Servers that do not name their streams properly are let through; of others the first bytes are looked at.
_STREAM_TYPES: Final = frozenset({"text/event-stream", "text/plain", "application/octet-stream", ""})
_NO_HEADERS: Final = Headers()
_BEFORE_A_STREAM: Final = b"\xef\xbb\xbf\r\n"
_STREAM_BEGINNINGS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")

Recovery = Callable[[Arguments, APIStatusError], Awaitable[bool]]
"""Mends what made the server say no to a call; says whether another attempt is worth it."""


class Sink(Protocol):
    """Takes a reply's bytes as they come."""

    async def begin(self, size: int | None) -> None:
        """A reply of that many bytes, if it says so, begins; what came of an earlier attempt is void."""
        ...

    async def write(self, data: bytes) -> None:
        """Takes the next bytes."""
        ...


class Engine:
    """Makes the calls of one deployment, with one set of settings, over the client's runtime."""

    def __init__(
        self, runtime: Runtime, settings: Settings, deployment: Deployment, recover: Recovery | None = None
    ) -> None:
        self.runtime = runtime
        self.settings = settings
        self.deployment = deployment
        self.recover = recover

    @cached_property
    def request_builder(self) -> RequestBuilder:
        """What its requests have in common. Made on first use: a copy of a client has all engines, and uses one."""
        return RequestBuilder(self.settings, self.deployment)

    def replace(self, **changes: object) -> Engine:
        """The same deployment with other settings."""
        return Engine(self.runtime, msgspec.structs.replace(self.settings, **changes), self.deployment, self.recover)

    def recovering(self, recover: Recovery) -> Engine:
        """The same with a way to mend what made the server say no."""
        return Engine(self.runtime, self.settings, self.deployment, recover)

    def __reduce__(self) -> NoReturn:  # whatever is copied of a client leads here
        raise TypeError("what a client is made of holds connections and a token, so it cannot be pickled or copied")

    async def call(self, operation: Operation[T], arguments: Arguments) -> T:
        """Makes a plain call and returns the decoded reply.

        Raises:
            FriendliError: See the error tree.
        """
        call = Call(self, operation, arguments, "json")
        reply = await call.run(call.read_reply)
        attach_meta(reply, call.meta())
        return reply

    def opening(
        self, operation: Operation[Any], arguments: Arguments, collector: Callable[[], Collector[E, R, U]]
    ) -> StreamOpening[E, R, U]:
        """What an EventStream needs to open itself; ``collector`` makes a new one for each attempt."""
        return StreamOpening(self, operation, arguments, collector)

    async def receive(self, operation: Operation[Any], arguments: Arguments, sink: Sink | None = None) -> None:
        """Makes a call whose reply is not JSON.

        Args:
            operation: The operation; its decoder is not used.
            arguments: What it sends, and where to.
            sink: Takes the reply's bytes as they come; None where nobody wants to know what it says.

        Raises:
            FriendliError: See the error tree.
        """
        call = Call(self, operation, arguments, "bytes")
        await call.run(lambda exchange: call.read_into(exchange, sink))

    async def warm_up(self, connections: int) -> None:
        """Opens connections and leaves them in the pool; see ``AsyncFriendli.warm_up``."""
        most = self.runtime.max_connections
        given: object = connections
        if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= most:
            raise ConfigurationError(f"warm_up() opens 1 to {most} connections (max_connections), not {connections!r}")
        opened = await asyncio.gather(*(self._warm() for _ in range(connections)), return_exceptions=True)
        for failure in opened:
            if failure is not None:
                raise failure

    async def _warm(self) -> None:
        self.runtime.check()
        try:
            with CallClock(self.settings.timeouts, asyncio.get_running_loop()) as clock:
                dial = DialContext(clock, fresh=True, warming=True)
                await self.runtime.transport.warm(self.request_builder.base or "/", dial)
        finally:
            self.runtime.changed()


class Call(Generic[T]):
    """One call through all its attempts.

    Args:
        engine: What makes it.
        operation: What is asked for.
        arguments: What is sent with it.
        accept: What the reply may be.
        stream: Whether the reply is a stream: the call goes on after ``run``, and ends with the stream.
    """

    loop: asyncio.AbstractEventLoop
    clock: CallClock
    stopwatch: Stopwatch

    def __init__(
        self, engine: Engine, operation: Operation[T], arguments: Arguments, accept: Accept, *, stream: bool = False
    ) -> None:
        self.reporter: CallReporter | None = None
        self._engine = engine
        self._operation = operation
        self._arguments = arguments
        self._accept: Accept = accept
        self._stream = stream
        self._begun = False
        self._interruption: FriendliError | None = None
        self._interrupted_as: Outcome | None = None
        self._attempts: list[Attempt] = []
        self._status: int | None = None
        self._headers = _NO_HEADERS
        self._elapsed = 0.0
        self._accepted = False  # an earlier attempt may have been accepted: ``sent`` of the last error says so
        self._answered = False  # a plain reply has begun
        self._replaced = False  # a dead pooled connection has been replaced: once is enough
        self._recovered = False

    # --- the loop ------------------------------------------------------------------------------------------------

    async def run(self, read: Callable[[Exchange], Awaitable[R]]) -> R:
        """Builds, attempts, stop_conditions, waits, and again, until ``read`` has got what it wanted of a good reply.

        Args:
            read: Reads the reply of an attempt whose status is a good one.

        Returns:
            What ``read`` returned.

        Raises:
            FriendliError: The last attempt's error.
            Exception: What a token callable, or the source of a body, raised.
        """
        self._begin()
        runtime, retries = self._engine.runtime, None
        read_from: Exchange | None = None
        try:
            if runtime.pace.holds:
                await self._held_back()
            while True:
                began, dial = self._attempt_begins()
                try:
                    try:
                        with self.clock:
                            exchange = await runtime.transport.send(await self._request(), dial)
                            self._status, self._headers = exchange.status, exchange.headers
                            if not 200 <= exchange.status < 300:
                                raise await self._refusal(exchange)
                            result = await read(exchange)
                            read_from = exchange
                    finally:
                        self._delivered(dial)
                except FriendliError as error:
                    failed = Held(self._judged(error, began))
                else:
                    self._attempt_ended(began, None)
                    self._ended_well(result)
                    return result

                if await self._mended(failed):
                    continue
                if retries is None:
                    retries = Retries(self._engine.settings.retry, self.clock.time_left)
                wait = self._wait_after(failed, retries)
                self._attempt_judged(wait, failed.error)
                if wait is None:
                    raise failed.take()
                self._tell_of_retry(failed, wait)
                del failed  # with its traceback, which would keep the caller's frames
                await self._sleep(wait)
        except BaseException as error:
            if read_from is not None:  # an observer may raise KeyboardInterrupt when all has gone well
                read_from.abort()
            self._ended_badly(error)
            raise
        finally:
            runtime.end(self)

    def interrupt(self, error: FriendliError, outcome: Outcome | None = None) -> None:
        """Makes the call raise this error, at the loop's next turn: the first, whatever else goes wrong by then.

        A stream that is being opened ends with its client as an open one does: cancelled, by StreamInterruptedError.

        Args:
            error: The error.
            outcome: How the call has ended then; None for what the error says.
        """
        if self._interruption is not None:
            return
        if self._stream and outcome is None:
            error, outcome = StreamInterruptedError(str(error)), "cancelled"
        self._interruption = error
        self._interrupted_as = outcome
        if self._begun:  # else it is handed to the clock when the call begins
            self.clock.interrupt(error)

    @property
    def interrupted(self) -> bool:
        """Whether it has been told to end."""
        return self._interruption is not None

    def meta(self) -> Meta:
        """How the call came about so far."""
        return Meta(
            status=self._status,
            headers=self._headers,
            attempts=tuple(self._attempts),
            elapsed=self._elapsed,
            timing=self.stopwatch.timing(None),
        )

    # --- its steps -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        engine = self._engine
        self.loop = asyncio.get_running_loop()
        self.clock = CallClock(engine.settings.timeouts, self.loop)
        self.stopwatch = Stopwatch(self.clock.now)
        self._begun = True
        if self._interruption is not None:
            self.clock.interrupt(self._interruption)
        if engine.settings.observers is not None:
            group = self._operation.name.rpartition(".")[0]
            body = self._arguments.body
            self.reporter = CallReporter(
                engine.settings.observers,
                body if isinstance(body, bytes) else None,
                operation=f"{group}.stream" if self._stream else self._operation.name,
                deployment=engine.deployment.name,
                model=self._arguments.model,
                team=None if engine.deployment.container or not self._operation.team else engine.settings.team,
            )
            address, port = engine.request_builder.address
            asked = parameters_of(body)
            self.reporter.report(
                "call_started", CallStarted, server_address=address, server_port=port, parameters=asked
            )
        try:
            engine.runtime.begin(self)
        except FriendliError as error:
            self._ended_badly(error)
            raise

    def _attempt_begins(self) -> tuple[float, DialContext]:
        self._status, self._headers, self._answered = None, _NO_HEADERS, False
        self.clock.sent = False
        dial = DialContext(self.clock, fresh=self._replaced)
        reporter = self.reporter
        if reporter is not None:
            reporter.attempt += 1
            reporter.attempting = True
            reporter.report("attempt_started", AttemptStarted)
            dial.on_connect = lambda: reporter.report(
                "connected",
                Connected,
                reused=dial.reused,
                queued=dial.queued,
                connecting=dial.connecting,
            )
        return self.clock.now(), dial

    async def _request(self) -> Request:
        """Makes the attempt's request, for which a token, or the size of a file, may have to be asked for.

        Raises:
            ConfigurationError: There is no token, or it is unusable.
            OSError: A file that is to be sent is not there.
        """
        engine, body = self._engine, self._arguments.body
        builder = engine.request_builder
        authorization = await engine.settings.authorization() if builder.asks_for_token else builder.authorization
        framing = await body.headers() if isinstance(body, Form) else None
        return builder.build(self._operation, self._arguments, self._accept, authorization, framing)

    def _delivered(self, dial: DialContext) -> None:
        self._replaced = dial.fresh
        self.stopwatch.queued += dial.queued
        self.stopwatch.connecting += dial.connecting
        dial.queued = dial.connecting = 0.0
        dial.on_connect = None

    async def _refusal(self, exchange: Exchange) -> APIStatusError:
        """The error of a status that is no good one."""
        try:
            body = await exchange.read_some(self._engine.settings.limits.error, _ERROR_BODY_SECONDS)
        except BaseException:
            exchange.abort()
            raise
        return status_error(exchange.status, exchange.headers, body)

    def _judged(self, error: FriendliError, began: float) -> FriendliError:
        """Takes note of a failed attempt, and completes its error."""
        error.__context__ = None  # a cancelled request of aiohttp's, whose frames hold the headers
        if self._interruption is not None:  # what it led to, in the queue or on the wire, varies with the moment
            error = copy.copy(self._interruption)
            if isinstance(error, APIConnectionError):
                error.sent = self.clock.sent
        if isinstance(error, ConfigurationError):
            if not self._accepted:  # this attempt sent nothing
                error.meta = self.meta() if self._attempts else None
                return error
            error = APIConnectionError(str(error), sent=True)
        self._accepted = self._accepted or _may_have_been_accepted(error)
        if isinstance(error, APIConnectionError):
            error.sent = self._accepted
        self._attempt_ended(began, error)
        error.meta = self.meta()
        return error

    def _attempt_ended(self, began: float, error: FriendliError | None) -> None:
        elapsed = self.clock.now() - began
        self._elapsed = self.stopwatch.elapsed
        attempt = Attempt(
            number=len(self._attempts) + 1,
            status=self._status,
            error=None if error is None else type(error).__name__,
            cause=None if error is None else _cause(error),
            elapsed=elapsed,
        )
        self._attempts.append(attempt)
        if error is None:
            self._attempt_judged(None)
        if _logger.isEnabledFor(logging.DEBUG):
            outcome = self._status if error is None else f"{self._status or 'no reply'}, {type(error).__name__}"
            _logger.debug("%s: %s in %.3f s", self._label, outcome, elapsed)

    def _attempt_judged(self, wait: float | None, error: BaseException | None = None) -> None:
        """Tells of the attempt's end, once, however it ended."""
        reporter = self.reporter
        if reporter is None or not reporter.attempting:
            return
        reporter.attempting = False
        noted = self._attempts[-1].error if len(self._attempts) == reporter.attempt else type(error).__name__
        reporter.report("attempt_ended", AttemptEnded, status=self._status, error=noted, wait=wait)

    @property
    def _label(self) -> str:
        return f"{self._operation.method} {self._engine.deployment.prefix}{self._operation.path}"

    def _may_go_on(self) -> bool:
        body = self._arguments.body
        sendable = not isinstance(body, Form) or body.sendable
        # A plain reply that began and broke off was worked for, and will be paid for.
        spent = self._answered and self._operation.billed
        return not self.clock.interrupted and not self._engine.runtime.transport.closed and sendable and not spent

    def _may_repeat(self, failed: Held[FriendliError]) -> bool:
        policy = self._engine.settings.retry
        return policy.max_attempts > 1 and self._may_go_on() and may_repeat(failed.error, self._operation, policy)

    def _wait_after(self, failed: Held[FriendliError], retries: Retries) -> float | None:
        """Seconds until the next attempt; None: there is none."""
        settings, pace = self._engine.settings, self._engine.runtime.pace
        if settings.pacing.obey is not None and isinstance(failed.error, APIStatusError):
            pace.refused(self._limit_scope, failed.error, settings.retry, self.clock.now())
        wait = retries.wait_after(failed.error) if self._may_repeat(failed) else None
        if wait is None or pace.may_retry(settings.pacing):
            return wait
        last = self._attempts[-1]
        self._attempts[-1] = msgspec.structs.replace(last, cause=f"{last.cause}; the retry budget is used up")
        failed.error.meta = self.meta()
        return None

    async def _held_back(self) -> None:
        """Waits while the server wants nothing new: it has told another call so."""
        settings, pace = self._engine.settings, self._engine.runtime.pace
        if settings.pacing.obey is None:
            return
        longest = settings.retry.max_retry_after
        while (hold := pace.hold(self._limit_scope, self.clock.now())) is not None:
            began = self.clock.now()
            rest, left = hold.rest(began), self.clock.time_left()
            if (left is not None and rest >= left) or rest + self.stopwatch.queued > longest:
                bound = "total" if rest + self.stopwatch.queued <= longest else "max_retry_after"
                refusal = Held[FriendliError](hold.refusal(rest, bound))
                refusal.error.meta = self.meta()
                raise refusal.take()
            late = jitter(settings.retry)
            try:
                await self._sleep(rest + (late if left is None else min(late, (left - rest) / 2)))
            finally:
                self.stopwatch.queued += self.clock.now() - began

    @property
    def _limit_scope(self) -> LimitScope:
        builder = self._engine.request_builder
        return LimitScope(builder.base, self._arguments.model, builder.account)

    async def _mended(self, failed: Held[FriendliError]) -> bool:
        """Whether what made the server say no has been mended, as far as the deployment has a way: once a call."""
        recover = self._engine.recover
        if recover is None or self._recovered or not self._may_go_on() or not isinstance(failed.error, APIStatusError):
            return False
        began = self.clock.now()
        try:
            with self.clock:
                self._recovered = await recover(self._arguments, failed.error)
        except FriendliError as error:
            error.__context__ = None
            if error.meta is None:
                error.meta = self.meta()
            raise
        finally:
            waited = self.clock.now() - began
            self._attempts[-1] = msgspec.structs.replace(self._attempts[-1], wait=waited)
        if self._recovered:
            self._attempt_judged(0.0)
        return self._recovered

    def _tell_of_retry(self, failed: Held[FriendliError], seconds: float) -> None:
        told = self._attempts[-1] = msgspec.structs.replace(self._attempts[-1], wait=seconds)
        reason = told.status if isinstance(failed.error, APIStatusError) else told.error
        _logger.info("%s: retrying in %.2f s after %s", self._label, seconds, reason)
        on_retry = self._engine.settings.retry.on_retry
        if on_retry is not None:
            try:
                on_retry(told)
            except Exception:
                _logger.exception("RetryPolicy.on_retry failed; the retry goes on")

    async def _sleep(self, seconds: float) -> None:
        try:
            with self.clock:
                await asyncio.sleep(seconds)
        except FriendliError as error:
            error.__context__ = None
            if isinstance(error, APIConnectionError):
                error.sent = self._accepted
            error.meta = self.meta()
            raise

    def _ended_badly(self, error: BaseException) -> None:
        self.stopwatch.stop()
        if self.reporter is not None:
            self._attempt_judged(None, error)
            outcome = self._outcome_of(error)
            told = None if outcome == "stopped" else error
            self.reporter.end(outcome, self.stopwatch.timing(None), error=told, status=self._status)

    def _outcome_of(self, error: BaseException) -> Outcome:
        if self._interrupted_as is not None:
            return self._interrupted_as
        if not isinstance(error, Exception):
            return "cancelled"
        return "truncated" if isinstance(error, StreamInterruptedError) else "failed"

    def _ended_well(self, reply: object) -> None:
        if self._engine.runtime.pace.spent:
            self._engine.runtime.pace.succeeded()
        if self._stream:
            return  # the call ends with its stream
        self.stopwatch.stop()
        if self.reporter is not None:
            finished = _finish_reasons(reply) if self._operation.billed else ()
            timing = self.stopwatch.timing(None)
            self.reporter.end("done", timing, usage_of(reply), finished, status=self._status, head=reply, reply=reply)

    # --- reading the reply ---------------------------------------------------------------------------------------

    async def read_reply(self, exchange: Exchange) -> T:
        """Reads and decodes a plain reply."""
        self._answered = True
        try:
            data = await exchange.read_all(self._engine.settings.limits.reply)
        except BaseException:
            exchange.abort()
            raise
        self.stopwatch.read(len(data), 1)
        reply = decode_reply(data, self._operation.decoder, exchange.status, exchange.headers)
        keep_raw(reply, data)
        return reply

    async def read_into(self, exchange: Exchange, sink: Sink | None) -> None:
        """Hands a reply to a sink as it comes; the limit is then ``idle``."""
        try:
            if sink is None:
                await exchange.read_some(self._engine.settings.limits.error, _ERROR_BODY_SECONDS)
                return
            length = exchange.headers.get("content-length", "")
            await sink.begin(int(length) if length.isdecimal() else None)
            self.clock.phase("idle")
            while data := await exchange.read():
                self.stopwatch.read(len(data), 0)
                await sink.write(data)
                self.clock.phase("idle")
        except BaseException:
            exchange.abort()
            raise
        exchange.finish()

    async def read_first_event(
        self, exchange: Exchange, collector: Collector[E, R, U]
    ) -> tuple[Exchange, EventReader[E], Collector[E, R, U], bytes | bytearray | None]:
        """Reads a stream up to its first event; the bytes are kept until it is known whether they are wanted."""
        limit = self._engine.settings.limits.event
        try:
            data = await self._first_bytes(exchange)
            head: bytes | bytearray | None = data
            reader = EventReader(collector, limit, exchange.status, exchange.headers)
            reader.feed(data)
            self.stopwatch.read(len(data), len(reader.ready))
            while not reader.ready and not reader.is_last:
                data = await exchange.read()
                head = _kept(head, data, limit)
                reader.feed(data)
                self.stopwatch.read(len(data), len(reader.ready))
            if reader.failure is not None and not reader.ready:
                failure, reader.failure = Held(reader.failure), None
                raise failure.take()
            if collector.has_text:
                self.stopwatch.text_came()
            exchange.streaming = True
            if self.reporter is not None and reader.ready:
                self.reporter.report("first_event", FirstEvent, seconds=self.stopwatch.elapsed)
        except APIConnectionError as error:
            exchange.abort()
            if type(error) is not APIConnectionError:
                raise
            raise StreamInterruptedError(str(error)) from None
        except BaseException:
            exchange.abort()
            raise
        return exchange, reader, collector, head

    async def _first_bytes(self, exchange: Exchange) -> bytes:
        """The first bytes of a stream, whatever its content type says; raises where they are none of a stream."""
        data = await exchange.read()
        if data.startswith(_STREAM_BEGINNINGS):  # the everyday case, at once
            return data
        named = exchange.headers.get("content-type", "")
        kinds = {part.partition(";")[0].strip().lower() for part in named.split(",")}  # it may have been sent twice
        if kinds & _STREAM_TYPES:
            return data
        while _may_begin_a_stream(data) and (piece := await exchange.read()):
            data += piece
        if data.lstrip(_BEFORE_A_STREAM).startswith(_STREAM_BEGINNINGS):
            return data
        begun = data and await exchange.read_some(self._engine.settings.limits.error, _ERROR_BODY_SECONDS, data)
        error, said = unframed(begun, exchange.status, exchange.headers)
        if error is not None:
            raise error
        instead = f"the server answered with {named} instead of an event stream"
        raise ResponseDecodeError(f"{instead}: {said!r}" if said else instead, excerpt=excerpt(begun))


def _may_begin_a_stream(data: bytes) -> bool:
    """Whether more has to come to tell."""
    begun = data.lstrip(_BEFORE_A_STREAM)
    return bool(data) and any(len(begun) < len(word) and word.startswith(begun) for word in _STREAM_BEGINNINGS)


def _kept(head: bytes | bytearray | None, data: bytes, limit: int) -> bytearray | None:
    """The first bytes with those that follow; None once they are too many."""
    if head is None or len(head) + len(data) > limit:
        return None
    if not isinstance(head, bytearray):
        head = bytearray(head)
    head += data
    return head


def _finish_reasons(reply: object) -> tuple[str, ...]:
    """Why the choices of a reply finished; why a message stopped; how a response ended."""
    choices: Any = getattr(reply, "choices", None)
    owners = [reply] if choices is None else choices
    names = ("stop_reason", "status") if choices is None else ("finish_reason",)
    found = [getattr(owner, name, None) for owner in owners for name in names]
    return tuple(reason for reason in found if isinstance(reason, str))


def _may_have_been_accepted(error: FriendliError) -> bool:
    if isinstance(error, APIStatusError):
        return error.status_code not in REFUSED
    return isinstance(error, APIConnectionError) and error.sent


def _cause(error: FriendliError) -> str:
    """``ErrorClass: words``, without the request id, which would make a label of each call."""
    words = f"{error.status_code} {error.message}" if isinstance(error, APIStatusError) else str(error)
    return f"{type(error).__name__}: {words}"


class StreamOpening(Generic[E, R, U]):
    """Opens one stream: see ``stream.Opening``."""

    def __init__(
        self,
        engine: Engine,
        operation: Operation[Any],
        arguments: Arguments,
        collector: Callable[[], Collector[E, R, U]],
    ) -> None:
        self._engine = engine  # a stream keeps its client going
        self._call: Call[Any] | None = Call(engine, operation, arguments, "events", stream=True)
        self.collector = collector

    async def open(self) -> OpenStream[E, R, U]:
        """Returns once the first event has arrived.

        Raises:
            FriendliError: No attempt got that far.
        """
        call = self._call
        assert call is not None, "opened once"
        exchange, reader, collector, head = await call.run(
            lambda exchange: call.read_first_event(exchange, self.collector())
        )
        self._call = None  # the request's body is in it
        clock = ReadClock(self._engine.settings.timeouts, call.clock.total_at, call.loop, exchange.abort_with)
        return OpenStream(exchange, reader, collector, clock, call.meta(), call.stopwatch, call.reporter, head)

    @property
    def interrupted(self) -> bool:
        """Whether it was told to end before it was open."""
        return self._call is not None and self._call.interrupted

    def interrupt(self, error: FriendliError, outcome: Outcome) -> None:
        """Makes an ``open`` that is under way raise the error; ``outcome`` is how the stream has ended then."""
        if self._call is not None:
            self._call.interrupt(error, outcome)
