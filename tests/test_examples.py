"""The programs in `examples/` run against the embedded server with the output they promise."""

import ast
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from support.programs import WARNINGS_ARE_ERRORS

from friendli_async.testing import FriendliServer, chunk, cut, event, script, stall, status, text, tool_calls

ROOT: Final = Path(__file__).parent.parent
EXAMPLES: Final = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def server(remote: FriendliServer) -> FriendliServer:
    return remote


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, *WARNINGS_ARE_ERRORS, str(ROOT / "examples" / name), *arguments]


def environment(server: FriendliServer, **extra: str) -> dict[str, str]:
    return {**os.environ, "FRIENDLI_TOKEN": "test-token", "FRIENDLI_SERVER_URL": server.url, **extra}


def run(server: FriendliServer, name: str, *arguments: str, logged: str = "") -> str:
    """Runs an example and returns its stdout. Warnings are errors, and stderr must be what is ``logged``."""
    done = subprocess.run(
        command(name, *arguments), env=environment(server), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, logged)
    return done.stdout


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short_and_has_docstring(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 40
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("name", ["batch.py", "mcp_agent.py"])
def test_missing_arguments_are_answered_with_the_usage(server: FriendliServer, name: str) -> None:
    if name == "mcp_agent.py" and not hasattr(pytest.importorskip("mcp"), "Client"):
        pytest.skip("the SDK 1.x has no Client")
    done = subprocess.run(
        command(name, "one"), env=environment(server), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"python examples/{name} " in done.stderr
    assert "Traceback" not in done.stderr


def test_stream_loop_streams_and_keeps_the_conversation(server: FriendliServer) -> None:
    server.enqueue(text("Be", "cause."), text("Red."))
    assert run(server, "stream_loop.py", "Why?", "And at dusk?") == (
        "> Why?\nBecause.\n(1 + 2 tokens)\n> And at dusk?\nRed.\n(1 + 1 tokens)\n"
    )
    first, second = (request.json_object["messages"] for request in server.requests)
    assert [message["role"] for message in first] == ["system", "user"]
    assert [message["content"] for message in second[1:]] == ["Why?", "Because.", "And at dusk?"]
    assert server.connections == 1


def test_stream_loop_sends_valid_requests(server: FriendliServer) -> None:
    printed = run(server, "stream_loop.py")
    assert printed.count("> ") == 2
    assert [request.status for request in server.requests] == [200, 200]


def test_structured_output_prints_lines_as_they_complete_and_the_invoice(server: FriendliServer) -> None:
    answer = '{"number": "17", "lines": [{"product": "chair", "quantity": 2, "price": 40}], "total": 80}'
    server.enqueue(text(*(answer[at : at + 5] for at in range(0, len(answer), 5))), text('{"number": "17"'))
    assert run(server, "structured_output.py", "Two chairs") == "2 x chair at 40.00\ninvoice 17: 80.00\n"
    assert "Two chairs" in server.requests[0].json_object["messages"][0]["content"]
    assert run(server, "structured_output.py").startswith("no invoice: the answer is not a valid Invoice: invalid JSON")
    assert run(server, "structured_output.py").count("x You said") == 1


def test_agent_calls_both_tools_and_uses_the_results(server: FriendliServer) -> None:
    printed = run(server, "agent.py")
    called, answer = printed.rsplit("]\n", 1)
    assert {line.partition(":")[0] for line in called.splitlines()} == {"[weather", "[local_time"}
    assert answer.startswith('The tool says: {"city":"How is the weather in Seoul')
    assert len(server.requests) == 2
    assert len(server.requests[0].json_object["tools"]) == 2


MCP_SERVER: Final = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("demo", log_level="CRITICAL")

@server.tool()
def files(folder: str) -> str:
    "Lists the files of a folder."
    return f"one file in {folder}"

server.run("stdio")
"""


def test_mcp_agent_asks_before_tool_calls(server: FriendliServer, tmp_path: Path) -> None:
    if not hasattr(pytest.importorskip("mcp"), "Client"):
        pytest.skip("the SDK 1.x has no Client")
    (tmp_path / "server.py").write_text(MCP_SERVER, encoding="utf-8")
    server.enqueue(tool_calls(("files", {"folder": "here"})), tool_calls(("files", {"folder": "there"})))
    done = subprocess.run(
        command("mcp_agent.py", "Which files are here?", sys.executable, str(tmp_path / "server.py")),
        env=environment(server),
        input="y\nn\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    prompts = 'Call files({"folder": "here"})? [y/n] Call files({"folder": "there"})? [y/n] The tool says: '
    assert done.stdout.startswith(prompts)
    messages = server.requests[-1].json_object["messages"]
    allowed, refused = (message["content"] for message in messages if message["role"] == "tool")
    assert allowed == "one file in here"
    assert refused.startswith("Error: the call was refused")


def test_ctrl_c_ends_mcp_agent_while_it_asks(server: FriendliServer, tmp_path: Path) -> None:
    if not hasattr(pytest.importorskip("mcp"), "Client"):
        pytest.skip("the SDK 1.x has no Client")
    (tmp_path / "server.py").write_text(MCP_SERVER, encoding="utf-8")
    server.enqueue(tool_calls(("files", {"folder": "here"})))
    arguments = command("mcp_agent.py", "Which files are here?", sys.executable, str(tmp_path / "server.py"))
    with subprocess.Popen(
        arguments,
        env=environment(server),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        prompt = 'Call files({"folder": "here"})? [y/n] '
        assert agent.stdout.read(len(prompt)) == prompt
        agent.send_signal(signal.SIGINT)
        try:
            assert agent.wait(timeout=60) == -signal.SIGINT  # stdin is open, and nothing was entered
        finally:
            agent.kill()


def test_langchain_chat_prints_a_value_and_streams(server: FriendliServer) -> None:
    pytest.importorskip("langchain_core")
    server.enqueue(text('{"city": "Paris", ', '"country": "France"}'), text("In ", "Paris."))
    assert run(server, "langchain_chat.py", "Where is the Louvre?") == "city='Paris' country='France'\nIn Paris.\n"
    first, second = (request.json_object for request in server.requests)
    assert first["response_format"]["json_schema"]["name"] == "Place"
    assert second["messages"][1]["content"] == "Where is the Louvre?"


def test_pydantic_ai_agent_calls_its_tool_and_streams(server: FriendliServer) -> None:
    pytest.importorskip("pydantic_ai")
    server.enqueue(tool_calls(("weather", {"city": "Paris"})))
    done = subprocess.run(
        command("pydantic_ai_agent.py", "How is the weather?"),
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "The tool says: sunny in Paris, 21 degrees")
    assert done.stderr == "\n9 tokens\n"


def test_tool_assisted_chat_prints_the_tool_and_the_answer(server: FriendliServer) -> None:
    printed = run(server, "tool_assisted_chat.py")
    assert "[math:calculator(" in printed
    assert "23" in printed.partition(" gives ")[2]
    [request] = server.requests
    assert request.path == "/serverless/tools/v1/chat/completions"
    assert request.json_object["tools"] == [{"type": "math:calculator"}, {"type": "web:url"}]


def test_other_apis_calls_every_api(server: FriendliServer) -> None:
    printed = run(server, "other_apis.py").splitlines()
    assert [request.path for request in server.requests] == [
        "/serverless/v1/messages",
        "/serverless/v1/responses",
        "/serverless/v1/completions",
        "/serverless/v1/tokenize",
    ]
    assert "Why is the sky blue?" in printed[0]
    assert "And why is it red at dusk?" in printed[1]
    assert re.fullmatch(r"[1-9]\d* tokens", printed[-1])


def test_telemetry_prints_the_span_and_the_observer_line(server: FriendliServer) -> None:
    pytest.importorskip("opentelemetry.sdk")
    server.enqueue(text("Be", "cause."))
    printed = run(server, "telemetry.py")
    line = r"chat\.stream of meta-llama-3\.1-8b-instruct: done, first event after \d+ ms"
    assert re.search(line, printed)
    assert "Because." in printed
    span = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert (span["name"], span["status"]["status_code"]) == ("chat meta-llama-3.1-8b-instruct", "UNSET")
    assert "Because." not in json.dumps(span)


def test_testing_your_code_passes_as_a_test_file(tmp_path: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(ROOT / "examples" / "testing_your_code.py")],
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },  # loading plugins that it does not need is slow
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "2 passed" in done.stdout


def test_retries_and_errors_prints_the_retry_and_the_reply(server: FriendliServer) -> None:
    server.enqueue(status(429, retry_after=0, message="slow down"), text("Once"))
    printed = run(server, "retries_and_errors.py")
    assert re.search(r"retrying in \d\.\d\d s after RateLimitError: 429 slow down", printed)
    assert "'Once', 2 attempts, request req-000002" in printed


@pytest.mark.parametrize(
    ("answer", "expected", "logged"),
    [
        (status(429, retry_after=3600), "rate limited: retry after 3600.0 s", "a 429 asks to wait for 3600 s"),
        (status(401, message="no such token"), "status 401 (None): no such token, request req-000001", ""),
        (script(chunk("Once upon"), cut()), "interrupted after 'Once upon'", ""),
        (
            script(chunk("Once"), event({"error": {"message": "overloaded", "code": 503}})),
            "status 503 (503): overloaded",
            "",
        ),
    ],
    ids=["rate limit", "status", "broken stream", "error in stream"],
)
def test_retries_and_errors_prints_the_error(server: FriendliServer, answer: Any, expected: str, logged: str) -> None:
    server.enqueue(answer)
    warning = f"POST /serverless/v1/chat/completions: rate limit: {logged}\n" if logged else ""
    assert expected in run(server, "retries_and_errors.py", logged=warning)
    assert len(server.requests) == 1


async def test_asyncio_service_answers_each_line_and_stops_on_disconnect(server: FriendliServer) -> None:
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


def test_batch_resumes_from_checkpoint(server: FriendliServer, tmp_path: Path) -> None:
    source, checkpoint = tmp_path / "in.jsonl", tmp_path / "done.jsonl"
    source.write_text("".join(f'{{"id": {n}, "question": "one {n}"}}\n' for n in range(3)))
    server.enqueue(status(422, message="no"))
    first = run(server, "batch.py", str(source), str(checkpoint)).splitlines()
    resumed = run(server, "batch.py", str(source), str(checkpoint)).splitlines()
    assert len(server.requests) == 3
    assert sorted(line.partition(" ")[0] for line in first) == ["0", "1", "2"]
    assert len([line for line in first if "(attempts: 1): You said: one" in line]) == 2
    assert [line.partition("): ")[2] for line in sorted(resumed)] == [
        line.partition("): ")[2] for line in sorted(first)
    ]
    assert all("(from the checkpoint)" in line for line in resumed)
