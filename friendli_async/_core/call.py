"""The call loop: build a request, send it, evaluate the outcome, wait, retry."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import msgspec

from friendli_async._core.body.arguments import Arguments
from friendli_async._core.body.forms import Form, is_sendable
from friendli_async._core.events.opening import open_reader
from friendli_async._core.events.plain_reply import decode_reply
from friendli_async._core.events.reader import Collector, EventReader
from friendli_async._core.events.stream import Outcome
from friendli_async._core.held import Held
from friendli_async._core.loops import running_loop
from friendli_async._core.net.clock import CallClock
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.net.exchange import Exchange
from friendli_async._core.observers import AttemptEnded, AttemptStarted, CallHeld, CallStarted, Connected, FirstEvent
from friendli_async._core.pacing import Hold, LimitScope, exceeded_limit, is_rejected_by_load, jitter, report_rejection
from friendli_async._core.protocol import Accept, Operation, Request
from friendli_async._core.reporting import (
    OUT_OF_BUDGET,
    CallReporter,
    RunReporter,
    cause_of,
    finish_reasons_of,
    log_fields,
    logged_name,
    logged_reason,
    parameters_of,
    reason_of,
)
from friendli_async._core.retry import UNPROCESSED_STATUSES, is_retryable, wait_after
from friendli_async._core.secret import Secret, mask_token, without_token
from friendli_async._core.status_errors import status_error
from friendli_async._core.timing import Stopwatch
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    FriendliError,
    StreamInterruptedError,
    UsageLimitError,
)
from friendli_async.replies import Attempt, Headers, Meta, attach_meta, keep_raw, usage_of

if TYPE_CHECKING:
    from friendli_async._core.engine import Engine

T = TypeVar("T")
E = TypeVar("E")
R = TypeVar("R")
U = TypeVar("U")

_logger: Final = logging.getLogger("friendli_async")
_NO_HEADERS: Final = Headers()
_call_ids: Final = itertools.count(1)

Recovery = Callable[[Arguments, APIStatusError], Awaitable[bool]]
"""Tries to fix what caused an error response; returns whether another attempt is worthwhile."""


class Sink(Protocol):
    """Receives the bytes of a response body as they arrive."""

    async def begin(self, size: int | None) -> None:
        """Starts a response body of ``size`` bytes (None if unknown). Data of an earlier attempt must be discarded."""
        ...

    async def write(self, data: bytes) -> None:
        """Receives the next bytes."""
        ...


class Call(Generic[T]):
    """One call through all its attempts.

    Args:
        engine: Makes the call.
        operation: The operation to call.
        arguments: The request's body, path and query.
        accept: The expected kind of response. If it is a stream, the call outlives ``run`` and ends with the stream.
        run_reporter: Reports the run that it is a turn of, if there is one.
    """

    loop: asyncio.AbstractEventLoop
    clock: CallClock
    stopwatch: Stopwatch

    def __init__(
        self,
        engine: Engine,
        operation: Operation[T],
        arguments: Arguments,
        accept: Accept,
        run_reporter: RunReporter | None = None,
    ) -> None:
        self._id = next(_call_ids)
        self._engine = engine
        self._operation = operation
        self._arguments = arguments
        self._accept: Accept = accept
        self._is_stream = accept == "events"
        self._run_reporter = run_reporter
        self.reporter: CallReporter | None = None
        self.held: bool = False  # a rate-limit hold pauses it
        self._interrupted_outcome: Outcome | None = None
        self._attempts: list[Attempt] = []  # those that have ended
        self._elapsed = 0.0  # seconds from the start of the call to the end of the last one, or of the call
        self._sent = False  # the server may have accepted a request: ``sent`` of the last error
        self._replaced = False  # a dead pooled connection has been replaced, which is done once per call
        self._recovered = False  # the recovery has succeeded: it is not asked again
        # Of the last attempt:
        self._server = self._proxy = ""
        self.token: Secret = Secret()  # of the attempt's request
        self._status: int | None = None
        self._headers = _NO_HEADERS

    # --- the loop ------------------------------------------------------------------------------------------------

    async def run(self, read: Callable[[Exchange], Awaitable[R]]) -> R:
        """Sends requests until ``read`` has read a successful response, or no retry is left.

        Args:
            read: Reads the response of an attempt with a 2XX status. If it raises, the exchange is aborted.

        Returns:
            What ``read`` returned.

        Raises:
            FriendliError: The last attempt's error.
            Exception: Raised by a token callable, or by the source of a body.
        """
        self._start()
        runtime = self._engine.runtime
        exchange: Exchange | None = None
        try:
            self._report_start()
            runtime.begin(self)
            if self.reporter is not None:
                self.reporter.begin_call()
            if runtime.pace.holds:
                await self._wait_for_hold()
            while True:
                began, dial = self._start_attempt()
                try:
                    try:
                        with self.clock:
                            exchange = await runtime.transport.send(await self._build_request(), dial)
                            self._status = exchange.head.status
                            self._headers = without_token(exchange.head.headers, self.token)
                            if not 200 <= self._status < 300:
                                raise await self._error_response(exchange, dial)
                            result = await read(exchange)
                    finally:
                        self._record_connection(dial)  # first: the metadata of a failure includes its durations
                except FriendliError as error:
                    if exchange is not None:
                        exchange.abort()
                        exchange = None
                    failed = Held(self._record_failure(error, began))
                else:
                    self._record_attempt(began, None)
                    self._finish_succeeded(result)
                    return result

                if await self._try_recovery(failed):
                    continue
                wait = self._wait_after(failed)
                self._report_attempt_ended(wait, failed.error)
                if wait is None:
                    with suppress(APITimeoutError):  # `total`: the call has failed with an answer, not for it
                        await self._try_recovery(failed, is_last=True)
                    raise failed.take()
                self._report_retry(failed, wait)
                await self._between_attempts(partial(asyncio.sleep, wait))
        except BaseException as error:
            if exchange is not None:  # also after a success: an observer may raise KeyboardInterrupt
                exchange.abort()
            self._finish_failed(error)
            raise
        finally:
            runtime.end(self)

    def interrupt(self, error: APIConnectionError, outcome: Outcome | None = None) -> None:
        """Makes the call, which is running, raise this error at the loop's next turn.

        The first interruption takes precedence over later ones, and over the errors that it causes. Without an
        ``outcome`` to report, the error determines it. A stream that is being opened ends like an open one when its
        client closes: cancelled, StreamInterruptedError.
        """
        if self.clock.interruption is not None:
            return
        if self._is_stream and outcome is None:
            error, outcome = StreamInterruptedError(str(error), draining=error.draining), "cancelled"
        self._interrupted_outcome = outcome
        self.clock.interrupt(error)

    @property
    def may_have_been_sent(self) -> bool:
        """Whether the server may have accepted a request of the call, which has begun."""
        return self._sent or self.clock.sent

    def meta(self) -> Meta:
        """Returns the call's metadata so far."""
        return Meta(
            status=self._status,
            headers=self._headers,
            attempts=tuple(self._attempts),
            elapsed=self._elapsed,
            timing=self.stopwatch.timing(None),
            call_id=self._id,
            operation=self._name,
            deployment=self._engine.deployment.name,
            server=self._server,
            proxy=self._proxy,
            model=self._arguments.model,
        )

    # --- steps of the loop ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        engine = self._engine
        self.loop = running_loop()
        self.clock = CallClock(engine.settings.timeout, self.loop)
        self.stopwatch = Stopwatch(self.clock.now)
        observers = engine.settings.observers
        limit = engine.settings.usage_limit if self._operation.billed else None
        if observers is not None or limit is not None:
            body = self._arguments.body
            self.reporter = CallReporter(
                observers,
                body if isinstance(body, bytes) else None,
                self._id,
                run_reporter=self._run_reporter,
                limit=limit,
                operation=self._name,
                deployment=engine.deployment.name,
                model=self._arguments.model,
                team=engine.billed_team(self._operation),
            )

    def _report_start(self) -> None:
        if self.reporter is not None and self.reporter.wants("call_started"):  # its parameters are parsed
            address, port = self._engine.request_builder.address
            asked = parameters_of(self._arguments.body)
            self.reporter.report(
                "call_started", CallStarted, server_address=address, server_port=port, parameters=asked
            )

    def _start_attempt(self) -> tuple[float, DialContext]:
        self._status, self._headers = None, _NO_HEADERS
        self.clock.sent = False
        dial = DialContext(self.clock, replaced=self._replaced)
        reporter = self.reporter
        if reporter is not None:
            reporter.attempt += 1
            reporter.attempting = True
            reporter.report("attempt_started", AttemptStarted)
            dial.before_sending = partial(self._begin_sending, dial, reporter)
        return self.clock.now(), dial

    def _begin_sending(self, dial: DialContext, reporter: CallReporter) -> None:
        """Reports the connection, unless other calls have reached the usage limit while this one waited for it."""
        reporter.check_usage()
        if dial.connected:
            reporter.report("connected", Connected, reused=dial.reused, queued=dial.queued, connecting=dial.connecting)

    async def _build_request(self) -> Request:
        """Builds the attempt's request, which may call the token callable, or read the size of a file.

        Raises:
            ConfigurationError: The token is missing or unusable.
            OSError: A file to upload cannot be opened.
        """
        engine, body = self._engine, self._arguments.body
        builder = engine.request_builder
        authorization = builder.authorization
        if authorization is None:
            self.clock.begin_phase("total", "waiting for the token")
            authorization = await builder.resolve_token()
            self.clock.begin_phase("total")
        framing = await body.headers() if isinstance(body, Form) else None
        request = builder.build(self._operation, self._arguments, self._accept, authorization, framing)
        self.token = request.headers.token
        return request

    def _record_connection(self, dial: DialContext) -> None:
        self._replaced = dial.replaced
        self._server, self._proxy = dial.address, dial.proxy or ""
        self.stopwatch.queued += dial.queued
        self.stopwatch.connecting += dial.connecting
        dial.before_sending = None

    async def _error_response(self, exchange: Exchange, dial: DialContext) -> APIStatusError:
        """Returns the error for a status other than 2XX."""
        # The status is known: a limit that expires from now on only ends the wait for the message.
        body = await exchange.read_some(self._engine.settings.limits.error, self.clock.suspend())
        return status_error(exchange.head, body, None if dial.tunnelled else dial.proxy)

    def _record_failure(self, error: FriendliError, began: float) -> FriendliError:
        """Records a failed attempt, unless the client refused it before it was sent; returns its completed error."""
        error.__context__ = None  # a CancelledError inside aiohttp, whose frames hold the headers
        error.__traceback__ = None  # its frames hold the response, which may quote the token
        mask_token(error, self.token)
        if self.clock.interruption is not None:  # which error it causes depends on timing
            error = copy.copy(self.clock.interruption)
            error.sent = self.clock.sent
        is_unsent = isinstance(error, ConfigurationError) and not self._sent  # nothing can have been accepted
        if is_unsent or (isinstance(error, UsageLimitError) and not self.clock.sent):
            # None if the call failed before it could wait (``queued``) or send, as ``FriendliError.meta`` says.
            error.meta = self.meta() if self._attempts or self.stopwatch.queued else None
            return error
        if isinstance(error, ConfigurationError):
            error = APIConnectionError(str(error), sent=True, draining=error.draining)
            error.permanent = True  # like the ConfigurationError that it stands for
        self._sent = self._sent or _may_have_been_accepted(error)
        if isinstance(error, APIConnectionError):
            error.sent = self._sent
        self._record_attempt(began, error)
        error.meta = self.meta()
        return error

    def _record_attempt(self, began: float, error: FriendliError | None) -> None:
        elapsed = self.clock.now() - began
        self._elapsed = self.stopwatch.elapsed
        attempt = Attempt(
            number=len(self._attempts) + 1,
            status=self._status,
            error=None if error is None else type(error).__name__,
            cause=None if error is None else cause_of(error),
            elapsed=elapsed,
        )
        self._attempts.append(attempt)
        if error is None:
            self._report_attempt_ended(None)
        outcome = self._status if error is None else f"{self._status or 'no reply'}, {logged_name(error)}"
        self._log(logging.DEBUG, "%s: %s in %.3f s", outcome, elapsed)

    def _amend_attempt(self, **changes: object) -> Attempt:
        """Changes fields of the last recorded attempt."""
        attempt = self._attempts[-1] = msgspec.structs.replace(self._attempts[-1], **changes)
        return attempt

    def _report_attempt_ended(self, wait: float | None, error: BaseException | None = None) -> None:
        """Reports the end of the attempt to observers, at most once, whatever the outcome."""
        reporter = self.reporter
        if reporter is None or not reporter.attempting:
            return
        reporter.attempting = False
        name = self._attempts[-1].error if len(self._attempts) == reporter.attempt else type(error).__name__
        why = reason_of(error)
        reporter.report("attempt_ended", AttemptEnded, status=self._status, error=name, reason=why, wait=wait)

    @property
    def _name(self) -> str:
        return self._operation.stream_name if self._is_stream else self._operation.name

    def _log(self, level: int, message: str, *arguments: object) -> None:
        """Logs a message, whose first placeholder is the method and path."""
        if not _logger.isEnabledFor(level):
            return
        label = f"{self._operation.method} {self._engine.deployment.prefix}{self._operation.path}"
        _logger.log(level, message, label, *arguments, extra=log_fields(self.meta()), stacklevel=2)

    def _can_go_on(self) -> bool:
        """Whether another attempt is possible, whatever the error was."""
        # The server has answered with a reply that it bills, even if it broke off or was an error.
        answered = self._status is not None and 200 <= self._status < 300
        billed = answered and self._operation.billed and not self._is_stream
        stopped = self.clock.interruption is not None or self._engine.runtime.transport.closed
        return not stopped and not billed and is_sendable(self._arguments.body)

    def _wait_after(self, failed: Held[FriendliError]) -> float | None:
        """Returns the seconds until the next attempt, or None if there is none.

        It must be possible (``_can_go_on``), allowed for the error (``is_retryable``), within the attempts and the time
        (``wait_after``), and within the budget (``Pace.take_retry``). A rejection by load may start a hold, and a bulk
        run may change the wait.
        """
        settings, pace = self._engine.settings, self._engine.runtime.pace
        wait, left = None, self.clock.time_left()
        if self._can_go_on() and is_retryable(failed.error, self._operation, settings.retry):
            wait = wait_after(failed.error, settings.retry, len(self._attempts) - self._recovered, left)
        if is_rejected_by_load(failed.error):
            now, error = self.clock.now(), failed.error
            if settings.pacing.obey is not None and pace.start_hold(self._limit_scope, error, settings.retry, now):
                message = "%s: rate limit: a %d asks to wait for %.0f s"
                self._log(logging.WARNING, message, error.status_code, error.retry_after)
            wait = report_rejection(failed.error, wait)
            if wait is not None and left is not None and wait >= left:
                wait = None
        if wait is None or pace.take_retry(settings.pacing):
            return wait
        self._amend_attempt(cause=f"{self._attempts[-1].cause}; {OUT_OF_BUDGET}")
        self._log(logging.INFO, "%s: not retried after %s: %s", logged_reason(failed.error), OUT_OF_BUDGET)
        failed.error.meta = self.meta()
        return None

    async def _wait_for_hold(self) -> None:
        """Waits while a rate-limit hold, set by the response to another call, pauses new calls."""
        settings, pace = self._engine.settings, self._engine.runtime.pace
        if settings.pacing.obey is None:
            return
        while (hold := pace.active_hold(self._limit_scope, self.clock.now())) is not None:
            began, left = self.clock.now(), self.clock.time_left()
            wait, waited = hold.delay(began), self.stopwatch.queued
            if (limit := exceeded_limit(wait, waited, settings.retry, left)) is not None:
                message = "%s: rate limit: not sent, %.2f s more after another call's %d exceed %s"
                self._log(logging.INFO, message, wait, hold.status, limit)
                raise hold.to_error(wait, waited, limit, self.meta())
            extra = jitter(settings.retry)
            wait += extra if left is None else min(extra, (left - wait) / 2)  # the rest of the time is for the call
            self._report_hold(hold, wait)
            self.held = True
            try:
                await self._between_attempts(partial(asyncio.sleep, wait))
            finally:
                self.held = False
                self.stopwatch.queued += self.clock.now() - began

    def _report_hold(self, hold: Hold, seconds: float) -> None:
        if not self.stopwatch.queued:  # logged once per call, even if the server extends the hold
            self._log(logging.INFO, "%s: rate limit: waiting %.2f s after another call's %d", seconds, hold.status)
        if self.reporter is not None:
            self.reporter.report("call_held", CallHeld, seconds=seconds, status=hold.status)

    @property
    def _limit_scope(self) -> LimitScope:
        builder = self._engine.request_builder
        return LimitScope(builder.base, self._arguments.model, builder.account)

    async def _try_recovery(self, failed: Held[FriendliError], *, is_last: bool = False) -> bool:
        """Lets the recovery fix the cause of an error response, until it has succeeded once; returns whether it did.

        Without ``wake``, it can only explain an error: it is not asked before that of the last attempt (``is_last``).
        """
        recover = self._engine.recover
        if self._engine.settings.wake is is_last:
            return False
        if recover is None or self._recovered or not self._can_go_on() or not isinstance(failed.error, APIStatusError):
            return False
        self._recovered = await self._between_attempts(partial(self._run_recovery, recover, failed.error))
        if self._recovered:
            self._report_attempt_ended(0.0)
        return self._recovered

    async def _run_recovery(self, recover: Recovery, error: APIStatusError) -> bool:
        """Runs the recovery; its duration is the wait after the last attempt."""
        began = self.clock.now()
        try:
            with self._engine.runtime.as_one_call(self.loop):
                return await recover(self._arguments, error)
        finally:
            self._amend_attempt(wait=self.clock.now() - began)

    def _report_retry(self, failed: Held[FriendliError], seconds: float) -> None:
        attempt = self._amend_attempt(wait=seconds)
        self._log(logging.INFO, "%s: retrying in %.2f s after %s", seconds, logged_reason(failed.error))
        on_retry = self._engine.settings.retry.on_retry
        if on_retry is not None:
            try:
                on_retry(attempt)
            except (Exception, asyncio.CancelledError):  # which cannot be genuine: nothing cancels a plain function
                _logger.exception("RetryPolicy.on_retry raised an exception; retrying anyway")

    async def _between_attempts(self, work: Callable[[], Awaitable[R]]) -> R:
        """Awaits the result of ``work``, within ``total``, and completes the call's own error that ends it.

        ``work`` is not called if the call has been interrupted; an awaitable would warn that nobody awaited it.
        """
        try:
            with self.clock:
                result = await work()
            if self.clock.interruption is not None:  # while the work was ending, or its own calls, which failed
                raise copy.copy(self.clock.interruption)
            return result
        except FriendliError as error:
            error.__context__ = None
            if error.meta is None:  # else it belongs to a call that the recovery made
                if isinstance(error, APIConnectionError):
                    error.sent = self._sent
                error.meta = self.meta()
            raise

    def _finish_failed(self, error: BaseException) -> None:
        self.stopwatch.stop()
        self._elapsed = self.stopwatch.elapsed
        if self.reporter is not None:
            self._report_attempt_ended(None, error)
            outcome = self.outcome_of(error)
            partial = error.partial if isinstance(error, FriendliError) else None
            usage = None if partial is None else partial.usage  # an answer next to an error is billed
            told = None if outcome == "stopped" else error
            self.reporter.end(outcome, self.meta(), usage, error=told, is_complete=usage is not None)

    def outcome_of(self, error: BaseException) -> Outcome:
        """Returns the outcome of a call that raised this error."""
        if self._interrupted_outcome is not None:
            return self._interrupted_outcome
        if not isinstance(error, Exception):
            return "cancelled"
        return "truncated" if isinstance(error, StreamInterruptedError) else "failed"

    def _finish_succeeded(self, reply: object) -> None:
        pace = self._engine.runtime.pace
        if pace.spent and self._engine.settings.pacing.obey is not None:
            pace.record_success()
        if self._is_stream:
            if self.clock.interruption is not None:  # in the turn of the first event, or by an observer of it
                failed = Held(copy.copy(self.clock.interruption))
                failed.error.meta = self.meta()
                raise failed.take()
            return  # the call ends with its stream
        self.stopwatch.stop()
        meta = self.meta()
        attach_meta(reply, meta)
        if self.reporter is not None:
            reasons = finish_reasons_of(reply) if self._operation.billed else ()
            self.reporter.end("done", meta, usage_of(reply), reasons, envelope=reply, reply=reply)

    # --- reading the reply ---------------------------------------------------------------------------------------

    async def read_reply(self, exchange: Exchange) -> T:
        """Reads and decodes a plain reply."""
        self.clock.describe("the status has arrived, but not the whole reply")
        data = await exchange.read_all(self._engine.settings.limits.reply)
        self.stopwatch.record_read(len(data), 1)
        reply = decode_reply(data, self._operation.decoder, exchange.head)
        if self._operation.failure_of is not None:
            failure = self._operation.failure_of(reply, exchange.head)
            if failure is not None:
                raise failure
        keep_raw(reply, data)
        return reply

    async def read_into(self, exchange: Exchange, sink: Sink | None) -> None:
        """Passes a response body to a sink as it arrives; from then on the ``idle`` timeout applies to each read.

        None reads and discards at most ``Limits.error`` bytes.
        """
        if sink is None:
            await exchange.read_some(self._engine.settings.limits.error)
            return
        status, headers = exchange.head
        length = headers.get("content-length", "")
        is_part = status == 206  # which nobody asked for
        is_known = length.isdecimal() and not is_part and "content-encoding" not in headers
        await sink.begin(int(length) if is_known else None)
        self.clock.begin_phase("idle", "no data of the download")
        while data := await exchange.read():
            self.stopwatch.record_read(len(data), 0)
            self.clock.begin_phase("total", "writing the download")
            await sink.write(data)
            self.clock.begin_phase("idle", "no data of the download")
        exchange.finish()

    async def read_first_event(
        self, exchange: Exchange, collector: Collector[E, R, U]
    ) -> tuple[Exchange, EventReader[E], Collector[E, R, U], bytes]:
        """Reads a stream up to its first event; also returns the bytes so far, for ``raw()`` and ``stop_when()``."""
        decoder, limits = self._operation.decoder, self._engine.settings.limits
        self.clock.describe("the status has arrived, but no event")
        try:
            reader, kept = await open_reader(exchange, collector, decoder, limits, self.stopwatch)
        except APIConnectionError as error:
            if type(error) is not APIConnectionError:  # a timeout keeps its class
                raise
            raise StreamInterruptedError(str(error)) from None
        if collector.has_text:
            self.stopwatch.record_first_text()
        exchange.streaming = True
        if self.reporter is not None and reader.ready:
            self.reporter.report("first_event", FirstEvent, seconds=self.stopwatch.elapsed)
        return exchange, reader, collector, kept


def _may_have_been_accepted(error: FriendliError) -> bool:
    if isinstance(error, APIStatusError):
        return error.status_code not in UNPROCESSED_STATUSES
    return isinstance(error, APIConnectionError) and error.sent
