"""Talks to a model.

With a prompt, or text on standard input, it answers once; with both, the prompt comes first.
On a terminal without a prompt it starts a conversation, which Ctrl-D ends.

The answer goes to standard output, reasoning to standard error. Ctrl-C stops the model and keeps the
answer so far, from where a conversation continues.

Exit status: 0 answered, 1 the call failed or the output cannot be written, 2 bad input (nothing was
sent), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from friendli_async._core.text import join_text, split_surrogate
from friendli_async.chat.collector import ChatStream
from friendli_async.chat.inputs import Conversation
from friendli_async.cli import INTERRUPTED, connection
from friendli_async.client import AsyncFriendli
from friendli_async.errors import ArgumentError, ConfigurationError, FriendliError, StreamInterruptedError

_DIM: Final = ("\x1b[2m", "\x1b[0m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="the prompt; quotes are optional")
    connection.add_model(parser)
    parser.add_argument("-s", "--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "-o",
        "--option",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="parameter of the call, as `-o temperature 0.2`; VALUE is JSON, or plain text",
    )
    parser.add_argument(
        "-a",
        "--attach",
        action="append",
        default=[],
        metavar="FILE",
        help="image, audio, video or text file to send with the prompt: a path, or the URL of an image",
    )
    parser.add_argument("--schema", metavar="FILE|JSON", help="JSON schema of the answer")
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")
    connection.add_deployment(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    return connection.run("chat", lambda: _chat(arguments))


async def _chat(arguments: argparse.Namespace) -> int:
    # asyncio's handler cancels this task at its next turn: it could not end a blocking read.
    if not connection.is_ignored(signal.SIGINT):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments.model is None and arguments.deployment != "container":
        raise ConfigurationError("no model: pass -m MODEL, or set FRIENDLI_MODEL (`friendli-async models` lists them)")
    connection.check_token(arguments.deployment)
    messages: Conversation = []
    call = {**_options(arguments), "messages": messages}
    if arguments.system is not None:
        messages.append({"role": "system", "content": connection.utf8(arguments.system)})
    async with AsyncFriendli() as client:
        answer = partial(_answer, client, arguments, call)
        if not arguments.prompt and sys.stdin.isatty():
            return await _converse(answer, messages, arguments)
        texts = [" ".join(arguments.prompt)]
        if not sys.stdin.isatty():
            texts.append(sys.stdin.read())  # not in a thread, which would block the exit after Ctrl-C
        prompt = "\n\n".join(text for text in texts if text.strip())
        if not prompt and not arguments.attach:
            raise ConfigurationError("no prompt: pass one, or write it to standard input")
        messages.append({"role": "user", "content": await _content(prompt, arguments.attach)})
        return await answer()


async def _converse(answer: Callable[[], Awaitable[int]], messages: Conversation, arguments: argparse.Namespace) -> int:
    """Reads prompts and answers them until the input ends."""
    with suppress(ImportError):  # line editing; not available on Windows
        import readline as _  # noqa: F401  # importing it enables line editing in input()
    print(f"{arguments.model or arguments.deployment}: Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
    attached: list[str] = arguments.attach
    while True:
        try:
            prompt = input("> ")  # noqa: ASYNC250  # nothing else runs in the loop meanwhile
        except EOFError:
            print(file=sys.stderr)
            return 0
        if not prompt.strip():
            continue
        messages.append({"role": "user", "content": await _content(prompt, attached)})
        asked = len(messages)
        try:
            await answer()
        except FriendliError as error:
            print(f"friendli-async chat: {error}", file=sys.stderr)
        if len(messages) == asked:  # without an answer: many chat templates reject two prompts in a row
            messages.pop()
        else:
            attached = []


async def _answer(client: AsyncFriendli, arguments: argparse.Namespace, call: dict[str, Any]) -> int:
    """Prints the answer and appends it to the messages, even if partial. Returns 130 if Ctrl-C stopped it."""
    import asyncio  # deferred: --help does not need it

    stream: ChatStream = getattr(client, arguments.deployment).chat.stream(**call)
    output = _Output()
    stops: list[asyncio.Task[None]] = []
    with connection.on_signals(lambda _: stops.append(asyncio.create_task(stream.stop())), signal.SIGINT):
        try:
            await (_show_whole if arguments.no_stream else _show)(stream, output)
        finally:
            output.end_line()  # also before an error message
    await asyncio.gather(*stops)
    if answered := join_text(output.pieces):
        call["messages"].append({"role": "assistant", "content": answered})
    return INTERRUPTED if stops else 0


async def _show(stream: ChatStream, output: _Output) -> None:
    async for chunk in stream:
        output.write_reasoning(chunk.reasoning)
        output.write_text(chunk.text)


async def _show_whole(stream: ChatStream, output: _Output) -> None:
    try:
        reply = await stream.result()
    except StreamInterruptedError:
        if stream.outcome != "stopped":
            raise
        return  # stopped before the answer was complete
    output.write_reasoning(reply.reasoning)
    output.write_text(reply.text)


class _Output:
    """Prints an answer as it arrives: text to stdout, reasoning, dimmed, to stderr."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        """The pieces of the answer, as they came."""
        self._colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._thinking = False
        self._last = "\n"
        self._half_thought = self._half = ""  # half a character, which the next piece completes

    def write_reasoning(self, text: str) -> None:
        """Prints a piece of the reasoning."""
        if text:
            text, self._half_thought = split_surrogate(self._half_thought, text)
        text = connection.printable(text, sys.stderr)
        if not text:
            return
        before, after = _DIM if self._colour else ("", "")
        with suppress(OSError):  # stderr may be closed
            print(f"{before}{text}{after}", end="", file=sys.stderr, flush=True)
        self._thinking = True

    def write_text(self, text: str) -> None:
        """Prints a piece of the answer."""
        if text:
            self.pieces.append(text)
            text, self._half = split_surrogate(self._half, text)
        self._write(text)

    def _write(self, text: str) -> None:
        text = connection.printable(text, sys.stdout)
        if not text:
            return
        if self._thinking:
            self._thinking = False
            with suppress(OSError):
                print("\n", file=sys.stderr, flush=True)
        print(text, end="", flush=True)
        self._last = text[-1]

    def end_line(self) -> None:
        """Ends the line of reasoning or text that was printed last."""
        self._write(self._half)
        if self._thinking:
            with suppress(OSError):
                print(file=sys.stderr, flush=True)
        if self._last != "\n":
            print(flush=True)


# --- request ---------------------------------------------------------------------------------------------------------


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the parameters of the call."""
    options: dict[str, Any] = {} if arguments.model is None else {"model": arguments.model}
    for key, value in arguments.option:
        if key == "messages":
            raise ConfigurationError("-o cannot set messages: pass a prompt, and -s for a system message")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    if arguments.schema is not None:
        schema = {"name": "answer", "schema": _schema(arguments.schema)}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    return options


def _schema(argument: str) -> Any:
    text = argument if argument.lstrip().startswith("{") else Path(argument).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--schema is not valid JSON: {error}") from None


async def _content(prompt: str, attached: list[str]) -> Any:
    """Returns the content of a user message: text, or parts if there are attachments."""
    prompt = connection.utf8(prompt)
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
        return {"type": "text", "text": f"{source.name}:\n\n{source.read_text(encoding='utf-8')}"}
    except UnicodeDecodeError:
        pass
    try:
        return await media.image(source)  # detects the format by its first bytes
    except ArgumentError as error:
        raise ConfigurationError(f"{name} is neither UTF-8 text nor a supported image: {error}") from None
