"""Real ASGI servers in subprocesses, and clients that disconnect."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent.parent
COMMANDS: Final = {
    "uvicorn": ("-m", "uvicorn", "{app}", "--port", "{port}", "--log-level", "warning"),
    "hypercorn": ("-m", "hypercorn", "{app}", "-b", "127.0.0.1:{port}", "--graceful-timeout", "1"),
    "granian": ("-m", "granian", "{app}", "--interface", "asgi", "--port", "{port}", "--log-level", "warning"),
}


class AppProcess:
    """A running server with an app."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.name, self.process, self.port, self._log_path = name, process, port, log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    async def terminate(self) -> int:
        """Sends SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 60)


def free_port() -> int:
    """Returns a port below those that Linux assigns by itself, which no other test gets before the server listens."""
    for port in random.sample(range(10000, 32000), 100):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@asynccontextmanager
async def serving(
    name: str, upstream: str, log: Path, app: str = "support.relaying_app:app", path: Path = TESTS
) -> AsyncIterator[AppProcess]:
    """Runs the app under one of the servers, with `upstream` as Friendli's URL."""
    port = free_port()
    command = [part.format(app=app, port=port) for part in COMMANDS[name]]
    paths = os.pathsep.join([str(path), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    variables = {"FRIENDLI_TOKEN": "test-token", "FRIENDLI_SERVER_URL": upstream, "PYTHONPATH": paths}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env={**os.environ, **variables}, stdout=output, stderr=output, cwd=TESTS
        )
    running = AppProcess(name, process, port, log)
    try:
        async with asyncio.timeout(60):
            while not await _answers(port):
                assert process.returncode is None, running.log
                await asyncio.sleep(0.05)  # there is no event for a process that starts to listen
        yield running
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 60)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


class Browser:
    """A connection that requests one page, and reads only on demand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def request(cls, port: int, path: str, body: bytes | None = None) -> "Browser":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"\r\n" + (body or b""))
        return cls(reader, writer)

    async def page(self) -> tuple[str, bytes]:
        """Reads to the end; returns head and body."""
        head, _, body = (await asyncio.wait_for(self.reader.read(), 60)).partition(b"\r\n\r\n")
        return head.decode(), body

    def disconnect(self) -> None:
        self.writer.transport.abort()
