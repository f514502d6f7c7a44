"""The demo, run as a user runs it: in a subprocess, on a pipe or a terminal."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from anyio import to_thread
from support.terminal import run_on_terminal

from friendli_async.demo.page import Page
from friendli_async.testing import FriendliServer, status, text

DEMO = [sys.executable, "-W", "error", "-m", "friendli_async.demo"]
FAST_MAIN = "import sys; from friendli_async.demo import __main__ as demo; demo._PACE = 0.0; sys.exit(demo.main())"
FAST_DEMO = [sys.executable, "-W", "error", "-c", FAST_MAIN]
"""The demo without its pauses between words."""

ENDLESS_DEMO = [*FAST_DEMO[:-1], FAST_MAIN.replace("0.0", "600.0")]
"""The demo with pauses that it does not survive, also if its interruption comes late."""

LIMIT = 60.0  # seconds for a run, which takes about three


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    # The encoding decides which symbols are shown.
    return {**inherited, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **variables}


def piped(
    arguments: Sequence[str], env: Mapping[str, str] | None = None, *, program: Sequence[str] = FAST_DEMO
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *arguments],
        env=environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture(scope="module")
def page() -> str:
    """The output of the demo with the embedded server, to a pipe and at its normal pace."""
    run = piped(["--embedded"], program=DEMO)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_piped_page_is_plain(page: str) -> None:
    assert "\x1b" not in page
    assert "\r" not in page
    assert not any(line.endswith(" ") for line in page.splitlines())


def test_page_shows_replies_with_their_timing(page: str) -> None:
    assert re.search(r"you +What is the capital of France\?\n +echo +\S", page)
    assert re.search(r"\d+ ms to first token · [\d.]+ tokens/s · \d+ tokens out · \d+ tokens in", page)


def test_page_shows_tool_statuses_in_order(page: str) -> None:
    assert "client.serverless.tool_assisted_chat_completion(" in page
    statuses = re.findall(r"(math:calculator|web:url) +(STARTED|UPDATING|ENDED|ERRORED)", page)
    assert statuses == [
        ("math:calculator", "STARTED"),
        ("math:calculator", "ENDED"),
        ("web:url", "STARTED"),
        ("web:url", "UPDATING"),
        ("web:url", "ENDED"),
    ]
    assert '{"result":"(17 + 25) * 3=126"}' in page


def test_page_shows_struct_fields_in_order(page: str) -> None:
    assert "client.container.chat.parse_stream(Place, ...)" in page
    scene = page.partition("3  Structured output")[2]
    assert re.findall(r"✓ (\w+) +(.)", scene) == [
        ("name", '"'), ("country", '"'), ("is_capital", "t"), ("sights", "["),
    ]  # fmt: skip
    assert "Place checked" in scene


def test_real_engine_answers_on_the_page(tiny_model: Path) -> None:
    run = piped(["--gguf", str(tiny_model), "--question", "the sea", "--max-tokens", "8"])
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(
        r"tiny-random\.gguf, llama\.cpp at http://127\.0\.0\.1:\d+, ready in", " ".join(run.stdout.split())
    )
    assert re.search(r"you +the sea\n +model +\S", run.stdout)
    assert "Gemma" not in run.stdout
    scene = run.stdout.partition("3  Structured output")[2]
    assert "✓ name" in scene
    assert "Place checked" in scene or "OutputCutOffError" in scene


def test_missing_engine_is_reported_and_replaced_by_embedded_server(tmp_path: Path) -> None:
    run = piped(["--gguf", str(tmp_path / "none.gguf"), "--question", "Hello there"])
    assert (run.returncode, run.stderr) == (0, "")
    assert "The engine is not available: there is no model file at" in run.stdout
    assert "Using the embedded server instead" in run.stdout
    assert re.search(r"you +Hello there\n +echo +\S", run.stdout)


def test_terminal_colors_are_all_reset() -> None:
    code, shown = run_on_terminal([*FAST_DEMO, "--embedded", "--question", "Hi"], environment(), limit=LIMIT)
    assert code == 0
    assert "\x1b[1;36mfriendli_async" in shown
    assert shown.count("\x1b[0m") == len(re.findall(r"\x1b\[[1-9][\d;]*m", shown))


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminal_without_color_support_gets_no_colors(variables: dict[str, str]) -> None:
    code, shown = run_on_terminal([*FAST_DEMO, "--embedded", "--question", "Hi"], environment(**variables), limit=LIMIT)
    assert code == 0
    assert not re.search(r"\x1b\[[\d;]*m", shown)
    assert "math:calculator" in shown


def test_interrupt_exits_cleanly_and_stops_the_engine(tiny_model: Path) -> None:
    arguments = [*ENDLESS_DEMO, "--gguf", str(tiny_model), "--max-tokens", "50000"]
    code, shown = run_on_terminal(arguments, environment(), interrupt_at="you", limit=LIMIT)
    assert code == 130
    assert "Stopped." in shown
    assert "Traceback" not in shown
    found = re.search(r"process (\d+)", re.sub(r"\x1b\[[\d;]*m|\s+", " ", shown))
    assert found
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)


def test_closed_stdout_is_not_an_error() -> None:
    process = subprocess.Popen(
        [*FAST_DEMO, "--embedded"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(LIMIT) == 0


# --- the real API, simulated by the embedded server ------------------------------------------------------------------


async def real_demo(server: FriendliServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment(FRIENDLI_TOKEN=server.token or "", FRIENDLI_SERVER_URL=server.url)
    return await to_thread.run_sync(lambda: piped(["--embedded", "--question", "Hi", *arguments], env))


async def test_token_alone_sends_nothing_to_the_real_api() -> None:
    async with FriendliServer("flp_secret") as server:
        run = await real_demo(server)
        assert server.requests == []
    assert run.returncode == 0
    assert "with --real" in run.stdout
    assert "flp_secret" not in run.stdout


async def test_real_option_calls_the_configured_api_once() -> None:
    async with FriendliServer("flp_secret") as server:
        server.enqueue(text("Bon", "jour"))
        run = await real_demo(server, "--real", "--model", "some-model")
        assert [request.json["model"] for request in server.requests] == ["some-model"]
    assert run.returncode == 0
    assert re.search(r"friendli +Bonjour", run.stdout)
    assert "flp_secret" not in run.stdout


async def test_error_of_the_real_api_is_printed_and_sets_the_exit_status() -> None:
    async with FriendliServer("flp_secret") as server:
        server.enqueue(status(403))
        run = await real_demo(server, "--real")
    assert run.returncode == 1
    assert "PermissionDeniedError" in run.stdout
    assert run.stderr == ""


@pytest.mark.parametrize(("answer", "calls"), [("n\n", 0), ("\n", 0), ("y\n", 1)])
async def test_terminal_asks_for_confirmation_before_calling_the_real_api(answer: str, calls: int) -> None:
    async with FriendliServer("flp_secret") as server:
        env = environment(FRIENDLI_TOKEN="flp_secret", FRIENDLI_SERVER_URL=server.url)
        code, shown = await to_thread.run_sync(
            lambda: run_on_terminal(
                [*FAST_DEMO, "--embedded", "--question", "Hi"], env, answers={"[y/N]": answer}, limit=LIMIT
            )
        )
        assert code == 0
        assert "[y/N]" in shown
        assert len(server.requests) == calls


# --- the page --------------------------------------------------------------------------------------------------------


def render(encoding: str, *pieces: str) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    page = Page(out)
    page.speaker("model", "cyan")
    for piece in pieces:
        page.text(piece)
    page.end_text()
    page.status("✓", "tool", "done", "green")
    out.flush()
    buffer = out.detach()
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(encoding)


def test_control_characters_of_a_model_never_reach_the_terminal() -> None:
    shown = render("utf-8", "a\x1b[2J\x07b\rc\x9b")
    assert "a[2Jbc" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_symbols_that_the_output_lacks_are_replaced() -> None:
    shown = render("ascii", "caf\u00e9 ok")
    assert "caf? ok" in shown
    assert "? tool" in shown


def test_message_is_indented_and_has_no_blanks_at_its_start_or_line_ends() -> None:
    assert render("utf-8", " ", "\n one ", "two \n", "\n three", "\n ").startswith(
        f"  model     one two\n{' ' * 12}three\n"
    )
