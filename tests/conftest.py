"""Fixtures for every test."""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aioresponses import aioresponses
from hypothesis import settings

pytest.register_assert_rewrite("support")  # before it is imported; else its asserts explain nothing, and -O drops them

from strategies import deterministic
from support.clock import Clock
from support.embedded_server import AUTH, RawClient
from support.engine import MODEL, require_engine
from support.mock_http import mocked_http
from support.sockets import client_of

from friendli_async import AsyncFriendli
from friendli_async._core.net import clock as net_clock
from friendli_async.demo.engine import LocalEngine
from friendli_async.testing import FriendliServer

# The default for every test: hypothesis' own profile is random, and has a deadline of 200 ms.
settings.register_profile("deterministic", deterministic)
settings.load_profile("deterministic")


class OnUvloop:
    """A pytest-asyncio plugin that runs tests on uvloop."""

    @staticmethod
    def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        import uvloop

        return {"uvloop": uvloop.new_event_loop}


class LoopErrors(logging.Handler):
    """What asyncio has logged as errors: exceptions that reach nobody, such as those of callbacks."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


LOOP_ERRORS: Final = LoopErrors()

# Messages of short timeouts must not say that the loop was blocked, also if the machine stops for some seconds.
net_clock._BLOCKED_SECONDS = 8.0  # type: ignore[misc]  # Final for everyone else


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the event loop of the tests")


SETTINGS = ("FRIENDLI_TOKEN", "FRIENDLI_TEAM", "FRIENDLI_SERVER_URL", "FRIENDLI_CONTAINER_URL", "SSL_CERT_DIR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
OUTPUT = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "PYTEST_ADDOPTS")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the settings of the user from the tests and the programs that they start, and restore Ctrl-C for these.

    In a shell's background job, they would inherit SIG_IGN. Loading the machine's certificate authorities, as aiohttp
    does, would take a quarter of a short program's time.
    """
    for name in (*SETTINGS, *OUTPUT, *PROXIES, *map(str.lower, PROXIES)):
        os.environ.pop(name, None)
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support" / "no_authority.pem")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--loop") == "uvloop":
        config.pluginmanager.register(OnUvloop())
    logging.getLogger("asyncio").addHandler(LOOP_ERRORS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Fail the test if asyncio has logged an error."""
    yield
    messages = LOOP_ERRORS.messages.copy()
    LOOP_ERRORS.messages.clear()
    assert messages == []


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Disable the garbage collector while pytest collects ten thousand tests: it takes seconds and finds nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name binary values by their parameter: ids must agree between workers, and gzip embeds a timestamp."""
    return argname if isinstance(val, bytes) and not (val.isascii() and len(val) <= 60) else None


@pytest.fixture
def loop_errors() -> list[str]:
    """What asyncio has logged as errors during the test, which clears it if that was expected."""
    return LOOP_ERRORS.messages


@pytest.fixture(autouse=True, scope="module")
def freeze_loaded_objects() -> None:
    """Freeze what is loaded: `gc.collect()` and searches of all objects then take milliseconds instead of 200.

    Once per test module, because earlier ones have loaded more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    """The embedded server in the event loop of the test."""
    async with FriendliServer() as running:
        yield running


@pytest.fixture
def remote() -> Iterator[FriendliServer]:
    """The embedded server in a thread, for tests that run event loops or subprocesses themselves."""
    with FriendliServer() as running:
        yield running


@pytest.fixture
def client_options() -> dict[str, Any]:
    """Options of the `client` fixture, in addition to no retries; test modules override this."""
    return {}


@pytest.fixture
async def client(server: FriendliServer, client_options: dict[str, Any]) -> AsyncIterator[AsyncFriendli]:
    """A client of `server`."""
    async with client_of(server.url, **client_options) as opened:
        yield opened


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop, stopped from now on."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop's timers do not ask its time(), so its clock cannot be held")
    held = Clock(loop)
    monkeypatch.setattr(loop, "time", held)
    return held


@pytest.fixture
async def session(server: FriendliServer) -> AsyncIterator[aiohttp.ClientSession]:
    """An aiohttp session for `server`, without this library."""
    async with aiohttp.ClientSession(server.url, headers=AUTH) as opened:
        yield opened


@pytest.fixture
async def raw_client(server: FriendliServer) -> AsyncIterator[RawClient]:
    """A raw TCP client of `server`."""
    opened = await RawClient.connect(server)
    yield opened
    opened.abort()


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A loopback port that refuses connections: it is bound, so that no other socket gets it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def collect_garbage() -> Iterator[None]:
    """Collect garbage after the test, so that its ResourceWarnings are attributed to it."""
    yield
    gc.collect()


@pytest.fixture
def mock_http() -> Iterator[aioresponses]:
    """aioresponses, in place of the network."""
    with mocked_http() as mock:
        yield mock


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights, as a GGUF file."""
    require_engine()
    from support.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model") / f"{MODEL}.gguf")


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[LocalEngine]:
    """llama.cpp's server with the tiny model, shared by all tests, which must not kill it."""
    with LocalEngine(tiny_model, threads=1) as running:
        yield running
