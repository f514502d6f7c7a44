"""One call: build the request, run its attempts, decode the reply. The only place where these meet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

from friendli_async._core.arguments import Arguments
from friendli_async._core.clock import PhaseClock, TimedSource
from friendli_async._core.protocol import (
    Deployment,
    Operation,
    Request,
    decode,
    embedded_error,
    excerpt,
    status_error,
)
from friendli_async._core.retry import may_repeat, repeat
from friendli_async._core.settings import Settings
from friendli_async._core.stream import Collector, EventReader, Opened
from friendli_async._core.transport import Exchange, Transport
from friendli_async._version import __version__
from friendli_async.errors import APIStatusError, ConfigurationError, FriendliError, ResponseDecodeError
from friendli_async.replies import Attempt, Headers, Meta, attach_meta

__all__ = ["Engine", "StreamOpening"]

T = TypeVar("T")
R = TypeVar("R")

_logger: Final = logging.getLogger("friendli_async")
_USER_AGENT: Final = f"friendli_async/{__version__}"
# An error's status is worth more than the last word of its body.
_ERROR_BODY_SECONDS: Final = 5.0
# Servers that do not name their streams properly are let through; a page or a document is not a stream.
_STREAM_TYPES: Final = frozenset({"text/event-stream", "text/plain", "application/octet-stream", ""})


class Engine:
    """Makes the calls of one deployment, with one set of settings, over a shared transport."""

    def __init__(self, transport: Transport, settings: Settings, deployment: Deployment) -> None:
        self.transport = transport
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
        return Engine(self.transport, msgspec.structs.replace(self.settings, **changes), self.deployment)

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

    async def request(self, operation: Operation[Any], arguments: Arguments, accept: str, encodings: str) -> Request:
        """Builds one attempt's request.

        Raises:
            ConfigurationError: There is no token, or it is unusable.
        """
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
        query = f"?{arguments.query}" if arguments.query else ""
        path = operation.path.format_map(arguments.path) if arguments.path else operation.path
        return Request(
            method=operation.method,
            url=f"{self._base}{path}{query}",
            path=self.deployment.prefix + operation.path,
            headers=headers,
            body=arguments.body,
            repeatable=operation.repeatable,
        )


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
            return await self._attempt(once)
        except FriendliError as error:
            failed = error
        if policy.max_attempts == 1 or not self._may_go_on() or not may_repeat(failed, operation, policy):
            raise failed
        return await repeat(
            failed,
            lambda: self._attempt(once),
            policy=policy,
            operation=operation,
            may_go_on=self._may_go_on,
            time_left=self._time_left,
            before_sleep=self._retrying,
            sleep=self._sleep,
        )

    def _time_left(self) -> float | None:
        return None if self.total_at is None else self.total_at - self.loop.time()

    def _may_go_on(self) -> bool:
        return self.interruption is None and not self._engine.transport.closed

    async def _attempt(self, once: Callable[[PhaseClock], Awaitable[R]]) -> R:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._status, self._headers = None, Headers()
        self._clock = PhaseClock(self.settings.timeouts, self.total_at)
        try:
            async with self._clock as clock:
                result = await once(clock)
        except ConfigurationError:
            raise
        except FriendliError as error:
            error.__context__ = None  # a cancelled request of aiohttp's, whose frames hold the headers
            self._ended = loop.time()
            self._note(self._ended - began, error)
            error.meta = self.meta()
            raise
        finally:
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
        try:
            data = await exchange.read_all(self.settings.limits.reply)
        except BaseException:
            exchange.abort()
            raise
        try:
            return decode(data, self._operation.reply)
        except ResponseDecodeError as error:
            failed: FriendliError = error
        raise embedded_error(data, exchange.status, exchange.headers) or failed

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
