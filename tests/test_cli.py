"""The command line: input, output and exit status. See test_cli_batch for `batch`."""

import asyncio
import errno
import fcntl
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from support.sockets import BAD_REQUEST, delta, serve_handshake
from support.steps import endless
from support.terminal import run_on_terminal
from support.tls import Authority, TalkativeTLSServer

import friendli_async
from friendli_async import APITimeoutError
from friendli_async.cli import doctor
from friendli_async.cli.__main__ import COMMANDS, main
from friendli_async.testing import (
    FriendliServer,
    Script,
    chunk,
    cut,
    done,
    finish,
    json_body,
    script,
    stall,
    status,
    text,
)

TOKEN: Final = "flp_secret_of_these_tests"


@pytest.fixture
def server() -> Iterator[FriendliServer]:
    with FriendliServer(TOKEN) as running:
        yield running


@pytest.fixture
def environment(server: FriendliServer) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FRIENDLI_", "COLUMNS"))}
    url = server.url
    return {**kept, "FRIENDLI_TOKEN": TOKEN, "FRIENDLI_SERVER_URL": url, "FRIENDLI_CONTAINER_URL": url, "COLUMNS": "90"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "friendli_async.cli", *arguments]


def run_python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own, without standard input."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


class Done(NamedTuple):
    """The exit status and the output of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, ten times faster; tests of signals and pipes need a subprocess."""

    def running(*arguments: str, stdin: str = "", **changes: str) -> Done:
        for name, value in {**environment, **changes}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        assert TOKEN not in captured.out + captured.err
        return Done(code, captured.out, captured.err)

    return running


def request_bodies(server: FriendliServer) -> list[Mapping[str, Any]]:
    return [request.json_object for request in server.requests]


# --- commands --------------------------------------------------------------------------------------------------------


def test_package_runs_the_command(environment: dict[str, str]) -> None:
    done = run_python(environment, "-W", "error", "-m", "friendli_async", "-m", "m", "Hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, "You said: Hi\n", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_text_is_read_as_utf8_where_the_locale_cannot_decode_it(
    server: FriendliServer, run: Run, encoding: str
) -> None:
    argument, text = (b.decode(encoding, "surrogateescape") for b in ("é".encode(), "日本".encode()))
    assert run("-m", "m", "-s", argument, argument, stdin=text).returncode == 0
    assert [message["content"] for message in request_bodies(server)[0]["messages"]] == ["é", "é\n\n日本"]


def test_bytes_that_are_not_utf8_are_rejected(server: FriendliServer, run: Run) -> None:
    done = run("-m", "m", stdin="caf\udce9")
    assert (done.returncode, server.requests) == (2, [])
    assert "can't decode byte 0xe9" in done.stderr


def test_help_lists_every_command_and_each_has_its_own_help(run: Run) -> None:
    overview = run("--help")
    assert overview.returncode == 0
    assert all(f"  {name} " in overview.stdout for name in COMMANDS)
    for name in COMMANDS:
        done = run(name, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: friendli-async {name} ")


def test_help_says_which_model_the_doctor_asks(run: Run) -> None:
    said = " ".join(run("doctor", "--help").stdout.split())
    assert "(default: FRIENDLI_MODEL, else the first of the serverless catalogue)" in said
    assert "(default: FRIENDLI_MODEL)" in run("chat", "--help").stdout


def test_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"friendli-async {friendli_async.__version__}\n", "")
    assert "--version" in run("--help").stdout


def test_startup_does_not_import_other_commands(environment: dict[str, str], run: Run) -> None:
    script = (
        "import sys; from friendli_async.cli.__main__ import main\n"
        "try: main(['--version'])\n"
        "finally: print(sorted(name for name in sys.modules if name.split('.')[0] in {'friendli_async', 'aiohttp'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[1]
    assert "friendli_async.cli.chat" not in loaded
    assert "friendli_async.bulk" not in loaded
    assert "'aiohttp'" not in loaded


def test_unknown_option_prints_usage(run: Run) -> None:
    done = run("models", "--nonsense")
    assert done.returncode == 2
    assert "usage: friendli-async models" in done.stderr


# --- chat, through pipes ---------------------------------------------------------------------------------------------


def test_prompt_alone_is_answered(server: FriendliServer, run: Run) -> None:
    server.enqueue(text("Be", "cause."))
    done = run("-m", "m", "Why", "is", "that?")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Because.\n", "")
    [body] = request_bodies(server)
    assert body["messages"] == [{"role": "user", "content": "Why is that?"}]
    assert body["stream"] is True


def test_stdin_is_appended_to_the_prompt(server: FriendliServer, run: Run) -> None:
    server.enqueue(text("Fine"))
    done = run("chat", "-s", "Be brief.", "Summarise:", stdin="a long text\n", FRIENDLI_MODEL="m")
    assert done.stdout == "Fine\n"
    [body] = request_bodies(server)
    assert body["model"] == "m"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Summarise:\n\na long text\n"},
    ]


