"""`make demo`: chat with a real model, tool-assisted chat and structured output, on one page.

    python -m friendli_async.demo [--embedded] [--gguf FILE] [--question TEXT]... [--real] [--model NAME]

Nothing leaves this machine unless `FRIENDLI_TOKEN` is set and you confirm with yes, or `--real` is given.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

import msgspec

from friendli_async import AsyncFriendli, ChatChunk, FriendliError, OutputError, ToolStatus, __version__
from friendli_async._json import encode_json
from friendli_async.chat.collector import ChatStream
from friendli_async.demo.engine import EngineUnavailable, LocalEngine
from friendli_async.demo.page import Page
from friendli_async.demo.weights import GEMMA_STOP, GEMMA_TERMS
from friendli_async.replies import Timing, Usage
from friendli_async.testing.server import FriendliServer

_QUESTIONS: Final = ("What is the capital of France?", "Why do people like music?")
_SUM: Final = "What is (17 + 25) * 3?"
_MODEL: Final = "meta-llama-3.1-8b-instruct"
_TOOL_REQUEST: Final = {
    "model": _MODEL,
    "max_tokens": 200,
    "messages": [{"role": "user", "content": _SUM}],
    "tools": [{"type": "math:calculator"}, {"type": "web:url"}],
}
_PLACE: Final = "Paris is the capital of France. It has the Louvre and the Eiffel Tower. Put that into JSON."
_PACE: Final = 0.04  # seconds between the events of the embedded server, so that streaming is visible
_INTERRUPTED: Final = 130  # the exit status of shells for Ctrl-C


_ShortText = Annotated[str, msgspec.Meta(max_length=40)]


class Place(msgspec.Struct):
    """A city."""

    name: _ShortText
    country: _ShortText
    is_capital: bool
    sights: Annotated[list[_ShortText], msgspec.Meta(min_length=1, max_length=3)]


@dataclass
class Stage:
    """The server of the first part: the engine or, if it is unavailable, the embedded server."""

    url: str
    name: str
    stop: Sequence[str]
    model: str | None

    @classmethod
    async def set(cls, page: Page, options: argparse.Namespace, server: FriendliServer, exits: AsyncExitStack) -> Self:
        """Start the engine and describe it, or explain why the embedded server is used instead."""
        echo = cls(server.url, "echo", (), _MODEL)
        if options.embedded:
            page.line("Using the embedded server (--embedded), which repeats the prompt.", "yellow")
            return echo
        page.waiting("loading the model into llama.cpp")
        began = time.perf_counter()
        try:
            engine = await exits.enter_async_context(LocalEngine(options.gguf))
        except EngineUnavailable as error:
            page.waited()
            page.line(f"The engine is not available: {error}.", "yellow")
            page.line("Using the embedded server instead, which only repeats the prompt.", "yellow")
            return echo
        page.waited()
        ready = f"llama.cpp at {engine.url}, ready in {time.perf_counter() - began:.1f} s, process {engine.pid}"
        if options.gguf is not None:
            page.line(f"{options.gguf}, {ready}", "dim")
            return cls(engine.url, "model", (), None)
        page.line(f"Gemma 3 270M (a small base model, 4 bit), {ready}", "dim")
        page.line(f"Google's Gemma terms apply to it: {GEMMA_TERMS}", "dim")
        return cls(engine.url, "gemma", GEMMA_STOP, None)


async def show_here(page: Page, options: argparse.Namespace) -> None:
    """Show the three parts that run only on this machine."""
    async with AsyncExitStack() as exits:
        server = await exits.enter_async_context(FriendliServer(pace=_PACE))
        page.section("1  Chat with a real model, on this machine")
        stage = await Stage.set(page, options, server, exits)
        # Explicit addresses and token: the environment variables for the real API are not used.
        client = await exits.enter_async_context(
            AsyncFriendli(server.token, server_url=server.url, container_url=stage.url)
        )
        page.code(
            "async with client.container.chat.stream(messages=[...]) as stream:",
            "    async for chunk in stream:",
            '        print(chunk.text, end="")',
        )
        for question in options.question or _QUESTIONS:
            messages = [{"role": "user", "content": question}]
            stream = client.container.chat.stream(
                model=stage.model,
                messages=messages,
                max_tokens=options.max_tokens,
                temperature=0.0,
                frequency_penalty=0.5,
                stop=stage.stop,
            )
            await show_chat(page, question, stage.name, stream)
        page.section("2  Tool-assisted chat: the model calls tools, the server runs them")
        page.line(
            f"Served by friendli_async.testing at {server.url}; the calculator computes, the other tool is canned.",
            "dim",
        )
        await show_tools(page, client)
        page.section("3  Structured output: the model fills a struct, field by field")
        await show_value(page, client, stage)


async def show_chat(page: Page, question: str, name: str, stream: ChatStream) -> None:
    """Show one question, the answer as it streams, and the figures."""
    page.question(question)
    page.speaker(name, "cyan")
    async with stream:
        async for chunk in stream:
            page.text(chunk.text or chunk.reasoning)
    page.end_text()
    show_figures(page, stream.timing, stream.usage)
    page.blank()


def show_figures(page: Page, timing: Timing, usage: Usage | None) -> None:
    """Show the figures of a stream: time to first token, tokens per second, usage."""
    figures: list[tuple[str, str]] = []
    if timing.first_text is not None:
        figures.append((f"{timing.first_text * 1e3:.0f} ms", "to first token"))
    if timing.tokens_per_second is not None:
        figures.append((f"{timing.tokens_per_second:.1f}", "tokens/s"))
    if usage is not None:
        figures += [(str(usage.completion_tokens), "tokens out"), (str(usage.prompt_tokens), "tokens in")]
    page.figures(figures)


async def show_tools(page: Page, client: AsyncFriendli) -> None:
    """Show a tool-assisted chat: tokens and tool statuses in the order of their arrival."""
    page.code(
        "async for event in client.serverless.tool_assisted_chat_completion(",
        "    tool_assisted_completion_request_body={...},",
        "):",
        "    match event:",
        "        case ChatChunk(): ...",
        "        case ToolStatus(name=name, status=status): ...",
    )
    page.question(_SUM)
    call = client.serverless.tool_assisted_chat_completion(
        tool_assisted_completion_request_body=_TOOL_REQUEST, x_friendli_team=None, retries=None, server_url=None
    )
    stream = aiter(call)
    async for event in stream:
        match event:
            case ToolStatus():
                page.end_text()
                show_status(page, event)
            case ChatChunk(text=piece):
                if piece and not page.is_speaking:
                    page.speaker("model", "cyan")
                page.text(piece)
    page.end_text()
    show_figures(page, stream.timing, stream.usage)
    page.blank()


async def show_value(page: Page, client: AsyncFriendli, stage: Stage) -> None:
    """Show the fields of a struct, each as soon as it is complete, and then the validated value."""
    page.code(
        "async with client.container.chat.parse_stream(Place, ...) as stream:",
        "    async for snapshot in stream.snapshots(): ... # a dict that grows",
        "place = (await stream.result()).value             # a Place",
    )
    page.question(_PLACE)
    messages = [{"role": "user", "content": _PLACE}]
    stream = client.container.chat.parse_stream(
        Place, model=stage.model, messages=messages, max_tokens=300, temperature=0.0
    )
    shown = 0
    try:
        async with stream:
            async for snapshot in stream.snapshots():
                whole = len(snapshot) - 1  # the last field may still be incomplete
                shown = show_fields(page, snapshot, shown, whole)
        place = (await stream.result()).value
    except OutputError as error:
        page.line(f"{type(error).__name__}: {error}", "yellow")
    else:
        show_fields(page, msgspec.to_builtins(place), shown, len(place.__struct_fields__))
        page.figures([(type(place).__name__, "checked")])
    page.blank()


def show_fields(page: Page, fields: dict[str, Any], shown: int, whole: int) -> int:
    """Show the complete fields that have not been shown; return how many have been."""
    for name in list(fields)[shown:whole]:
        page.status("✓", name, encode_json(fields[name]).decode(), "green")
    return max(shown, whole)


def show_status(page: Page, event: ToolStatus) -> None:
    """Show the status of a tool in one line."""
    match event.status:
        case "STARTED":
            symbol, style = "⚙", "yellow"
            text = ", ".join(f"{parameter.name}={parameter.value}" for parameter in event.parameters)
        case "ENDED":
            # The API encodes it twice; the embedded server serves this scene, so that it always does.
            symbol, style, text = "✓", "green", msgspec.json.decode(event.result or '""', type=str)
        case "ERRORED":
            symbol, style, text = "✗", "red", (event.error and event.error.msg) or ""
        case _:
            symbol, style, text = "…", "yellow", event.message or ""
    page.status(symbol, event.name, f"{event.status:<9} {text}", style)


async def show_real(page: Page, model: str, question: str) -> None:
    """Show a chat with the real API, using the token and team of the environment."""
    async with AsyncFriendli() as client:
        messages = [{"role": "user", "content": question}]
        stream = client.serverless.chat.stream(model=model, messages=messages, max_tokens=200)
        await show_chat(page, question, "friendli", stream)


def wants_real(page: Page, options: argparse.Namespace) -> bool:
    """Return whether to call the real API, which costs money: only after explicit confirmation."""
    if options.real:
        return True
    if not os.environ.get("FRIENDLI_TOKEN"):
        page.line("With FRIENDLI_TOKEN set, this page ends with the real API, if you say yes.", "dim")
        return False
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        page.line("FRIENDLI_TOKEN is set: with --real, the same chat goes to the real API.", "dim")
        return False
    page.line(f"FRIENDLI_TOKEN is set. Ask {options.model} on the real API, too? It is charged to your account.")
    try:
        return input("  [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def show(page: Page, options: argparse.Namespace) -> int:
    """Show the whole page; return the exit status."""
    page.title(f"friendli_async {__version__}", "an async streaming client for Friendli's inference API")
    asyncio.run(show_here(page, options))
    if not wants_real(page, options):
        page.line("Next: README.md has recipes, examples/ has programs.", "dim")
        return 0
    page.section(f"4  The real API: {options.model}")
    try:
        asyncio.run(show_real(page, options.model, (options.question or _QUESTIONS)[-1]))
    except FriendliError as error:
        page.blank()
        page.line(f"{type(error).__name__}: {error}", "red")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: The command line without the program name; by default that of the process.

    Returns:
        The exit status: 0, 1 when the real API failed, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m friendli_async.demo", description="The client at work.")
    parser.add_argument("--embedded", action="store_true", help="use the embedded server instead of a real model")
    parser.add_argument("--gguf", metavar="FILE", help="use this model instead of Gemma 3 270M")
    parser.add_argument("--question", action="append", metavar="TEXT", help="what to ask; may be given several times")
    parser.add_argument("--max-tokens", type=int, default=100, help="longest answer (default: %(default)s)")
    parser.add_argument("--real", action="store_true", help="call the real API, too, with FRIENDLI_TOKEN")
    parser.add_argument("--model", default=_MODEL, help="the real API's model (default: %(default)s)")
    options = parser.parse_args(arguments)
    _keep_proxies_off_loopback()
    page = Page()
    try:
        return show(page, options)
    except KeyboardInterrupt:
        page.blank()
        page.line("Stopped.", "dim")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has exited (`make demo | head`); Python would raise again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _keep_proxies_off_loopback() -> None:
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))


if __name__ == "__main__":
    sys.exit(main())
