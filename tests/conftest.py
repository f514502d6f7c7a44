"""Fixtures for every test."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aioresponses import aioresponses
from hypothesis import settings
from strategies import deterministic
from support.clock import Clock
from support.embedded_server import AUTH, RawClient
from support.engine import MODEL, require_engine
from support.mock_http import mocked_http
from support.sockets import client_of

from friendli_async import AsyncFriendli
from friendli_async.demo.engine import LocalEngine
from friendli_async.testing import FriendliServer

# Also where a test says nothing: hypothesis' own profile draws at random, and fails what takes 200 ms.
settings.register_profile("deterministic", deterministic)
settings.load_profile("deterministic")


class OnUvloop:
    """A plugin of pytest-asyncio: what a test awaits runs on uvloop."""

    @staticmethod
    def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        import uvloop

        return {"uvloop": uvloop.new_event_loop}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the event loop of the tests")


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background job ignores Ctrl-C, and so would the programs that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--loop") == "uvloop":
        config.pluginmanager.register(OnUvloop())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Ten thousand tests are made here, and none goes: what looks for garbage meanwhile finds none, for seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name binary values by their parameter: the workers of one run must agree, and gzip writes the time of day."""
    return argname if isinstance(val, bytes) and not (val.isascii() and len(val) <= 60) else None


@pytest.fixture(autouse=True, scope="module")
def what_is_loaded_stays() -> None:
    """Without it each look of a test at all objects, and each `gc.collect()`, takes milliseconds, not 200 of them.

    For each module of tests anew: the ones before have loaded more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings, or uses the token, of whoever runs it."""
    for name in ("FRIENDLI_TOKEN", "FRIENDLI_TEAM", "FRIENDLI_SERVER_URL", "FRIENDLI_CONTAINER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    """The embedded server, in the loop of the test."""
    async with FriendliServer() as running:
        yield running


@pytest.fixture
def remote() -> Iterator[FriendliServer]:
    """The embedded server in a thread of its own, for tests that run loops or programs themselves."""
    with FriendliServer() as running:
        yield running


@pytest.fixture
def client_options() -> dict[str, Any]:
    """In what the `client` of a file differs from one without retries: a file overrides this."""
    return {}


@pytest.fixture
async def client(server: FriendliServer, client_options: dict[str, Any]) -> AsyncIterator[AsyncFriendli]:
    """A client of `server`."""
    async with client_of(server.url, **client_options) as opened:
        yield opened


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's loop, which stands still from here on."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop's timers do not ask its time(), so its clock cannot be held")
    held = Clock(loop)
    monkeypatch.setattr(loop, "time", held)
    return held


@pytest.fixture
async def session(server: FriendliServer) -> AsyncIterator[aiohttp.ClientSession]:
    """What talks HTTP to `server` without this library."""
    async with aiohttp.ClientSession(server.url, headers=AUTH) as opened:
        yield opened


@pytest.fixture
async def raw_client(server: FriendliServer) -> AsyncIterator[RawClient]:
    """What talks bytes to `server`."""
    opened = await RawClient.connect(server)
    yield opened
    opened.abort()


@pytest.fixture
def garbage_is_collected() -> Iterator[None]:
    """What a test leaves to the collector warns in that test, not in a later one."""
    yield
    gc.collect()


@pytest.fixture
def mock_http() -> Iterator[aioresponses]:
    """The network replaced by a table of replies."""
    with mocked_http() as mock:
        yield mock


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights, as a file for llama.cpp."""
    require_engine()
    from support.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model") / f"{MODEL}.gguf")


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[LocalEngine]:
    """llama.cpp's server with the tiny model, shared by the tests: none of them may kill it."""
    with LocalEngine(tiny_model, threads=1) as running:
        yield running
