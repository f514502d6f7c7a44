"""The examples and the README's snippets do what they say, against the embedded server."""

import ast
import asyncio
import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

import friendli_async
from friendli_async.testing import FriendliServer, chunk, cut, error_data, script, stall, status, text

ROOT: Final = Path(__file__).parent.parent
EXAMPLES: Final = sorted((ROOT / "examples").glob("*.py"))
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def server(remote: FriendliServer) -> FriendliServer:
    return remote


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments]


def environment(server: FriendliServer, **more: str) -> dict[str, str]:
    return {**os.environ, "FRIENDLI_TOKEN": "test-token", "FRIENDLI_SERVER_URL": server.url, **more}


def run(server: FriendliServer, name: str, *arguments: str) -> str:
    """What an example prints. Warnings are errors, and stderr stays empty."""
    done = subprocess.run(
        command(name, *arguments), env=environment(server), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short_and_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 40
    assert ast.get_docstring(ast.parse(source))


def test_stream_loop_streams_and_remembers_the_conversation(server: FriendliServer) -> None:
    server.enqueue(text("Be", "cause."), text("Red."))
    assert run(server, "stream_loop.py", "Why?", "And at dusk?") == (
        "> Why?\nBecause.\n(1 + 2 tokens)\n> And at dusk?\nRed.\n(1 + 1 tokens)\n"
    )
    first, second = (request.json_object["messages"] for request in server.requests)
    assert [message["role"] for message in first] == ["system", "user"]
    assert [message["content"] for message in second[1:]] == ["Why?", "Because.", "And at dusk?"]
    assert server.connections == 1


def test_stream_loop_passes_the_checks_of_the_api(server: FriendliServer) -> None:
    printed = run(server, "stream_loop.py")
    assert printed.count("> ") == 2
    assert [request.status for request in server.requests] == [200, 200]


def test_tool_assisted_chat_shows_the_tool_and_the_answer(server: FriendliServer) -> None:
    printed = run(server, "tool_assisted_chat.py")
    assert "[math:calculator(" in printed
    assert "23" in printed.partition(" gives ")[2]
    [request] = server.requests
    assert request.path == "/serverless/tools/v1/chat/completions"
    assert request.json_object["tools"] == [{"type": "math:calculator"}, {"type": "web:url"}]


def test_retries_and_errors_tells_a_retry_and_the_reply(server: FriendliServer) -> None:
    server.enqueue(status(429, retry_after=0, message="slow down"), text("Once"))
    printed = run(server, "retries_and_errors.py")
    assert re.search(r"retrying in \d\.\d\d s after RateLimitError: 429 slow down", printed)
    assert "'Once', 2 attempts, request req-000002" in printed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (status(429, retry_after=3600), "come back in 3600.0 s"),
        (status(401, message="no such token"), "refused with 401 (None): no such token, request req-000001"),
        (script(chunk("Once upon"), cut()), "broke off after 'Once upon'"),
        (
            script(chunk("Once"), error_data({"message": "overloaded", "code": 503})),
            "refused with 503 (503): overloaded",
        ),
    ],
    ids=["rate limit", "status", "broken stream", "error in the stream"],
)
def test_retries_and_errors_tells_what_went_wrong(server: FriendliServer, answer: Any, said: str) -> None:
    server.enqueue(answer)
    assert said in run(server, "retries_and_errors.py")
    assert len(server.requests) == 1


