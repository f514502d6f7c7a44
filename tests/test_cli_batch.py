"""`friendli-async batch`, run as a user runs it: files, pipes, a terminal, Ctrl-C, and resuming."""

import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from anyio import to_thread
from support.terminal import run_on_terminal

from friendli_async.bulk import sending
from friendli_async.cli.__main__ import main
from friendli_async.testing import FriendliServer, Script, body, delay, json_body, script, stall, status
from friendli_async.testing.received import ReceivedRequest

PROGRAM: Final = [sys.executable, "-W", "error", "-m", "friendli_async.cli.__main__"]
TOKEN: Final = "flp_secret_of_the_tests"
GOOD: Final = json_body({"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]})
SLOW: Final = Script((delay(0.3), *GOOD.steps), GOOD.status, GOOD.headers)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FriendliServer]:
    with FriendliServer(TOKEN) as running:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("FRIENDLI_TOKEN", TOKEN)
        monkeypatch.setenv("FRIENDLI_SERVER_URL", running.url)
        monkeypatch.setenv("FRIENDLI_CONTAINER_URL", running.url)
        yield running


class Files:
    """The input and output files of a job, and ways to run it."""

    def __init__(self, folder: Path, server: FriendliServer, capsys: pytest.CaptureFixture[str]) -> None:
        self.source = folder / "in.jsonl"
        self.target = folder / "out.jsonl"
        self.server = server
        self._capsys = capsys

    def write(self, *rows: object) -> None:
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def options(self, *options: str, model: Sequence[str] = ("-m", "m")) -> list[str]:
        return ["batch", str(self.source), "-o", str(self.target), *model, "--concurrency", "4", *options]

    def command(self, *options: str) -> list[str]:
        return [*PROGRAM, *self.options(*options)]

    def run(self, *options: str, **more: Any) -> tuple[int, str]:
        """Runs in this process. Returns the exit status and stderr; stdout must be empty."""
        code = main(self.options(*options, **more))
        captured = self._capsys.readouterr()
        assert captured.out == ""
        assert TOKEN not in captured.err
        return code, captured.err

    def run_in_subprocess(self) -> tuple[int, str]:
        """Runs in a subprocess, for tests whose event loop occupies the main thread."""
        done = subprocess.run(self.command(), capture_output=True, encoding="utf-8", timeout=60, check=False)
        assert done.stdout == ""
        return done.returncode, done.stderr

    async def start(self, *options: str, **streams: Any) -> asyncio.subprocess.Process:
        streams = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, **streams}
        return await asyncio.create_subprocess_exec(*self.command(*options), **streams)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.target.read_text("utf-8").splitlines()]

    def by_id(self) -> dict[str, dict[str, Any]]:
        return {line["custom_id"]: line for line in self.lines()}

    def sent(self) -> list[Any]:
        return [request.json_object for request in self.server.requests]


@pytest.fixture
def files(tmp_path: Path, server: FriendliServer, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, server, capsys)


def request(custom_id: str, content: str = "Hi", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4o", "messages": messages, **body},
    }


# --- in and out ------------------------------------------------------------------------------------------------------


def test_batch_uses_the_request_and_response_format_of_openai(files: Files) -> None:
    files.write(request("a", "one two", temperature=0.5, user="someone"), request("b"))
    code, stderr = files.run("--max-tokens", "9")
    assert code == 0
    assert "2 of 2 rows succeeded" in stderr
    answer = files.by_id()["a"]
    assert list(answer) == ["id", "custom_id", "response", "error"]
    assert answer["id"].startswith("batch_req_")
    assert answer["error"] is None
    response = answer["response"]
    assert list(response) == ["status_code", "request_id", "body"]
    assert (response["status_code"], response["request_id"][:4]) == (200, "req-")
    assert response["body"]["choices"][0]["message"]["content"] == "You said: one two"
    [sent] = [body for body in files.sent() if "temperature" in body]
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["user"]) == ("m", 9, 0.5, "someone")


