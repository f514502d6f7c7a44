"""One call: build the request, run its attempts, decode the reply. The only place where these meet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from friendli_async._core.body.arguments import Arguments
from friendli_async._core.body.forms import Form
from friendli_async._core.events.stream import Collector, EventReader, Opened
from friendli_async._core.net.clock import PhaseClock, TimedSource
from friendli_async._core.net.transport import Exchange, Transport
from friendli_async._core.protocol import (
    Deployment,
    Operation,
    Request,
    decode,
    embedded_error,
    excerpt,
    status_error,
)
from friendli_async._core.retry import REFUSED, may_repeat, repeat
from friendli_async._core.settings import Settings
from friendli_async._version import __version__
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    ConfigurationError,
    FriendliError,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async.replies import Attempt, Headers, Meta, attach_meta

__all__ = ["Engine", "Sink", "StreamOpening"]

T = TypeVar("T")
R = TypeVar("R")

_logger: Final = logging.getLogger("friendli_async")
_USER_AGENT: Final = f"friendli_async/{__version__}"
# An error's status is worth more than the last word of its body.
_ERROR_BODY_SECONDS: Final = 5.0
# Servers that do not name their streams properly are let through; a page or a document is not a stream.
_STREAM_TYPES: Final = frozenset({"text/event-stream", "text/plain", "application/octet-stream", ""})


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
    """Makes the calls of one deployment, with one set of settings, over a shared transport."""

    def __init__(
        self, transport: Transport, settings: Settings, deployment: Deployment, recover: Recovery | None = None
    ) -> None:
        self.transport = transport
        self.recover = recover
        self.settings = settings
        self.deployment = deployment
        base = settings.container_url if deployment.container else settings.server_url
        self._base = base + deployment.prefix
        overridden = {name.lower() for name in settings.headers}
        self._bare = "authorization" in overridden
        self._fixed = {} if "user-agent" in overridden else {"User-Agent": _USER_AGENT}
        sends_team = settings.team is not None and not deployment.container and "x-friendli-team" not in overridden
        self._team = settings.team if sends_team else None
        self._custom = settings.headers

    def replace(self, **changes: object) -> Engine:
        """The same deployment with other settings."""
        return Engine(self.transport, msgspec.structs.replace(self.settings, **changes), self.deployment, self.recover)

    def recovering(self, recover: Recovery) -> Engine:
        """The same with a way to mend what made the server say no."""
        return Engine(self.transport, self.settings, self.deployment, recover)

    async def call(self, operation: Operation[T], arguments: Arguments) -> T:
        """Makes a plain call and returns the decoded reply.

        Raises:
            FriendliError: See the error tree.
        """
        run = _Run(self, operation, arguments, accept="application/json", encodings="gzip, deflate")
        reply = await run.attempts(run.fetch)
        attach_meta(reply, run.meta())
        return reply

    def opening(
        self, operation: Operation[Any], arguments: Arguments, collector: Callable[[], Collector[R]]
    ) -> StreamOpening[R]:
        """What an EventStream needs to open itself; ``collector`` makes a new one for each attempt."""
        # Compressed events arrive when the compressor pleases: often all at the end.
        run = _Run(self, operation, arguments, accept="text/event-stream", encodings="identity")
        return StreamOpening(run, collector)

    async def receive(self, operation: Operation[Any], arguments: Arguments, sink: Sink | None = None) -> None:
        """Makes a call whose reply is not JSON.

        Args:
            operation: The operation; its decoder is not used.
            arguments: What it sends, and where to.
            sink: Takes the reply's bytes as they come; None where nobody wants to know what it says.

        Raises:
            FriendliError: See the error tree.
        """
        run = _Run(self, operation, arguments, accept="*/*", encodings="identity")
        await run.attempts(lambda clock: run.receive(clock, sink))

    async def request(self, operation: Operation[Any], arguments: Arguments, accept: str, encodings: str) -> Request:
        """Builds one attempt's request.

        Raises:
            ConfigurationError: There is no token, or it is unusable.
            OSError: A file that is to be sent is not there.
        """
        body = arguments.body
        if arguments.url is None:
            headers = await self._headers(operation, arguments, accept, encodings)
            query = f"?{arguments.query}" if arguments.query else ""
            path = operation.path.format_map(arguments.path) if arguments.path else operation.path
            url = f"{self._base}{path}{query}"
        else:
            headers = {"Accept": accept, "Accept-Encoding": encodings, "User-Agent": _USER_AGENT}
            url = arguments.url
        if isinstance(body, Form):
            framing = await body.headers()
            headers = {name: value for name, value in headers.items() if name.lower() != "content-type"} | framing
        return Request(
            method=operation.method,
            url=url,
            path=self.deployment.prefix + operation.path,
            headers=headers,
            body=body,
            repeatable=operation.repeatable,
        )

    async def _headers(
        self, operation: Operation[Any], arguments: Arguments, accept: str, encodings: str
    ) -> dict[str, str]:
        headers = {"Accept": accept, "Accept-Encoding": encodings, **self._fixed}
        if self._team is not None and operation.team:
            headers["X-Friendli-Team"] = self._team
        if arguments.body is not None:
            headers["Content-Type"] = "application/json"
        authorization = None if self._bare else await self.settings.authorization()
        if authorization is not None:
            headers["Authorization"] = authorization
        elif not self.deployment.container and not self._bare:
            raise ConfigurationError("no token: pass token=, or set FRIENDLI_TOKEN")
        if self._custom:
            names = {name.lower() for name in self._custom}
            headers = {name: value for name, value in headers.items() if name.lower() not in names}
            headers.update(self._custom)
        return headers


class _Run(Generic[T]):
    """One call through all its attempts."""

    def __init__(
        self, engine: Engine, operation: Operation[T], arguments: Arguments, *, accept: str, encodings: str
    ) -> None:
        self.settings = engine.settings
        self.loop: asyncio.AbstractEventLoop
        self.interruption: FriendliError | None = None
        self.total_at: float | None = None
        self._engine = engine
        self._operation = operation
        self._arguments = arguments
        self._accept = accept
        self._encodings = encodings
        self._clock: PhaseClock | None = None
        self._attempts: list[Attempt] = []
        self._began = 0.0
        self._ended = 0.0
        self._status: int | None = None
        self._answered = False
        self._accepted = False
        self._replaced = False
        self._headers = Headers()

    def meta(self) -> Meta:
        """How the call came about so far."""
        return Meta(
            status=self._status,
            headers=self._headers,
            attempts=tuple(self._attempts),
            elapsed=self._ended - self._began,
        )

    def interrupt(self, error: FriendliError) -> None:
        """Makes the call raise this error, at the loop's next turn."""
        self.interruption = error
        if self._clock is not None:
            self._clock.interrupt(error)

    async def attempts(self, once: Callable[[PhaseClock], Awaitable[R]]) -> R:
        """Makes the first attempt, and further ones where the policy and the operation allow it."""
        self.loop = asyncio.get_running_loop()
        self._began = self._ended = self.loop.time()
        total = self.settings.timeouts.total
        self.total_at = None if total is None else self._began + total
        calls = self._engine.transport.calls
        calls.add(self)
        try:
            return await self._tried(once)
        finally:
            calls.discard(self)

    async def _tried(self, once: Callable[[PhaseClock], Awaitable[R]]) -> R:
        policy = self.settings.retry
        operation = self._operation
        try:
            return await self._first(once)
        except FriendliError as error:
            if policy.max_attempts == 1 or not self._may_go_on() or not may_repeat(error, operation, policy):
                raise
            failed = [error]
        return await repeat(
            failed.pop(),  # not kept here: the error's traceback holds this frame
            lambda: self._attempt(once),
            policy=policy,
            operation=operation,
            may_go_on=self._may_go_on,
            time_left=self._time_left,
            before_sleep=self._retrying,
            sleep=self._sleep,
        )

    def _remember(self, error: FriendliError) -> None:
        """What one attempt may have been accepted of holds for the call: ``sent`` of its last error says so."""
        if isinstance(error, APIStatusError):
            self._accepted = self._accepted or error.status_code not in REFUSED
        elif isinstance(error, APIConnectionError):
            self._accepted = error.sent = self._accepted or error.sent

    async def _first(self, once: Callable[[PhaseClock], Awaitable[R]]) -> R:
        try:
            return await self._attempt(once)
        except APIStatusError as error:
            if not await self._recovered(error):
                raise
        return await self._attempt(once)

    async def _recovered(self, failed: APIStatusError) -> bool:
        recover = self._engine.recover
        if recover is None or not self._may_go_on():
            return False
        began = self.loop.time()
        self._clock = PhaseClock(self.settings.timeouts, self.total_at)
        try:
            async with self._clock:
                recovered = await recover(self._arguments, failed)
        finally:
            self._clock = None
        waited = msgspec.structs.replace(self._attempts[-1], wait=self.loop.time() - began)
        self._attempts[-1] = waited
        return recovered

    def _time_left(self) -> float | None:
        return None if self.total_at is None else self.total_at - self.loop.time()

    def _may_go_on(self) -> bool:
        body = self._arguments.body
        sendable = not isinstance(body, Form) or body.sendable
        # A plain reply that began and broke off was worked for, and will be paid for.
        spent = self._answered and self._operation.billed
        return self.interruption is None and not self._engine.transport.closed and sendable and not spent

    async def _attempt(self, once: Callable[[PhaseClock], Awaitable[R]]) -> R:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._status, self._headers, self._answered = None, Headers(), False
        self._clock = clock = PhaseClock(self.settings.timeouts, self.total_at, replaced=self._replaced)
        try:
            async with clock:
                result = await once(clock)
        except ConfigurationError as error:
            if not self._accepted:
                raise
            raise APIConnectionError(str(error), sent=True, meta=self.meta()) from None
        except FriendliError as error:
            self._remember(error)
            error.__context__ = None  # a cancelled request of aiohttp's, whose frames hold the headers
            self._ended = loop.time()
            self._note(self._ended - began, error)
            error.meta = self.meta()
            raise
        finally:
            self._replaced = clock.replaced
            self._clock = None
        self._ended = loop.time()
        self._note(self._ended - began, None)
        return result

    async def _sleep(self, seconds: float) -> None:
        self._clock = PhaseClock(self.settings.timeouts, self.total_at)
        try:
            async with self._clock:
                await asyncio.sleep(seconds)
        except FriendliError as error:
            self._remember(error)
            error.__context__ = None
            error.meta = self.meta()
            raise
        finally:
            self._clock = None

    def _note(self, elapsed: float, error: FriendliError | None) -> None:
        status = self._status
        cause = None if error is None else f"{type(error).__name__}: {error}"
        self._attempts.append(Attempt(status=status, cause=cause, elapsed=elapsed))
        if _logger.isEnabledFor(logging.DEBUG):
            path = self._engine.deployment.prefix + self._operation.path
            outcome = status if error is None else f"{status or 'no reply'}, {type(error).__name__}"
            _logger.debug("%s %s: %s in %.3f s", self._operation.method, path, outcome, elapsed)

    def _retrying(self, error: FriendliError, seconds: float) -> None:
        failed = msgspec.structs.replace(self._attempts[-1], wait=seconds)
        self._attempts[-1] = failed
        path = self._engine.deployment.prefix + self._operation.path
        reason = error.status_code if isinstance(error, APIStatusError) else type(error).__name__
        _logger.info("%s %s: retrying in %.2f s after %s", self._operation.method, path, seconds, reason)
        on_retry = self.settings.retry.on_retry
        if on_retry is not None:
            try:
                on_retry(failed)
            except Exception:
                _logger.exception("RetryPolicy.on_retry failed; the retry goes on")

    # --- one attempt -----------------------------------------------------------------------------------------------

    async def fetch(self, clock: PhaseClock) -> T:
        """One attempt of a plain call."""
        exchange = await self._exchange(clock)
        self._answered = True
        try:
            data = await exchange.read_all(self.settings.limits.reply)
        except BaseException:
            exchange.abort()
            raise
        try:
            return decode(data, self._operation.reply)
        except ResponseDecodeError:
            embedded = embedded_error(data, exchange.status, exchange.headers)
            if embedded is None:
                raise
        try:
            raise embedded
        finally:
            del embedded  # which holds this frame

    async def receive(self, clock: PhaseClock, sink: Sink | None) -> None:
        """One attempt of a call whose reply goes to a sink, as it comes; the limit is then ``idle``."""
        exchange = await self._exchange(clock)
        try:
            if sink is None:
                await exchange.read_some(self.settings.limits.error, _ERROR_BODY_SECONDS)
                return
            length = exchange.headers.get("content-length", "")
            await sink.begin(int(length) if length.isdecimal() else None)
            clock.phase("idle")
            while data := await exchange.read():
                await sink.write(data)
                clock.phase("idle")
        except BaseException:
            exchange.abort()
            raise
        exchange.finish()

    async def _exchange(self, clock: PhaseClock) -> Exchange:
        """Sends the request; returns the exchange if its status is a good one.

        Raises:
            APIStatusError: It is not.
        """
        engine = self._engine
        request = await engine.request(self._operation, self._arguments, self._accept, self._encodings)
        exchange = await engine.transport.send(request, clock)
        self._status, self._headers = exchange.status, exchange.headers
        if 200 <= exchange.status < 300:
            return exchange
        try:
            body = await exchange.read_some(self.settings.limits.error, _ERROR_BODY_SECONDS)
        except BaseException:
            exchange.abort()
            raise
        raise status_error(exchange.status, exchange.headers, body)

    async def open(self, clock: PhaseClock, collector: Collector[R]) -> tuple[Exchange, EventReader[R]]:
        """One attempt to open a stream: up to its first event."""
        exchange = await self._exchange(clock)
        try:
            kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind not in _STREAM_TYPES:
                raise await self._not_a_stream(exchange, kind)
            reader = EventReader(collector, self.settings.limits.event, exchange.status, exchange.headers)
            while not reader.ready and not reader.over:
                reader.feed(await exchange.read())
            if reader.failure is not None and not reader.ready:
                raise reader.failure
        except APIConnectionError as error:
            exchange.abort()
            if type(error) is not APIConnectionError:
                raise
            raise StreamInterruptedError(str(error)) from None
        except BaseException:
            exchange.abort()
            raise
        return exchange, reader

    async def _not_a_stream(self, exchange: Exchange, kind: str) -> FriendliError:
        data = await exchange.read_some(self.settings.limits.error, _ERROR_BODY_SECONDS)
        return embedded_error(data, exchange.status, exchange.headers) or ResponseDecodeError(
            f"the server answered with {kind} instead of an event stream", excerpt=excerpt(data)
        )


class StreamOpening(Generic[R]):
    """Opens one stream: see ``stream.Opening``."""

    def __init__(self, run: _Run[Any], collector: Callable[[], Collector[R]]) -> None:
        self._run = run
        self._collector = collector

    async def open(self) -> Opened[R]:
        """Returns once the first event has arrived.

        Raises:
            FriendliError: No attempt got that far.
        """
        run = self._run
        exchange, reader = await run.attempts(lambda clock: run.open(clock, self._collector()))
        return Opened(TimedSource(exchange, run.settings.timeouts, run.total_at), reader, run.meta())

    def interrupt(self, error: FriendliError) -> None:
        """Makes an ``open`` that is under way raise the error."""
        self._run.interrupt(error)
