"""Virtual time and a scripted network, for tests of the call loop without sockets or sleeps."""

import asyncio
import copy
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

from friendli_async import APIConnectionError, FriendliError, LoopGauges
from friendli_async._core.net.dialing import DialContext
from friendli_async._core.net.exchange import Exchange
from friendli_async._core.net.transport import Transport
from friendli_async._core.protocol import Request
from friendli_async.replies import Headers, ReplyHead

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("nothing will ever happen any more")
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: it advances its clock instead, starting at 0."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a coroutine function a test that runs in virtual time."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_in_virtual_time(test(*args, **kwargs))

    return run


def now() -> float:
    return round(asyncio.get_running_loop().time(), 6)


Piece = bytes | float | FriendliError
NEVER_ENDS: Final = 1e6


class FakeExchange:
    """A scripted reply. Its pieces are bytes, seconds to wait, or errors to raise."""

    def __init__(self, *pieces: Piece, status: int = 200, **headers: str) -> None:
        received = Headers((name.replace("_", "-"), value) for name, value in headers.items())
        self.head = ReplyHead(status, received)
        self.streaming = False
        self.on_abort: Callable[[FriendliError], None] | None = None
        self.loop = asyncio.get_running_loop()
        self.ends: list[str] = []
        """How it was ended: `finish` or `abort`."""
        self.woken: FriendliError | None = None
        self._pieces = list(pieces)
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        while (data := self.take()) is None:
            await self.wait_readable()
        return data

    def take(self) -> bytes | None:
        if self.woken is not None:
            raise self.woken
        if not self._pieces:
            return b""
        piece = self._pieces[0]
        if isinstance(piece, FriendliError):
            raise copy.copy(piece)
        if not isinstance(piece, bytes):
            return None
        del self._pieces[0]
        return piece

    def take_arrived(self) -> bytes:
        return b""

    def wait_readable(self) -> Awaitable[None]:
        self._waiter = waiter = self.loop.create_future()
        seconds = self._pieces.pop(0)
        assert isinstance(seconds, float | int)

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.loop.call_later(seconds, wake)
        return waiter

    async def read_all(self, limit: int) -> bytes:
        whole = b""
        while piece := await self.read():
            whole += piece
        self.finish()
        return whole

    async def read_some(self, limit: int, seconds: float | None = None) -> bytes:
        begun = b""
        try:
            async with asyncio.timeout(seconds):
                while piece := await self.read():
                    begun += piece
        except (FriendliError, TimeoutError):
            self.abort()
            return begun
        self.finish()
        return begun

    def abort_with(self, error: FriendliError) -> None:
        self.woken = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_abort is not None:
            self.on_abort(error)
        self.abort()

    def finish(self) -> None:
        self.ends.append("finish")

    def abort(self) -> None:
        self.ends.append("abort")


Answer = Callable[[DialContext], Awaitable[FakeExchange]]


class FakeTransport:
    """A scripted transport without sockets; see `friendli_async._core.net.transport.Transport`."""

    def __init__(self, *answers: Answer) -> None:
        self.closed = False
        self.sent_at: list[float] = []
        """When each request was sent."""
        self.requests: list[Request] = []
        self.exchanges: list[FakeExchange] = []
        self.in_use = 0
        self._answers = list(answers)

    async def send(self, request: Request, dial: DialContext) -> FakeExchange:
        self.sent_at.append(now())
        self.requests.append(request)
        answer = self._answers.pop(0)
        self.in_use += 1
        try:
            exchange = await answer(dial)
        finally:
            self.in_use -= 1
        self.exchanges.append(exchange)
        return exchange

    async def warm(self, url: str, dial: DialContext) -> None:
        raise APIConnectionError("there is no network", sent=False)

    def gauges(self) -> dict[asyncio.AbstractEventLoop, LoopGauges]:
        return {asyncio.get_running_loop(): LoopGauges(in_use=self.in_use)}

    def abort(self, reason: str) -> None:
        for exchange in self.exchanges:
            exchange.abort_with(APIConnectionError(reason))

    async def close(self) -> None:
        self.closed = True

    def abandon_after_fork(self) -> None:
        self.in_use = 0

    def discard(self) -> None:
        pass


if TYPE_CHECKING:  # they implement the protocols that the call loop uses
    _exchange: Exchange = FakeExchange()
    _transport: Transport = FakeTransport()


# --- answers ---------------------------------------------------------------------------------------------------------


def response(*pieces: Piece, status: int = 200, after: float = 0.0, **headers: str) -> Answer:
    """Replies; the headers arrive after `after` seconds."""

    async def answer(dial: DialContext) -> FakeExchange:
        connected(dial)
        await asyncio.sleep(after)
        return FakeExchange(*pieces, status=status, **headers)

    return answer


def failing(error: FriendliError, after: float = 0.0) -> Answer:
    """Raises an error, which also states whether the request was sent."""

    async def answer(dial: DialContext) -> FakeExchange:
        await asyncio.sleep(after)
        raise copy.copy(error)  # the call modifies it

    return answer


def hanging(phase: Any = "first_event") -> Answer:
    """Hangs in this phase of the attempt until the timeout."""

    async def answer(dial: DialContext) -> FakeExchange:
        if phase == "first_event":
            connected(dial)
        else:
            dial.clock.begin_phase(phase)
        await asyncio.sleep(NEVER_ENDS)
        raise AssertionError("no limit")

    return answer


def connected(dial: DialContext) -> None:
    """Marks the attempt as connected and its request as sent."""
    dial.connected = dial.clock.sent = True
    dial.clock.begin_phase("first_event")