def test_prompts_and_lines_without_method_or_url_are_accepted(files: Files) -> None:
    files.write(
        "a string",
        {"prompt": "an object", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "messages"}], "custom_id": "mine"},
        {"custom_id": "c", "body": {"model": "own", "prompt": "a completion"}},
        {"custom_id": "d", "url": "/v1/completions", "body": {"model": "own", "tokens": [1, 2]}},
    )
    code, _ = files.run("-s", "Be brief.")
    assert code == 0
    assert set(files.by_id()) == {"line-1", "line-2", "mine", "c", "d"}
    by_path: dict[str, list[Any]] = {}
    for received in files.server.requests:
        by_path.setdefault(received.path, []).append(received.json_object)
    assert len(by_path["/serverless/v1/completions"]) == 2
    chats = sorted(by_path["/serverless/v1/chat/completions"], key=lambda body: len(body["messages"]))
    assert [len(body["messages"]) for body in chats] == [1, 2, 2]
    assert chats[0].keys() == {"model", "messages"}
    assert chats[1]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_system_message_that_is_not_utf8_is_rejected(files: Files) -> None:
    files.write("a")
    code, stderr = files.run("-s", "caf\udce9")
    assert (code, stderr.splitlines()[0].startswith("friendli-async batch: the text is not UTF-8")) == (2, True)
    assert files.server.requests == []


def test_embeddings_require_dedicated_endpoints(files: Files) -> None:
    files.write({"custom_id": "e", "url": "/v1/embeddings", "body": {"model": "x", "input": "text"}})
    code, stderr = files.run()
    assert (code, "line 1: /v1/embeddings is served by dedicated endpoints only" in stderr) == (2, True)
    code, _ = files.run("--deployment", "dedicated")
    assert code == 0
    assert files.server.requests[0].path == "/dedicated/v1/embeddings"
    assert files.by_id()["e"]["response"]["body"]["data"][0]["embedding"]


