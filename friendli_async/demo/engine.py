"""A real language model on this machine: the HTTP server of llama.cpp, in a child process.

It works with `client.container.*`. It needs the extra `friendli_async[engine]`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Final, Self

from anyio import to_thread

from friendli_async.demo.engine_process import SETTINGS_VARIABLE
from friendli_async.demo.weights import GEMMA_CHAT_TEMPLATE, GEMMA_NAME, EngineUnavailable, gemma_weights

__all__ = ["EngineUnavailable", "LocalEngine"]

_PROGRAM: Final = Path(__file__).with_name("engine_process.py")
_STOP_GRACE: Final = 5.0  # seconds for a graceful exit, before it is killed


class LocalEngine:
    """A llama.cpp server on a free loopback port, as a context manager.

        async with LocalEngine() as engine, AsyncFriendli(container_url=engine.url) as client:
            reply = await client.container.chat.complete(messages=[...])

    A plain `with` works, too. The server runs in a child process that exits with this one, however this one exits.

    Args:
        model_path: A GGUF file. `None` means Gemma 3 270M with its chat template (`weights.gemma_weights`; Google's
            Gemma terms apply).
        name: The name of the model; by default that of the file without its extension.
        chat_template: A Jinja template that converts messages to a prompt; by default that of the model.
        context: Tokens of context, shared by the parallel requests.
        parallel: Requests generated in parallel; further ones wait.
        threads: Threads for computation; all cores but one by default.
        api_key: The token that requests must have; none by default.
        start_timeout: Maximum time to load the model, in seconds.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        chat_template: str | None = None,
        context: int = 16384,
        parallel: int = 4,
        threads: int | None = None,
        api_key: str | None = None,
        start_timeout: float = 120.0,
    ) -> None:
        self._model_path = None if model_path is None else Path(model_path)
        if self._model_path is None:
            name = name or GEMMA_NAME
            chat_template = chat_template or GEMMA_CHAT_TEMPLATE
        self._settings = {
            "name": name or Path(model_path or "").stem,
            "chat_template": chat_template,
            "context": context,
            "parallel": parallel,
            "threads": threads or max(1, (os.cpu_count() or 2) - 1),
            "api_key": api_key,
        }
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes]
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The address for `container_url`, such as `http://127.0.0.1:34141`.

        Raises:
            RuntimeError: The engine was not started.
        """
        if self._url is None:
            raise RuntimeError("the engine is not running: enter it with `async with` or `with`")
        return self._url

    @property
    def pid(self) -> int:
        """The process ID of the server.

        Raises:
            RuntimeError: The engine is not running.
        """
        return self._running().pid

    def kill(self) -> None:
        """Kill the server immediately, even during requests.

        Raises:
            RuntimeError: The engine is not running.
        """
        process = self._running()
        process.kill()
        process.wait()

    def start(self) -> None:
        """Start the server and wait until it accepts requests; `stop` must follow.

        Raises:
            EngineUnavailable: The engine is not installed, or could not load the model.
        """
        self._spawn(self._model())
        try:
            self._await_address()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and wait until it has exited; does nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        with process, self._log:  # closes the pipes without waiting for what else may have inherited them
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_STOP_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
        self._url = None

    def __enter__(self) -> Self:
        """Start the server; see `start`."""
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the server."""
        self.stop()

    async def __aenter__(self) -> Self:
        """Start the server; see `start`. The event loop is not blocked while the model loads."""
        self._spawn(await to_thread.run_sync(self._model))
        try:
            await to_thread.run_sync(self._await_address)
        except BaseException:
            # Also when cancelled: killing the process ends the waiting thread.
            self._running().kill()
            self.stop()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop the server."""
        await to_thread.run_sync(self.stop)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the engine is not running")
        return self._process

    def _model(self) -> Path:
        if importlib.util.find_spec("xllamacpp") is None:
            raise EngineUnavailable("llama.cpp's server is not installed: pip install 'friendli_async[engine]'")
        path = gemma_weights() if self._model_path is None else self._model_path
        if not path.is_file():
            raise EngineUnavailable(f"there is no model file at {path}")
        return path

    def _spawn(self, model_path: Path) -> None:
        if self._process is not None:
            raise RuntimeError("the engine is already running")
        settings = json.dumps({**self._settings, "model_path": str(model_path)})
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in stop()
        self._process = subprocess.Popen(
            # -P: this directory must not shadow the packages that the child imports.
            [sys.executable, "-P", str(_PROGRAM)],
            env={**os.environ, SETTINGS_VARIABLE: settings},  # all users can see the arguments, and it has the API key
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def _await_address(self) -> None:
        """Read the line that the child writes when it listens; if it exits or the timeout expires, the pipe closes."""
        process = self._running()
        assert process.stdout is not None
        timer = threading.Timer(self._start_timeout, process.kill)
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()
        if not line.endswith(b"\n"):
            raise EngineUnavailable(f"llama.cpp's server did not start: {self._last_log_line()}")
        self._url = line.decode().strip()

    def _last_log_line(self) -> str:
        status = self._running().wait()
        self._log.seek(0)
        lines = self._log.read()[-4096:].decode(errors="replace").split("\n")
        text = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"{text} (exit status {status})"