async def test_asyncio_service_answers_each_line_and_stops_the_model_for_who_hangs_up(server: FriendliServer) -> None:
    server.enqueue(text("Hel", "lo"), status(401), script(chunk("once"), stall()))
    service = await asyncio.create_subprocess_exec(
        *command("asyncio_service.py"),
        env=environment(server, PORT="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert service.stdout is not None
    try:
        async with asyncio.timeout(60):
            port = int((await service.stdout.readline()).split()[-1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"Hi\nAgain\nAnd again\n")
            assert await reader.readline() == b"Hello\n"
            assert await reader.readline() == b"[AuthenticationError]\n"
            assert await reader.readexactly(4) == b"once"
            writer.transport.abort()
            assert server.requests[0].json_object["messages"][0]["content"] == "Hi\n"
            service.send_signal(signal.SIGINT)
            _, errors = await service.communicate()
            assert await server.requests[2].disconnected()
    finally:
        if service.returncode is None:
            service.kill()
            await service.wait()
    assert b"Warning" not in errors
    assert b"never retrieved" not in errors


# --- README ----------------------------------------------------------------------------------------------------------

SNIPPETS: Final = [
    (match["before"] or "", match["code"])
    for match in re.finditer(r"(?P<before><!-- not run[^\n]*-->\n)?```python\n(?P<code>.*?)```", README, re.DOTALL)
]
TOP_LEVEL_AWAIT: Final = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def test_readme_has_snippets_and_most_of_them_are_run() -> None:
    assert len(SNIPPETS) == README.count("```python")
    assert len([before for before, _ in SNIPPETS if not before]) >= 9


@pytest.mark.parametrize("code", [code for _, code in SNIPPETS], ids=lambda code: code.strip().splitlines()[-1][:50])
def test_readme_snippet_compiles_and_fits_the_line(code: str) -> None:
    compile(code, "README.md", "exec", flags=TOP_LEVEL_AWAIT)
    assert max(map(len, code.splitlines())) <= 120


@pytest.mark.parametrize(
    "code", [code for before, code in SNIPPETS if not before], ids=lambda code: code.strip().splitlines()[-1][:50]
)
async def test_readme_snippet_runs(server: FriendliServer, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setenv("FRIENDLI_TOKEN", "test-token")
    monkeypatch.setenv("FRIENDLI_SERVER_URL", server.url)
    async with friendli_async.AsyncFriendli() as client:
        if "asyncio.run(" in code:  # a whole program
            await asyncio.to_thread(exec, compile(code, "README.md", "exec"), {})
        else:
            running = eval(compile(code, "README.md", "exec", flags=TOP_LEVEL_AWAIT), {"client": client})
            if inspect.isawaitable(running):
                await asyncio.wait_for(running, 60)
    calls = re.findall(r"client\.(?:serverless|dedicated|usage)", code)
    assert "FriendliServer()" in code or "with_options" in code or (calls and server.requests)
    assert all(request.status == 200 for request in server.requests)


def test_readme_links_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in headed()}
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", README):
        assert target.removeprefix("#") in headings if target.startswith("#") else (ROOT / target).exists(), target


def headed() -> list[str]:
    return re.findall(r"^#+ .*$", README, re.MULTILINE)


def test_readme_tables_show_the_defaults() -> None:
    timeouts, limits, retry = friendli_async.Timeouts(), friendli_async.Limits(), friendli_async.RetryPolicy()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", README, re.MULTILINE))
    assert rows["connect"] == f"{timeouts.connect:g} s"
    assert (rows["pool"], timeouts.pool) == ("none", None)
    assert rows["first_event"] == f"{timeouts.first_event:g} s"
    assert rows["idle"] == f"{timeouts.idle:g} s"
    assert (rows["total"], timeouts.total) == ("none", None)
    assert rows["event"] == f"{limits.event >> 20} MiB"
    assert rows["reply"] == f"{limits.reply >> 20} MiB"
    assert rows["error"] == f"{limits.error >> 10} KiB"
    assert rows["max_attempts"] == str(retry.max_attempts)
    assert rows["max_retry_after"] == f"{retry.max_retry_after:g} s"
    assert rows["statuses"] == ", ".join(map(str, sorted(retry.statuses)))
    assert f"{retry.initial:g} s, {retry.multiplier}, {retry.max_wait:g} s" in README


def test_changelog_names_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{friendli_async.__version__}]" in changelog
    assert "## [Unreleased]" in changelog