def test_container_needs_no_model_or_token(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRIENDLI_TOKEN")
    files.write("Hi")
    assert files.run("--deployment", "container", model=())[0] == 0
    assert "model" not in files.sent()[0]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_reply_of_several_lines_is_one_line_in_text_mode(files: Files, line_end: str) -> None:
    reply = {"choices": [{"index": 0, "message": {"content": "a\r\nb"}, "finish_reason": "stop"}]}
    data = json.dumps(reply, indent=1).replace("\n", line_end).encode()
    files.server.enqueue(body(data, content_type="application/json"))
    files.write(request("a"))
    assert files.run()[0] == 0
    [line] = files.target.read_text().splitlines()
    assert json.loads(line)["response"]["body"] == reply


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_reply_in_any_encoding_is_written_so_that_the_run_resumes(files: Files, encoding: str) -> None:
    reply = {"choices": [{"index": 0, "message": {"content": "안녕"}, "finish_reason": "stop"}], "new": 1}
    data = json.dumps(reply, ensure_ascii=False).encode(encoding)
    files.server.enqueue(body(data, content_type=f"application/json; charset={encoding}"))
    files.write(request("a"))
    assert files.run()[0] == 0
    assert files.by_id()["a"]["response"]["body"] == reply
    code, stderr = files.run()
    assert (code, stderr.startswith("1 of 1 rows succeeded, 1 from an earlier run")) == (0, True)
    assert len(files.server.requests) == 1


def test_summary_counts_the_completion_tokens(files: Files) -> None:
    usage = {"prompt_tokens": 900, "completion_tokens": 600, "total_tokens": 1500}
    choice = {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}
    files.server.always(json_body({"choices": [choice], "usage": usage}))
    files.write(request("a"), request("b"))
    assert files.run()[1].startswith("2 of 2 rows succeeded; 1,200 completion tokens in 0:0")


def test_reply_with_nan_is_written_as_valid_json(files: Files) -> None:
    answer = b'{"choices": [{"index": 0, "message": {"content": "half \\ud83d"}}], "score": NaN}'
    files.server.enqueue(body(answer, content_type="application/json"))
    files.write(request("a"))
    assert files.run()[0] == 0
    assert b'"half \\ud83d"}}],"score":null}' in files.target.read_bytes()
    assert files.run()[1].startswith("1 of 1 rows succeeded, 1 from an earlier run")


def test_lines_with_lone_surrogates_are_sent_and_resumed(files: Files) -> None:
    files.write("cut \ud83d", request("id \ud83d", "cut \ude00"))
    assert files.run()[0] == 0
    assert [body["messages"][0]["content"] for body in files.sent()] == ["cut \ud83d", "cut \ude00"]
    assert set(files.by_id()) == {"line-1", "id \ud83d"}
    assert files.run()[1].startswith("2 of 2 rows succeeded, 2 from an earlier run")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "line 3 is not JSON"),
        ("7", "line 3: expected a request object or a prompt string"),
        ('{"custom_id": "x"}', "line 3: expected a request with a body"),
        ('{"prompt": null}', "line 3: expected a request with a body, messages, or a prompt that is a string"),
        ('{"custom_id": 7, "prompt": "Hi"}', "line 3: custom_id must be a non-empty string, not 7"),
        ('{"custom_id": "a", "prompt": "Hi"}', "line 3: custom_id 'a' is already used in line 1"),
        ('{"custom_id": "x", "url": "/v1/completions", "prompt": "Hi"}', "line 3: body is missing"),
        ('{"method": "POST", "prompt": "Hi"}', "line 3: body is missing"),
        ('{"custom_id": "x", "body": 7}', "line 3: body must be an object"),
        ('{"custom_id": "x", "method": "GET", "body": {}}', "line 3: method must be POST, not 'GET'"),
        ('{"custom_id": "x", "url": "/v1/images", "body": {}}', "line 3: url must be one of"),
        ('{"custom_id": "x", "body": {"messages": [{"role": "robot"}]}}', r"line 3: messages\[0\]"),
        ('{"custom_id": "x", "body": {"messages": [], "temperature": "hot"}}', "line 3: temperature: Expected `float"),
        ('{"custom_id": "x", "url": "/v1/completions", "body": {}}', "line 3: complete.. needs 'prompt' or 'tokens'"),
        ('{"custom_id": "x", "url": "/v1/chat/completions", "body": {}}', "line 3: messages is missing"),
        ('{"custom_id": "x", "body": {"messages": [], "stream": true}}', "line 3: a batch cannot stream"),
    ],
)
def test_invalid_line_is_reported_and_nothing_is_sent(files: Files, line: str, message: str) -> None:
    files.source.write_text('{"custom_id": "a", "prompt": "Hi"}\n\n' + line + '\n{"prompt": "Ho"}\n')
    code, stderr = files.run()
    assert code == 2
    assert re.search(message, stderr)
    assert "in.jsonl line 3" in stderr
    assert "line 2" not in stderr  # which is blank
    assert files.server.requests == []
    assert not files.target.exists()


def test_input_that_becomes_invalid_during_the_run_does_not_pass_for_one_of_which_nothing_was_sent(
    files: Files,
) -> None:
    def spoil(received: ReceivedRequest) -> Script:
        with files.source.open("a", encoding="utf-8") as source:
            source.write("spoiled\n")
        return GOOD

    files.write(*(request(str(number)) for number in range(20)))
    files.server.always(spoil)
    code, stderr = files.run("--concurrency", "1")
    assert code == 1
    assert "the input has changed since it was checked: " in stderr
    assert "line 21 is not JSON" in stderr
    assert "20 of 20 rows succeeded" in stderr


def test_row_that_is_appended_during_the_run_counts(files: Files) -> None:
    def append(received: ReceivedRequest) -> Script:
        with files.source.open("a", encoding="utf-8") as source:
            source.write('"One more"\n')
        return GOOD

    files.write(*(request(str(number)) for number in range(20)))  # more than the run takes ahead
    files.server.enqueue(append)
    code, stderr = files.run("--concurrency", "1")
    assert (code, len(files.lines())) == (0, 21)
    assert stderr.startswith("21 of 21 rows succeeded;")


