"""Talks to a model.

With a prompt, or something on standard input, it answers once; with both, the prompt stands first.
On a terminal without a prompt it is a conversation: Ctrl-D ends it.

The answer goes to standard output, what the model thinks to standard error. Ctrl-C stops the model
and keeps what it has said: a conversation goes on from there.

Exit status: 0 answered, 1 the call failed, 2 bad input (nothing was sent), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from friendli_async.chat.inputs import Conversation
from friendli_async.chat.replies import ChatChunk
from friendli_async.chat.resource import ChatStream
from friendli_async.cli import connection
from friendli_async.client import AsyncFriendli
from friendli_async.errors import ConfigurationError, FriendliError, StreamInterruptedError

if TYPE_CHECKING:
    import asyncio

__all__ = ["add_arguments", "run"]

_DIM: Final = ("\x1b[2m", "\x1b[0m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="what to ask; its words may stand alone")
    connection.add_model(parser)
    parser.add_argument("-s", "--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "-o",
        "--option",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="parameter of the call, as `-o temperature 0.2`; VALUE is JSON, or a word",
    )
    parser.add_argument(
        "-a",
        "--attach",
        action="append",
        default=[],
        metavar="FILE",
        help="image, sound, film or text to go with the prompt: a path, or a URL of an image",
    )
    parser.add_argument("--schema", metavar="FILE|JSON", help="JSON schema that the answer has to have")
    parser.add_argument("--no-stream", action="store_true", help="show the answer once it is whole")
    connection.add_deployment(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; gives its exit status."""
    return connection.run("chat", lambda: _chat(arguments))


async def _chat(arguments: argparse.Namespace) -> int:
    if arguments.model is None and arguments.deployment != "container":
        raise ConfigurationError(
            "which model? pass -m MODEL, or set FRIENDLI_MODEL; `friendli-async models` lists them"
        )
    options = _options(arguments)
    messages: Conversation = []
    if arguments.system is not None:
        messages.append({"role": "system", "content": arguments.system})
    async with AsyncFriendli() as client:
        talk = _Talk(client, arguments, options, messages)
        if not arguments.prompt and sys.stdin.isatty():
            return await _converse(talk, arguments)
        words = [" ".join(arguments.prompt)]
        if not sys.stdin.isatty():
            import asyncio  # not for --help, here and below

            words.append(await asyncio.to_thread(sys.stdin.read))
        prompt = "\n\n".join(word for word in words if word.strip())
        if not prompt and not arguments.attach:
            raise ConfigurationError("nothing to ask: pass a prompt, or write to standard input")
        messages.append({"role": "user", "content": await _content(prompt, arguments.attach)})
        return await talk.answer()


async def _converse(talk: _Talk, arguments: argparse.Namespace) -> int:
    """Asks for prompts until there are no more."""
    with suppress(ImportError):  # line editing; there is none on Windows
        import readline as _  # noqa: F401  # loading it is all that input() needs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's own waits for the loop, which input() holds up
    print(f"{arguments.model or arguments.deployment}: Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
    attached: list[str] = arguments.attach
    while True:
        try:
            prompt = input("> ")  # noqa: ASYNC250  # it has the terminal, and nothing else goes on meanwhile
        except EOFError:
            print(file=sys.stderr)
            return 0
        if not prompt.strip():
            continue
        talk.messages.append({"role": "user", "content": await _content(prompt, attached)})
        attached = []
        try:
            await talk.answer()
        except FriendliError as error:
            print(f"friendli-async chat: {error}", file=sys.stderr)
            talk.messages.pop()


class _Talk:
    """A conversation with a model.

    Attributes:
        messages: What has been said.
    """

    def __init__(
        self, client: AsyncFriendli, arguments: argparse.Namespace, options: dict[str, Any], messages: Conversation
    ) -> None:
        self.messages = messages
        self._chat: Any = getattr(client, arguments.deployment).chat
        self._options = options
        self._streams = not arguments.no_stream

    async def answer(self) -> int:
        """Shows the answer to what has been said, and adds it. Ctrl-C ends it: 130, and what had come is kept."""
        import asyncio

        stream: ChatStream = self._chat.stream(messages=self.messages, **self._options)
        page = _Page()
        text: list[str] = []
        with _interruption() as interrupted:
            reading = asyncio.ensure_future(self._show(stream, page, text))
            stopping = asyncio.ensure_future(interrupted.wait())
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not reading.done():
                await stream.stop()
            await reading
        page.end()
        if text:
            self.messages.append({"role": "assistant", "content": "".join(text)})
        return connection.INTERRUPTED if interrupted.is_set() else 0

    async def _show(self, stream: ChatStream, page: _Page, text: list[str]) -> None:
        if not self._streams:
            try:
                reply = await stream.result()
            except StreamInterruptedError:
                if stream.outcome != "stopped":
                    raise
                return  # stopped before anything had come
            page.think(reply.reasoning)
            page.say(reply.text)
            text.append(reply.text)
            return
        async for chunk in stream:
            self._show_chunk(chunk, page, text)

    @staticmethod
    def _show_chunk(chunk: ChatChunk, page: _Page, text: list[str]) -> None:
        page.think(chunk.reasoning)
        if chunk.text:
            text.append(chunk.text)
            page.say(chunk.text)


@contextmanager
def _interruption() -> Generator[asyncio.Event]:
    """Set by Ctrl-C, which does nothing else meanwhile."""
    import asyncio

    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, event.set)
    except NotImplementedError:  # Windows: there Ctrl-C ends the program
        yield event
        return
    try:
        yield event
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Page:
    """Where the answer goes, piece by piece: what is said to stdout, what is thought, dimmed, to stderr."""

    def __init__(self) -> None:
        self._colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._thinking = False
        self._last = "\n"

    def think(self, text: str) -> None:
        """Shows what the model thinks."""
        if not text:
            return
        before, after = _DIM if self._colour else ("", "")
        with suppress(OSError):  # nobody has to look
            print(f"{before}{text}{after}", end="", file=sys.stderr, flush=True)
        self._thinking = True

    def say(self, text: str) -> None:
        """Shows what the model says."""
        if not text:
            return
        if self._thinking:
            self._thinking = False
            with suppress(OSError):
                print("\n", file=sys.stderr, flush=True)
        print(text, end="", flush=True)
        self._last = text[-1]

    def end(self) -> None:
        """Ends the line."""
        if self._last != "\n":
            print(flush=True)


# --- what is asked ---------------------------------------------------------------------------------------------------


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parameters of the call."""
    options: dict[str, Any] = {} if arguments.model is None else {"model": arguments.model}
    for key, value in arguments.option:
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    if arguments.schema is not None:
        schema = {"name": "answer", "schema": _schema(arguments.schema)}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    return options


def _schema(given: str) -> Any:
    text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--schema is no JSON: {error}") from None


async def _content(prompt: str, attached: list[str]) -> Any:
    """A user's message: text, or parts where something is attached."""
    if not attached:
        return prompt
    parts: list[Any] = [await _part(name) for name in attached]
    return [*parts, {"type": "text", "text": prompt}] if prompt else parts


async def _part(name: str) -> Any:
    import mimetypes

    from friendli_async import media

    source = name if name.startswith(("http://", "https://")) else Path(name)
    kind = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    if kind in {"audio", "video"}:
        return await (media.audio if kind == "audio" else media.video)(source)
    if kind == "image" or isinstance(source, str):
        return await media.image(source)
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return await media.image(source)  # by its first bytes; what is none is refused there
    return {"type": "text", "text": f"{source.name}:\n\n{text}"}