def test_model_in_the_environment_may_be_quoted(server: FriendliServer, run: Run) -> None:
    server.enqueue(text("Fine"))
    assert run("Hi", FRIENDLI_MODEL=' "m"\r\n').returncode == 0
    [body] = request_bodies(server)
    assert body["model"] == "m"


def test_options_become_call_parameters(server: FriendliServer, run: Run) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    options = ["-o", "temperature", "0.2", "-o", "stop", '["."]', "-o", "reasoning_effort", "low", "--no-stream"]
    server.enqueue(text('{"a": 1}'))
    done = run("-m", "m", *options, "--schema", json.dumps(schema), "Hi")
    assert done.stdout == '{"a": 1}\n'
    [body] = request_bodies(server)
    assert (body["temperature"], body["stop"], body["reasoning_effort"]) == (0.2, ["."], "low")
    assert body["response_format"]["json_schema"]["schema"] == schema


def test_attachments_are_sent_by_media_type(server: FriendliServer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("milk", encoding="utf-8")
    (tmp_path / "dot.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    server.enqueue(text("Fine"))
    files = ["-a", str(tmp_path / "notes.txt"), "-a", str(tmp_path / "dot.png"), "-a", "https://x/y.jpg"]
    assert run("-m", "m", *files, "What?").returncode == 0
    [body] = request_bodies(server)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url", "image_url", "text"]
    assert "milk" in body["messages"][0]["content"][0]["text"]
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_audio_video_and_images_without_extension_are_recognized(
    server: FriendliServer, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "hello.wav").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt ")
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n")
    server.enqueue(text("Fine"))
    files = ["-a", str(tmp_path / "hello.wav"), "-a", "https://x/y.mp4", "-a", str(tmp_path / "picture")]
    assert run("-m", "m", *files).returncode == 0
    [body] = request_bodies(server)
    [sound, video, picture] = body["messages"][0]["content"]
    assert sound["audio_url"]["url"].startswith("data:audio/")
    assert video == {"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")


def test_attachment_of_unknown_type_is_rejected(server: FriendliServer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\xff\xfe\xfd")
    done = run("-m", "m", "-a", str(tmp_path / "data"), "What?")
    assert done.returncode == 2
    assert str(tmp_path / "data") in done.stderr
    assert server.requests == []


def test_interrupted_reply_is_an_error(server: FriendliServer, run: Run) -> None:
    server.enqueue(script(chunk("Be"), cut()))
    done = run("-m", "m", "--no-stream", "Why?")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("friendli-async chat: ")


def test_reasoning_is_printed_to_stderr(server: FriendliServer, run: Run) -> None:
    server.enqueue(text("Fine", reasoning=["Hm, ", "well"]))
    done = run("-m", "m", "Hi")
    assert (done.stdout, done.stderr) == ("Fine\n", "Hm, well\n\n")


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_split_character_is_printed_whole_and_half_a_character_is_replaced(
    server: FriendliServer, run: Run, options: list[str]
) -> None:
    pieces = ["a", "\ud83d", "\ude00b", "\ud83d"]
    server.enqueue(text(*pieces, reasoning=pieces[:3]))
    assert run(*options, "-m", "m", "Hi") == (0, "a😀b?\n", "a😀b\n\n")


def test_text_that_the_terminal_cannot_encode_is_replaced(server: FriendliServer, environment: dict[str, str]) -> None:
    server.enqueue(text("Gr", "üße"))
    changed = {**environment, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        command("-m", "m", "Hi"), env=changed, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"Gr??e\n", b"")


@pytest.mark.parametrize("redirection", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_do_not_prevent_an_answer(
    server: FriendliServer, environment: dict[str, str], redirection: str
) -> None:
    server.enqueue(text("Fine", reasoning=["Hm"]))
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command("-m", "m", "Hi")]
    done = subprocess.run(shell, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == ("" if "1>" in redirection else "Fine\n")
    assert done.stderr == ("" if "2>" in redirection else "Hm\n\n")
    assert len(server.requests) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize(
    "arguments", [["-m", "m", "Hi"], ["models"], ["doctor", "-m", "m"], ["--help"]], ids=lambda given: given[0]
)
def test_output_that_cannot_be_written_is_no_bad_input(environment: dict[str, str], arguments: list[str]) -> None:
    environment.pop("PYTHONUNBUFFERED", None)  # argparse ignores that its help cannot be written at once
    options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(*arguments), stdout=full, check=False, **options)
    assert done.returncode == 1
    assert done.stderr == f"friendli-async: the output cannot be written: {os.strerror(errno.ENOSPC)}\n".encode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hi"], "no model: pass -m MODEL"),
        (["-m", "", "Hi"], "no model: pass -m MODEL"),
        (["-m", "m"], "no prompt: pass one"),
        (["-m", "m", "-o", "temprature", "1", "Hi"], "did you mean 'temperature'"),
        (["-m", "m", "-o", "temperature", "hot", "Hi"], "temperature"),
        (["-m", "m", "-o", "messages", "[]", "Hi"], "-o cannot set messages: pass a prompt"),
        (["-m", "m", "-a", "/nowhere/x.png", "Hi"], "/nowhere/x.png"),
        (["-m", "m", "--schema", "{", "Hi"], "--schema is not valid JSON"),
    ],
)
def test_invalid_input_prints_one_line_and_sends_nothing(
    server: FriendliServer, run: Run, arguments: list[str], message: str
) -> None:
    done = run("chat", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "message", "shown"),
    [
        *((status(code, message="no such token"), "no such token", "") for code in (401, 403)),
        (status(404, message="no such model"), "no such model", ""),
        (script(chunk("Once"), cut()), "the server closed the connection before the end of the body", "Once"),
    ],
)
def test_failed_call_prints_one_line(server: FriendliServer, run: Run, answer: Any, message: str, shown: str) -> None:
    server.enqueue(answer)
    done = run("-m", "m", "Hi")
    assert (done.returncode, done.stdout.strip()) == (1, shown)
    assert message in done.stderr
    assert ("check FRIENDLI_TOKEN" in done.stderr) is ("token" in message)
    assert len(done.stderr.strip().splitlines()) == 1