def test_first_ten_invalid_lines_are_reported_at_once(files: Files) -> None:
    good = '{"custom_id": "a", "prompt": "Hi"}\n'
    files.source.write_text(good + "{bad\n" + '{"prompt": 7}\n' + good)
    code, stderr = files.run()
    source = files.source
    assert (code, stderr.splitlines()[0]) == (2, "friendli-async batch: several lines are invalid")
    assert [line.partition(": ")[0] for line in stderr.splitlines()[1:]] == [
        f"{source} line 2 is not JSON",
        f"{source} line 3",
        f"{source} line 4",
    ]
    files.source.write_text(good + "7\n" * 12)
    code, stderr = files.run()
    *named, last = stderr.splitlines()[1:]
    assert (code, last) == (2, "any lines after these were not checked")
    assert named == [f"{source} line {n}: expected a request object or a prompt string" for n in range(2, 12)]
    assert files.server.requests == []
    assert not files.target.exists()


def test_row_without_model_is_reported_if_no_model_is_given(files: Files) -> None:
    files.write(request("a"), "Hi")
    code, stderr = files.run(model=())
    assert (code, "line 2: no model" in stderr) == (2, True)


@pytest.mark.parametrize("options", [["--concurrency", "0"], ["--concurrency", "many"], ["--deployment", "x"], ["-o"]])
def test_invalid_option_is_rejected(files: Files, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        files.run(*options)
    assert ended.value.code == 2
    assert "usage: friendli-async batch" in capsys.readouterr().err


def test_unusable_input_file_is_rejected(files: Files) -> None:
    os.mkfifo(files.source)
    assert files.run()[0] == 2
    files.source.unlink()
    code, stderr = files.run()
    assert (code, "No such file" in stderr) == (2, True)
    files.write("Hi")
    files.target = files.source
    before = files.source.read_bytes()
    code, stderr = files.run()
    assert (code, "cannot be both" in stderr) == (2, True)
    assert files.source.read_bytes() == before


def test_standard_output_is_rejected_as_the_output_because_it_cannot_be_resumed(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files.source.parent)
    files.write("Hi")
    with pytest.raises(SystemExit) as ended:
        main(["batch", str(files.source), "-o", "-", "-m", "m"])
    assert (ended.value.code, "cannot go to stdout" in capsys.readouterr().err) == (2, True)
    assert os.listdir() == ["in.jsonl"]
    assert files.server.requests == []
    assert main(["batch", str(files.source), "-o", "./-", "-m", "m"]) == 0
    assert "-" in os.listdir()


def test_missing_token_is_reported_before_anything_is_written(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRIENDLI_TOKEN")
    files.write("Hi")
    code, stderr = files.run()
    assert (code, "FRIENDLI_TOKEN" in stderr) == (2, True)
    assert not files.target.exists()


# --- failed rows -----------------------------------------------------------------------------------------------------


def answer_by_content(**errors: Script) -> Callable[[ReceivedRequest], Script]:
    """Answers messages that equal a keyword with its script, and all others with `GOOD`."""

    def answer(received: ReceivedRequest) -> Script:
        content = received.json_object["messages"][0]["content"]
        return errors.get(content) or GOOD

    return answer


def test_retry_failed_resends_failed_rows_unless_permanently_rejected(files: Files) -> None:
    files.write(request("good"), request("r", "refused"), request("b", "broken"))
    refused, broken = status(422, message="no such parameter"), body(b"<p>expired</p>", status=409)
    files.server.always(answer_by_content(refused=refused, broken=broken))
    code, stderr = files.run()
    assert code == 1
    assert "r: UnprocessableEntityError: 422 no such parameter" in stderr
    assert "1 of 3 rows succeeded, 2 failed" in stderr
    assert "except those rejected as invalid (400, 413, 422, ...), run the same command with --retry-failed" in stderr
    line = files.by_id()["r"]
    assert line["response"]["status_code"] == 422
    assert line["response"]["body"]["error"]["message"] == "no such parameter"
    assert line["error"]["code"] == "UnprocessableEntityError"
    assert files.by_id()["b"]["response"]["status_code"] == 409
    assert set(files.by_id()["b"]["response"]["body"]["error"]) == {"message", "type", "code"}  # not the page

    code, stderr = files.run()
    assert (code, len(files.server.requests)) == (1, 3)
    assert "--retry-failed" in stderr
    for _ in range(2):  # in the second run the last line of that row is a success
        files.server.always(answer_by_content())
        code, stderr = files.run("--retry-failed")
        assert (code, len(files.server.requests)) == (1, 4)
        assert "2 of 3 rows succeeded, 1 failed" in stderr
    assert files.by_id()["b"]["response"]["status_code"] == 200


def test_error_with_status_200_is_no_answer(files: Files) -> None:
    files.write(request("a"))
    files.server.always(json_body({"error": {"message": "expired"}}))
    assert files.run()[0] == 1
    assert files.by_id()["a"]["response"]["status_code"] == 200
    files.server.always(GOOD)
    code, stderr = files.run("--retry-failed")
    assert (code, len(files.server.requests)) == (0, 2), stderr


@pytest.mark.parametrize("code", [401, 403, 404])
def test_rejected_rows_end_the_run_and_are_sent_again_by_the_same_command(files: Files, code: int) -> None:
    files.write(*[request(f"{number}") for number in range(100)])
    files.server.always(status(code, message="no"))
    status_of_run, stderr = files.run()
    sent = len(files.server.requests)
    assert (status_of_run, 10 <= sent <= 13, len(files.lines())) == (1, True, sent)
    assert "stopped after 10 rejections in a row" in stderr
    assert "--keep-going" in stderr
    assert f"0 of 100 rows succeeded, {sent} failed, {100 - sent} remaining" in stderr
    assert f"the same command sends the {sent} rows again" in stderr
    assert "--retry-failed" not in stderr

    files.server.always(GOOD)
    status_of_run, stderr = files.run()
    assert (status_of_run, len(files.server.requests)) == (0, sent + 100)
    assert "100 of 100 rows succeeded" in stderr
    assert "the same command" not in stderr


def test_keep_going_sends_every_row_whatever_is_rejected(files: Files) -> None:
    files.write(*[request(f"{number}") for number in range(30)])
    files.server.always(status(404, message="no such model"))
    code, stderr = files.run("--keep-going")
    assert (code, len(files.server.requests)) == (1, 30)
    assert "the same command sends the 30 rows again" in stderr
    assert stderr.count("no such model") == 10
    assert "... further rows that have failed are not listed" in stderr


def test_connection_failure_is_an_error_without_response(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(request("a"))
    monkeypatch.setattr(sending, "_MAX_RESENDS", 0)
    with monkeypatch.context() as patch:
        patch.setenv("FRIENDLI_SERVER_URL", "http://127.0.0.1:1")
        code, stderr = files.run()
    assert (code, "a: APIConnectionError" in stderr) == (1, True)
    assert files.by_id()["a"]["response"] is None
    assert files.by_id()["a"]["error"]["code"] == "APIConnectionError"
    assert files.run("--retry-failed")[0] == 0


def test_rows_of_an_outage_end_the_run_and_are_sent_again_by_the_same_command(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(*[request(f"{number}") for number in range(100)])
    monkeypatch.setattr(sending, "_MAX_RESENDS", 0)
    with monkeypatch.context() as patch:
        patch.setenv("FRIENDLI_SERVER_URL", "http://127.0.0.1:1")
        code, stderr = files.run()
    failed = len(files.lines())
    assert (code, 10 <= failed <= 13) == (1, True)
    assert "stopped after 10 rejections in a row (APIConnectionError)" in stderr
    assert f"the same command sends the {failed} rows again" in stderr
    assert "--retry-failed" not in stderr
    code, stderr = files.run()
    assert (code, len(files.server.requests)) == (0, 100)
    assert "100 of 100 rows succeeded" in stderr


# --- resuming --------------------------------------------------------------------------------------------------------


def test_changed_rows_are_reported_and_sent_again(files: Files) -> None:
    files.write(request("a"), request("b"))
    assert files.run()[0] == 0
    files.write(request("a"), request("b", "another"), request("c"))
    code, stderr = files.run()
    assert code == 0
    assert "b: has changed since it completed; sending it again" in stderr
    assert "a: has changed" not in stderr
    assert len(files.server.requests) == 4
    assert [line["custom_id"] for line in files.lines()][2:] in (["b", "c"], ["c", "b"])
    assert files.run()[1].startswith("3 of 3 rows succeeded, 3 from an earlier run")


@pytest.mark.parametrize("content", ["not ours\n", '{"id":"batch_req_123","custom_id":"a","response":null}\n'])
def test_foreign_output_file_is_not_overwritten(files: Files, content: str) -> None:
    files.write("Hi")
    files.target.write_text(content)
    code, stderr = files.run()
    assert (code, "out.jsonl line 1" in stderr) == (3, True)
    assert files.target.read_text() == content
    assert files.server.requests == []


def test_unwritable_output_path_is_reported(files: Files, tmp_path: Path) -> None:
    files.write("Hi")
    too_long = tmp_path / ("a" * 300)  # of such a path, not even `exists` can be asked
    for target in (tmp_path, tmp_path / "none" / "out.jsonl", Path("/dev/full"), too_long):
        files.target = target
        code, stderr = files.run()
        assert (code, str(target) in stderr) == (3, True)
    assert files.server.requests == []


async def test_second_run_on_the_same_file_is_rejected(files: Files) -> None:
    files.write(*(request(f"r{n}") for n in range(4)))
    files.server.always(script(stall()))
    first = await files.start()
    try:
        await files.server.wait_for_requests(4)
        code, stderr = await to_thread.run_sync(files.run_in_subprocess)
        assert (code, "in use by another run\n" in stderr) == (3, True)
        assert len(files.server.requests) == 4
    finally:
        first.kill()
        await first.communicate()


async def test_killed_run_is_resumed(files: Files) -> None:
    files.write(*(request(f"r{n}", f"row {n}") for n in range(300)))
    process = await files.start()
    await files.server.wait_for_requests(60)
    process.kill()
    await process.communicate()
    code, _ = await to_thread.run_sync(files.run_in_subprocess)
    assert code == 0
    assert sorted(line["custom_id"] for line in files.lines()) == sorted(f"r{n}" for n in range(300))
    assert len(files.server.requests) <= 300 + 4


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


async def read_stderr_until(process: asyncio.subprocess.Process, text: bytes) -> bytes:
    """Returns the output on stderr up to the line with this text."""
    assert process.stderr is not None
    stderr = b""
    async with asyncio.timeout(60):
        while text not in stderr:
            line = await process.stderr.readline()
            assert line, stderr
            stderr += line
    return stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_first_signal_lets_requests_finish_and_second_aborts_them(files: Files, number: int) -> None:
    files.write(*(request(f"r{n}") for n in range(50)))
    files.server.always(script(stall()))
    process = await files.start()
    await files.server.wait_for_requests(4)
    process.send_signal(number)
    await read_stderr_until(process, b"stopping: 4 requests in flight may finish")
    code_at_first = process.returncode
    process.send_signal(number)
    _, errors = await process.communicate()
    assert (code_at_first, process.returncode) == (None, 128 + number)
    assert b"50 remaining" in errors
    assert b"Traceback" not in errors
    assert len(files.server.requests) == 4


@pytest.mark.parametrize("count", [50, 4])
async def test_requests_in_flight_at_interrupt_are_written_to_the_file(files: Files, count: int) -> None:
    files.write(*(request(f"r{n}") for n in range(count)))
    files.server.always(SLOW)
    process = await files.start()
    await files.server.wait_for_requests(4)
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    done = len(files.lines())
    assert done == len(files.server.requests) >= 4
    is_complete = count == 4
    assert process.returncode == (0 if is_complete else 130)
    assert (f"{count - done} remaining".encode() in errors) is not is_complete
    assert (b"the same command continues with the remaining rows" in errors) is not is_complete
    assert {line["response"]["status_code"] for line in files.lines()} == {200}
    files.server.always(None)
    assert (await to_thread.run_sync(files.run_in_subprocess))[0] == 0
    assert len(files.lines()) == count


def test_second_ctrl_c_on_a_terminal_aborts(files: Files) -> None:
    files.write(*(request(f"r{n}") for n in range(5)))
    files.server.always(script(stall()))

    def is_waiting(shown: str) -> bool:
        return "0/5 rows" in shown and len(files.server.requests) == 4

    interrupt_at: list[str | Callable[[str], bool]] = [is_waiting, "stopping: 4 requests in flight may finish"]
    code, shown = run_on_terminal(files.command(), os.environ, interrupt_at=interrupt_at)
    assert code == 130
    assert "0 of 5 rows succeeded, 5 remaining" in shown


# --- output ----------------------------------------------------------------------------------------------------------


def test_terminal_shows_one_updating_progress_line(files: Files) -> None:
    files.write(*(request(f"r{n}") for n in range(16)))
    files.server.always(SLOW)
    code, shown = run_on_terminal(files.command(), os.environ, columns=60)
    assert code == 0
    assert re.search(r"\r\x1b\[K[\d,]+/16 rows \| [\d,]+ tokens/s \| 0 refused \| limit 4 ", shown)
    assert shown.rstrip().rpartition("\x1b[K")[2].startswith("16 of 16 rows succeeded")
    assert TOKEN not in shown
    assert max(len(piece) for piece in re.findall(r"\r\x1b\[K([^\r\n\x1b]*\|[^\r\n\x1b]*)", shown)) <= 60


def test_dumb_terminal_gets_plain_lines(files: Files) -> None:
    files.write("Hi")
    code, shown = run_on_terminal(files.command(), {**os.environ, "TERM": "dumb"})
    assert (code, "\x1b" in shown) == (0, False)


async def test_broken_stderr_pipe_does_not_end_the_job(files: Files) -> None:
    files.write(*(request(f"r{n}") for n in range(20)))
    files.server.always(lambda received: status(400))
    read, write = os.pipe()
    process = await files.start(stderr=write)
    os.close(write)
    os.close(read)
    assert await process.wait() == 1
    assert len(files.lines()) == 20


def test_closed_stderr_does_not_end_the_job(files: Files) -> None:
    files.write(request("a"))
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *files.command()], timeout=60, check=False)
    assert done.returncode == 0
    assert len(files.lines()) == 1


def test_control_characters_in_server_messages_are_removed(files: Files) -> None:
    files.write(request("a"))
    files.server.always(status(400, message="\x1b[2J\x1b]0;mine\x07gone\nTwo lines"))
    _, stderr = files.run()
    assert "\x1b" not in stderr
    assert "\x07" not in stderr
    assert "gone Two lines" in stderr


def test_full_disk_is_reported_with_number_of_lost_answers(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.write(*(request(f"r{n}") for n in range(30)))
    with monkeypatch.context() as patch:
        patch.setattr("friendli_async.bulk.journal.os.write", full)
        code, stderr = files.run()
    assert code == 3
    assert "out.jsonl cannot be written: No space left on device" in stderr
    assert f"{len(files.server.requests)} answers could not be written: their rows will be sent again" in stderr
    assert files.run()[0] == 0
    assert len(files.lines()) == 30


def test_help_documents_options_and_exit_status() -> None:
    done = subprocess.run([*PROGRAM, "batch", "--help"], capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert done.returncode == 0
    for word in ("--retry-failed", "--concurrency auto|N", "Exit status: 0", "130 interrupted", "--deployment"):
        assert word in done.stdout
