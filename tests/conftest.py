"""Fixtures for every test."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from aioresponses import aioresponses
from support.engine import MODEL, require_engine
from support.mock_http import mocked_http

from friendli_async.demo.engine import LocalEngine


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would the programs that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name binary values by their parameter: the workers of one run must agree, and gzip writes the time of day."""
    return argname if isinstance(val, bytes) and not (val.isascii() and len(val) <= 60) else None


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings, or uses the token, of whoever runs it."""
    for name in ("FRIENDLI_TOKEN", "FRIENDLI_TEAM", "FRIENDLI_SERVER_URL", "FRIENDLI_CONTAINER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


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