def test_chat_with_a_container_needs_neither_a_model_nor_a_token(run: Run) -> None:
    with FriendliServer(None) as container:
        container.enqueue(script(chunk("Once"), finish(), done()))
        ended = run("--deployment", "container", "Hi", FRIENDLI_CONTAINER_URL=container.url, FRIENDLI_TOKEN="")
        assert (ended.returncode, ended.stdout) == (0, "Once\n")
        assert "model" not in container.requests[0].json


@pytest.mark.parametrize("token", ["", ' ""'])
@pytest.mark.parametrize("command", [["-m", "m", "Hi"], ["models"], ["batch", "in.jsonl", "-o", "out.jsonl"]], ids=repr)
def test_missing_token_is_reported(run: Run, tmp_path: Path, command: list[str], token: str) -> None:
    files = [str(tmp_path / name) if name.endswith(".jsonl") else name for name in command]
    (tmp_path / "in.jsonl").touch()
    done = run(*files, FRIENDLI_TOKEN=token)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(": no token: set FRIENDLI_TOKEN")


def test_closed_stdout_ends_the_command_as_by_sigpipe(server: FriendliServer, environment: dict[str, str]) -> None:
    server.enqueue(script(endless(delta("word\n"))))
    with subprocess.Popen(
        command("-m", "m", "Hi"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "word\n"
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""


def test_ctrl_c_keeps_text_already_printed(server: FriendliServer, environment: dict[str, str]) -> None:
    server.enqueue(script(chunk("Once"), stall()))
    with subprocess.Popen(
        command("-m", "m", "Hi"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == "Once"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert (process.stdout.read(), process.stderr.read()) == ("\n", "")


def test_ctrl_c_ends_the_wait_for_a_whole_answer(server: FriendliServer, environment: dict[str, str]) -> None:
    server.enqueue(script(stall()))
    with subprocess.Popen(
        command("-m", "m", "--no-stream", "Hi"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        asyncio.run(server.wait_for_requests(1))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 130


def wait_until_it_reads(process: subprocess.Popen[bytes]) -> None:
    """Waits until a process has read what its pipe holds, and is blocked in the next read."""
    assert process.stdin is not None
    unread = bytearray(4)
    while process.poll() is None:
        fcntl.ioctl(process.stdin, termios.FIONREAD, unread)
        state = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        if not any(unread) and state == "S":
            return
        os.sched_yield()


def test_ctrl_c_ends_the_wait_for_standard_input(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        command("-m", "m"), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"Hi")
        process.stdin.flush()
        wait_until_it_reads(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


INTERRUPTED_IMPORT: Final = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name in {"friendli_async.cli.chat", "friendli_async.cli.models", "friendli_async.cli.serve"}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from friendli_async.cli.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "arguments", [["-m", "m", "Hi"], ["models"], ["serve", "--port", "0"]], ids=lambda each: each[0]
)
def test_ctrl_c_while_modules_are_imported_is_quiet(environment: dict[str, str], arguments: list[str]) -> None:
    done = run_python(environment, "-c", INTERRUPTED_IMPORT, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_background_job_ignores_ctrl_c(server: FriendliServer, environment: dict[str, str]) -> None:
    server.enqueue(text("Once"))
    with subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$0" "$@"', *command("-m", "m")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"Hi")
        process.stdin.flush()
        wait_until_it_reads(process)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == b"Once\n"
        assert process.returncode == 0


INTERRUPTED_AT_START: Final = """
import os, signal, sys
from friendli_async.cli import __main__, chat

class Interrupting(chat._Output):
    def __init__(self):
        super().__init__()
        os.kill(os.getpid(), signal.SIGINT)

chat._Output = Interrupting  # made just before the request
sys.exit(__main__.main(["-m", "m", "Hi"]))
"""


def test_ctrl_c_before_the_request_is_quiet(server: FriendliServer, environment: dict[str, str]) -> None:
    done = run_python(environment, "-c", INTERRUPTED_AT_START)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not server.requests


# --- chat, on a terminal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_conversation_keeps_its_history(
    server: FriendliServer, environment: dict[str, str], options: list[str]
) -> None:
    server.enqueue(text("Blue."), text("Red."))
    code, shown = run_on_terminal(
        command("-m", "m", "-s", "Be brief.", *options),
        environment,
        answers={"> ": "Why?\n", "Blue.\r\n> ": "And at dusk?\n", "Red.\r\n> ": "\x04"},
    )
    assert code == 0
    assert "Traceback" not in shown
    assert [message["content"] for message in request_bodies(server)[1]["messages"]] == [
        "Be brief.",
        "Why?",
        "Blue.",
        "And at dusk?",
    ]


def test_ctrl_c_in_a_conversation_interrupts_only_the_reply(
    server: FriendliServer, environment: dict[str, str]
) -> None:
    server.enqueue(script(chunk("Once upon"), stall()), text("a time"))
    code, shown = run_on_terminal(
        command("-m", "m"),
        environment,
        answers={"> ": "Tell\n", "Once upon\r\n> ": "Go on\n", "a time\r\n> ": "\x04"},
        interrupt_at="Once upon",
    )
    assert code == 0
    assert "Traceback" not in shown
    assert [message["content"] for message in request_bodies(server)[1]["messages"]] == ["Tell", "Once upon", "Go on"]


@pytest.mark.parametrize(
    ("option", "rest", "interrupt_at"),
    [([], [stall()], "Hmm"), ([], [finish("length"), done()], ()), (["--no-stream"], [finish("length"), done()], ())],
    ids=["interrupted", "stream", "whole"],
)
def test_prompt_answered_by_reasoning_only_is_not_sent_again(
    server: FriendliServer, environment: dict[str, str], option: list[str], rest: list[Any], interrupt_at: Any
) -> None:
    server.enqueue(script(chunk(reasoning="Hmm"), *rest), text("a time"))
    code, _ = run_on_terminal(
        command("-m", "m", *option),
        {**environment, "NO_COLOR": "1"},
        answers={"> ": "Tell\n", "Hmm\r\n> ": "Go on\n", "a time\r\n> ": "\x04"},
        interrupt_at=interrupt_at,
    )
    assert code == 0
    assert [message["content"] for message in request_bodies(server)[1]["messages"]] == ["Go on"]


def test_failed_call_does_not_end_a_conversation(server: FriendliServer, environment: dict[str, str]) -> None:
    server.enqueue(status(400, message="too long"), text("Fine"))
    code, shown = run_on_terminal(
        command("-m", "m"),
        environment,
        answers={"> ": "First\n", "(request id req-000001)\r\n> ": "Second\n", "Fine\r\n> ": "\x04"},
    )
    assert code == 0
    assert "too long" in shown
    assert [message["content"] for message in request_bodies(server)[1]["messages"]] == ["Second"]


@pytest.mark.parametrize("piece", [{"reasoning": "Once"}, {"text": "Once"}])
def test_error_of_interrupted_stream_starts_on_new_line_of_terminal(
    server: FriendliServer, environment: dict[str, str], piece: dict[str, Any]
) -> None:
    server.enqueue(script(chunk(**piece), cut()))
    code, shown = run_on_terminal(command("-m", "m", "Hi"), {**environment, "NO_COLOR": "1"})
    assert code == 1
    assert [line for line in shown.splitlines() if line.startswith("friendli-async chat: ")]
    assert shown.startswith("Once\r\n")


@pytest.mark.parametrize(
    ("variables", "is_dimmed"),
    [({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_reasoning_is_dimmed_where_the_terminal_may_show_it(
    server: FriendliServer, environment: dict[str, str], variables: dict[str, str], is_dimmed: bool
) -> None:
    server.enqueue(text("Yes", reasoning=["Hmm"]))
    code, shown = run_on_terminal(command("-m", "m", "Hi"), {**environment, "TERM": "xterm", **variables})
    assert code == 0
    assert ("\x1b[2mHmm\x1b[0m" in shown) is is_dimmed


def test_control_characters_of_a_model_do_not_reach_the_terminal(
    server: FriendliServer, environment: dict[str, str]
) -> None:
    server.always(text("\x1b]0;mine\x07", "a\tb\x1b", "[2Jc\nd", reasoning=["\x1b[31m", "Hmm\x9b"]))
    code, shown = run_on_terminal(command("-m", "m", "Hi"), {**environment, "NO_COLOR": "1"})
    assert (code, shown) == (0, "[31mHmm\r\n\r\n]0;minea\tb[2Jc\r\nd\r\n")
    piped = run_python(environment, *command("-m", "m", "Hi")[1:])
    assert piped.stdout == "\x1b]0;mine\x07a\tb\x1b[2Jc\nd\n"


def test_attachment_is_kept_after_a_failed_call(
    server: FriendliServer, environment: dict[str, str], tmp_path: Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("the notes")
    server.enqueue(status(400, message="too long"), text("Fine"), text("Done"))
    code, _ = run_on_terminal(
        command("-m", "m", "-a", str(notes)),
        environment,
        answers={
            "> ": "First\n",
            "(request id req-000001)\r\n> ": "Second\n",
            "Fine\r\n> ": "Third\n",
            "Done\r\n> ": "\x04",
        },
    )
    assert code == 0
    [attached, question] = request_bodies(server)[1]["messages"][0]["content"]
    assert "the notes" in attached["text"]
    assert question["text"] == "Second"
    assert request_bodies(server)[2]["messages"][-1]["content"] == "Third"


# --- models, doctor, serve -------------------------------------------------------------------------------------------


def test_models_lists_the_catalogue_as_text_or_json(run: Run) -> None:
    listed = run("models")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "meta-llama-3.1-8b-instruct" in listed.stdout
    [line] = run("models", "--json", "llama").stdout.splitlines()
    assert json.loads(line)["id"] == "meta-llama-3.1-8b-instruct"
    nothing = run("models", "no such thing")
    assert (nothing.stdout, nothing.stderr) == ("", "friendli-async models: no matches\n")


def test_control_characters_in_the_name_of_a_model_do_not_reach_the_terminal(
    server: FriendliServer, environment: dict[str, str], run: Run
) -> None:
    catalogue = json_body({"data": [{"id": "a\x1b[2Jb", "mode": "\x9b2J"}]})
    server.enqueue(*[catalogue] * 4, path="/serverless/v1/models")
    assert "a[2Jb" in run_on_terminal(command("models"), environment)[1]
    assert "\x9b" not in run_on_terminal(command("models", "--json"), environment)[1]
    assert "a[2Jb answered" in run_on_terminal(command("doctor"), environment)[1]
    assert "a\x1b[2Jb" in run("models").stdout


def test_models_lists_the_endpoints(server: FriendliServer, run: Run) -> None:
    page = json_body({"data": {"ep_long": {"status": "RUNNING"}, "ep_2": {"status": "SLEEPING"}}})
    server.enqueue(page, page)
    assert run("models", "--deployment", "dedicated").stdout == "ep_long  RUNNING\nep_2     SLEEPING\n"
    [line] = run("models", "--deployment", "dedicated", "--json", "sleep").stdout.splitlines()
    assert (json.loads(line)["id"], json.loads(line)["status"]) == ("ep_2", "SLEEPING")


def test_doctor_passes_with_a_healthy_server(run: Run) -> None:
    done = run("doctor", "-m", "m", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["good"]) == (0, True)
    names = [finding["name"] for finding in report["findings"]]
    assert names == ["versions", "token", "proxy", "name", "connection", "TLS", "stream"]
    assert "first event after" in report["findings"][-1]["words"]


def test_doctor_names_a_package_without_metadata(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    done = run("doctor", "-m", "m")
    assert done.returncode == 0
    assert "msgspec of unknown version" in checks(done)["versions"]


def test_doctor_reports_failed_checks(run: Run, refused_port: int) -> None:
    url = f"http://127.0.0.1:{refused_port}"
    done = run("doctor", "-m", "m", FRIENDLI_SERVER_URL=url, FRIENDLI_TOKEN="")
    assert checks(done)["connection"].endswith(": Connection refused")
    verdicts = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert done.returncode == 1
    assert verdicts == {
        "versions": "ok",
        "token": "FAIL",
        "proxy": "ok",
        "name": "ok",
        "connection": "FAIL",
        "TLS": "ok",
        "stream": "FAIL",
    }


def test_doctor_reports_an_unusable_url_as_such(server: FriendliServer, run: Run) -> None:
    lines = checks(run("doctor", "-m", "m", FRIENDLI_SERVER_URL=f"{server.url}/v1"))
    assert lines["token"] == f"ok: FRIENDLI_TOKEN, {len(TOKEN)} characters"
    assert re.match(r"FAIL: server_url must not end with /v1: .* \(it is set by FRIENDLI_SERVER_URL\)", lines["stream"])


def test_doctor_strips_quotes_and_blanks_as_the_client_does(server: FriendliServer, run: Run) -> None:
    done = run("doctor", "-m", "m", FRIENDLI_SERVER_URL=f' "{server.url}"')
    assert (done.returncode, done.stderr) == (0, "")
    lines = checks(run("doctor", "-m", "m", FRIENDLI_TOKEN=' ""'))
    assert lines["token"] == "FAIL: FRIENDLI_TOKEN is not set"
    assert lines["stream"] == "FAIL: no token: set FRIENDLI_TOKEN"


def test_doctor_reports_an_unknown_token(server: FriendliServer, run: Run) -> None:
    done = run("doctor", "-m", "m", FRIENDLI_TOKEN="another")
    assert done.returncode == 1
    assert "the token was rejected" in done.stdout
    assert "another" not in done.stdout.replace("to another account", "")


def checks(done: Done) -> dict[str, str]:
    """Returns the lines of the doctor without their times, by the name of the check."""
    lines = (re.fullmatch(r"(ok|FAIL) +(\S+) +(.*?)( \(\d+ ms\))?", line) for line in done.stdout.splitlines())
    return {line[2]: f"{line[1]}: {line[3]}" for line in lines if line is not None}


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (status(403), "the token lacks permission; check FRIENDLI_TEAM"),
        (status(404), "no such model, or the base URL has an extra path"),
        (status(400, message="too long"), "too long"),
    ],
)
def test_doctor_gives_advice_on_an_error_status(server: FriendliServer, run: Run, answer: Script, advice: str) -> None:
    server.enqueue(answer)
    stream = checks(run("doctor", "-m", "m"))["stream"]
    assert stream.startswith("FAIL")
    assert advice in stream


def test_doctor_says_alike_why_a_server_with_tls_cannot_be_reached(run: Run, refused_port: int) -> None:
    lines = checks(run("doctor", "-m", "m", FRIENDLI_SERVER_URL=f"https://127.0.0.1:{refused_port}"))
    expected = f"FAIL: could not connect to 127.0.0.1:{refused_port}: {os.strerror(errno.ECONNREFUSED)}"
    assert (lines["connection"], lines["TLS"]) == (expected, expected)


def test_doctor_defaults_to_a_model_of_the_catalogue(server: FriendliServer, run: Run) -> None:
    assert checks(run("doctor"))["stream"].startswith("ok: ")
    assert server.requests[-1].json_object["model"] == "meta-llama-3.1-8b-instruct"
    assert "the token was rejected" in checks(run("doctor", FRIENDLI_TOKEN="another"))["stream"]
    server.enqueue(json_body({"data": []}))
    assert checks(run("doctor"))["stream"] == "FAIL: the catalogue is empty"


def test_doctor_asks_for_the_endpoint_id(run: Run) -> None:
    assert checks(run("doctor", "--deployment", "dedicated"))["stream"] == "FAIL: no endpoint: pass -m ENDPOINT_ID"


def test_doctor_accepts_a_container_without_token(run: Run) -> None:
    with FriendliServer(None) as container:
        done = run("doctor", "--deployment", "container", FRIENDLI_CONTAINER_URL=container.url, FRIENDLI_TOKEN="")
        address = container.url.removeprefix("http://")
    found = checks(done)
    assert found["token"] == "ok: not set; a container does not require one"
    assert found["connection"] == f"ok: {address}"
    assert checks(done)["stream"].startswith("ok: the model answered")
    assert done.returncode == 0


def test_doctor_names_the_team(run: Run) -> None:
    done = run("doctor", "-m", "m", FRIENDLI_TEAM="team-1")
    assert checks(done)["token"] == f"ok: FRIENDLI_TOKEN, {len(TOKEN)} characters, team team-1"


def test_doctor_connects_through_the_proxy(run: Run, refused_port: int) -> None:
    proxy = f"127.0.0.1:{refused_port}"
    done = run("doctor", "-m", "m", FRIENDLI_SERVER_URL="https://friendli.invalid", HTTPS_PROXY=f"http://{proxy}")
    lines = checks(done)
    assert done.returncode == 1
    assert lines["proxy"] == f"ok: {proxy}, from the environment"
    assert lines["name"] == "ok: 127.0.0.1 resolves to 127.0.0.1"
    assert lines["connection"].startswith(f"FAIL: could not connect to {proxy}")
    assert lines["TLS"] == "ok: not checked separately: the connection goes through the proxy"
    assert lines["stream"].startswith("FAIL")


@pytest.mark.parametrize(("rule", "expected"), [("127.0.0.0/8", "none"), ("10.0.0.0/8", "{}, from the environment")])
def test_doctor_reports_the_proxy_that_the_client_uses(run: Run, refused_port: int, rule: str, expected: str) -> None:
    peer = f"127.0.0.1:{refused_port}"
    done = run("doctor", "-m", "m", FRIENDLI_SERVER_URL=f"http://{peer}", HTTP_PROXY=peer, NO_PROXY=rule)
    assert checks(done)["proxy"] == f"ok: {expected.format(peer)}"


@pytest.mark.parametrize(
    ("variables", "check", "reason"),
    [
        ({"FRIENDLI_SERVER_URL": "http://localhost:port"}, "connection", "FRIENDLI_SERVER_URL is not a valid"),
        ({"FRIENDLI_SERVER_URL": "http://localhost:65536"}, "connection", "FRIENDLI_SERVER_URL is not a valid"),
        ({"FRIENDLI_SERVER_URL": "http://[::1"}, "connection", "FRIENDLI_SERVER_URL is not a valid"),
        ({"FRIENDLI_SERVER_URL": "http://"}, "connection", "FRIENDLI_SERVER_URL is not a valid"),
        ({"FRIENDLI_SERVER_URL": "ftp://localhost"}, "connection", "FRIENDLI_SERVER_URL is not a valid"),
        ({"FRIENDLI_SERVER_URL": "http://a..b"}, "name", "FRIENDLI_SERVER_URL is not a valid"),
        ({"FRIENDLI_SERVER_URL": "localhost:8000"}, "TLS", "FRIENDLI_SERVER_URL is not a valid"),
        ({"HTTP_PROXY": "http://user:secret@proxy:port"}, "proxy", "the proxy from the environment is not an"),
    ],
)
def test_doctor_reports_invalid_url_as_failed_check(
    run: Run, variables: dict[str, str], check: str, reason: str
) -> None:
    done = run("doctor", "-m", "m", **{"FRIENDLI_SERVER_URL": "http://friendli.invalid", **variables})
    assert (done.returncode, done.stderr) == (1, "")
    assert checks(done)[check].startswith(f"FAIL: {reason} http or https URL")
    assert checks(done)["stream"].startswith("FAIL: ")
    assert "secret" not in done.stdout


def test_doctor_reports_an_unresolvable_host(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    lines = checks(run("doctor", "-m", "m", FRIENDLI_SERVER_URL="http://friendli.invalid"))
    assert lines["name"] == "FAIL: friendli.invalid cannot be resolved: Name or service not known"
    assert lines["TLS"] == "ok: not used: the URL is http"


async def test_doctor_verifies_the_certificate(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    trust = {"SSL_CERT_FILE": str(authority.certificate)}
    async with TalkativeTLSServer(authority.server(*authority.issue())) as secure:
        untrusted = await asyncio.to_thread(run, "doctor", "-m", "m", FRIENDLI_SERVER_URL=secure.url)
        trusted = await asyncio.to_thread(run, "doctor", "-m", "m", FRIENDLI_SERVER_URL=secure.url, **trust)
    expected = r"FAIL: handshake failed: .*certificate.*; to trust another CA, set SSL_CERT_FILE"
    assert re.match(expected, checks(untrusted)["TLS"])
    assert checks(untrusted)["stream"].startswith("FAIL")
    assert re.match(r"ok: TLSv1\.[23], certificate valid until \w{3} .* GMT", checks(trusted)["TLS"])
    assert "by tls" in checks(trusted)["stream"]  # the server's reply, which is not a stream


async def test_doctor_advises_another_authority_only_if_that_is_the_reason(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    expired = authority.issue(begin="20200101000000Z", end="20200102000000Z")
    async with TalkativeTLSServer(authority.server(*expired)) as secure:
        trust = {"SSL_CERT_FILE": str(authority.certificate)}
        done = await asyncio.to_thread(run, "doctor", "-m", "m", FRIENDLI_SERVER_URL=secure.url, **trust)
    expected = r"FAIL: handshake failed: certificate has expired"
    assert re.fullmatch(expected, checks(done)["TLS"])


def test_doctor_says_what_it_waited_for_if_the_server_does_not_answer(
    server: FriendliServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 1.0)
    server.enqueue(script(stall()))
    where = server.url.removeprefix("http://")
    assert checks(run("doctor", "-m", "m"))["stream"] == f"FAIL: no reply within 3 s (first_event) (server {where})"


async def test_doctor_does_not_blame_the_certificate_if_the_server_does_not_use_tls(run: Run) -> None:
    async with serve_handshake(BAD_REQUEST) as plain:
        url = plain.url.replace("http:", "https:")
        lines = checks(await asyncio.to_thread(run, "doctor", "-m", "m", FRIENDLI_SERVER_URL=url))
    assert lines["TLS"] == "FAIL: handshake failed: WRONG_VERSION_NUMBER"
    assert "does the server use TLS on this port?" in lines["stream"]


def test_doctor_times_out_a_hanging_check(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        lines = checks(run("doctor", "-m", "m", FRIENDLI_SERVER_URL=url))
    assert lines["TLS"] == "FAIL: timed out after 0.2 s"
    assert lines["stream"].startswith("FAIL")


async def test_doctor_reports_a_timeout_of_the_client_with_its_own_length() -> None:
    async def check() -> str:
        raise APITimeoutError("no connection within 5 s", limit="connect", seconds=5.0)

    assert (await doctor._run_check("stream", check)).words == "no connection within 5 s"


def test_serve_runs_the_embedded_server(environment: dict[str, str], run: Run) -> None:
    with subprocess.Popen(
        command("serve", "--fault", "status=503;retry_after=0,then=ok"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().split()[2]
        answered = run("-m", "m", "Hi", FRIENDLI_SERVER_URL=url, FRIENDLI_TOKEN="test-token")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        log = process.stderr.read()
    assert [line.split()[:3] for line in log.splitlines()] == [
        ["POST", "/serverless/v1/chat/completions", "503"],
        ["POST", "/serverless/v1/chat/completions", "200"],
    ]
    assert answered.stdout == "You said: Hi\n"
