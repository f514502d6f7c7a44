"""The Ray Data pipeline stage: in isolation, and on a local cluster whose actors and driver are killed."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from friendli_async.bulk import CheckpointError, RowsError
from friendli_async.integrations.ray import CompleteStage
from friendli_async.testing import FriendliServer, delay, json_body, status, text
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script

CONCURRENCY: Final = 8


# --- without a cluster -----------------------------------------------------------------------------------------------


def stage_of(server: FriendliServer, **options: Any) -> CompleteStage:
    client = {"token": server.token, "server_url": server.url, "retry": None}
    return CompleteStage(**{"model": "m", "client": client, "concurrency": CONCURRENCY, **options})


def batch_of(count: int, **more: Any) -> dict[str, Any]:
    return {"id": np.arange(count), "prompt": np.array([f"row {n}" for n in range(count)], dtype=object), **more}


async def rows_of(stage: CompleteStage, batch: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        async for block in stage(batch):
            assert len({len(column) for column in block.values()}) == 1
            rows += [dict(zip(block, row, strict=True)) for row in zip(*block.values(), strict=True)]
    return sorted(rows, key=lambda row: int(row["id"]))


async def test_rows_keep_their_columns_and_gain_the_reply(server: FriendliServer) -> None:
    stage = stage_of(server, options={"max_tokens": 9})
    rows = await rows_of(stage, batch_of(100, tag=np.array(["x"] * 100)))
    assert list(rows[7]) == [
        "id", "prompt", "tag", "text", "finish_reason", "prompt_tokens", "completion_tokens", "error"
    ]  # fmt: skip
    assert [row["text"] for row in rows] == [f"You said: row {n}" for n in range(100)]
    assert {(row["tag"], row["error"], row["finish_reason"]) for row in rows} == {("x", None, "stop")}
    assert {(row["prompt_tokens"], row["completion_tokens"]) for row in rows} == {(2, 4)}
    assert server.requests[0].json_object["max_tokens"] == 9
    await stage._client.aclose()


async def test_messages_column_is_sent_unchanged(server: FriendliServer) -> None:
    messages = np.empty(1, dtype=object)
    messages[0] = np.array([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    stage = stage_of(server, prompt="messages", output="answer")
    [row] = await rows_of(stage, {"id": np.arange(1), "messages": messages})
    assert row["answer"] == "You said: Hi"
    assert server.requests[0].json_object["messages"][0] == {"role": "system", "content": "Be brief."}
    await stage._client.aclose()


@pytest.mark.parametrize(("rows", "seconds", "sizes"), [(3, 60, [3, 3, 1]), (60, 0, [1] * 7)])
async def test_rows_are_returned_in_blocks_of_a_size_or_an_age(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, rows: int, seconds: float, sizes: list[int]
) -> None:
    monkeypatch.setattr("friendli_async.integrations.ray._BLOCK_ROWS", rows)
    monkeypatch.setattr("friendli_async.integrations.ray._BLOCK_SECONDS", seconds)
    stage = stage_of(server)
    assert [len(block["text"]) async for block in stage(batch_of(7))] == sizes
    await stage._client.aclose()


async def test_container_needs_no_model_and_a_stage_without_checkpoint_no_key(server: FriendliServer) -> None:
    client = {"container_url": server.url, "retry": None}
    stage = stage_of(server, model=None, deployment="container", client=client)
    [block] = [block async for block in stage({"prompt": np.array(["a", "b"], dtype=object)})]
    assert sorted(block["text"]) == ["You said: a", "You said: b"]
    assert "model" not in server.requests[0].json_object
    await stage._client.aclose()


async def test_what_a_reply_lacks_is_none(server: FriendliServer) -> None:
    server.enqueue(json_body({"choices": [{"index": 0, "message": {"content": "a"}}]}))
    stage = stage_of(server)
    [row] = await rows_of(stage, batch_of(1))
    assert row["text"] == "a"
    assert [row[name] for name in ("finish_reason", "prompt_tokens", "completion_tokens", "error")] == [None] * 4
    await stage._client.aclose()


async def test_lone_surrogates_are_replaced_because_columns_are_utf8(server: FriendliServer) -> None:
    server.enqueue(text("half \ud83d"), status(400, message="no \ud83d"))
    stage = stage_of(server, concurrency=1)
    rows = await rows_of(stage, batch_of(2))
    assert rows[0]["text"] == "half �"
    assert rows[1]["error"].startswith("BadRequestError: 400 no �")
    await stage._client.aclose()


async def test_error_is_reported_in_a_column(server: FriendliServer) -> None:
    server.enqueue(status(400))
    stage = stage_of(server, concurrency=1)
    rows = await rows_of(stage, batch_of(2))
    assert [row["text"] for row in rows] == [None, "You said: row 1"]
    assert rows[0]["error"].startswith("BadRequestError: 400")
    await stage._client.aclose()


async def test_rows_in_the_checkpoint_are_not_sent_again_by_another_actor(
    server: FriendliServer, tmp_path: Path
) -> None:
    first, second = (stage_of(server, checkpoint=tmp_path) for _ in range(2))
    server.enqueue(status(409), status(422))
    await rows_of(first, batch_of(20))
    assert len(server.requests) == 20
    rows = await rows_of(second, batch_of(30))  # the 409 is retried, the 422 is not
    assert len(server.requests) == 20 + 1 + 10
    assert [row["error"] is None for row in rows].count(False) == 1
    assert len(await rows_of(first, batch_of(30))) == 30
    assert len(server.requests) == 31
    third = stage_of(server, checkpoint=tmp_path, model="another")
    await rows_of(third, batch_of(2))
    assert len(server.requests) == 33
    for stage in (first, second, third):
        await stage._client.aclose()


async def test_rows_are_found_as_the_file_of_another_actor_grows(server: FriendliServer, tmp_path: Path) -> None:
    writer, reader = (stage_of(server, checkpoint=tmp_path) for _ in range(2))
    for count in (3, 6, 9):
        await rows_of(writer, batch_of(count))
        rows = await rows_of(reader, batch_of(count))
        assert [row["text"] for row in rows] == [f"You said: row {n}" for n in range(count)]
        assert len(server.requests) == count
    for stage in (writer, reader):
        await stage._client.aclose()


async def test_row_whose_line_another_actor_has_not_finished_is_sent(server: FriendliServer, tmp_path: Path) -> None:
    writer = stage_of(server, checkpoint=tmp_path / "a")
    await rows_of(writer, batch_of(3))
    [file] = (tmp_path / "a").iterdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / file.name).write_bytes(file.read_bytes()[:-5])
    reader = stage_of(server, checkpoint=tmp_path / "b")
    assert len(await rows_of(reader, batch_of(3))) == 3
    assert len(server.requests) == 4
    for stage in (writer, reader):
        await stage._client.aclose()


async def test_relative_checkpoint_is_not_affected_by_a_change_of_the_working_directory(
    server: FriendliServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = stage_of(server, checkpoint="done")
    await rows_of(stage, batch_of(3))
    monkeypatch.chdir("/")
    assert len(await rows_of(stage, batch_of(5))) == 5
    assert len(server.requests) == 5
    await stage._client.aclose()


async def test_concurrency_limit_is_shared_by_all_batches_of_an_actor(server: FriendliServer) -> None:
    server.always(delayed_reply)
    stage = stage_of(server, concurrency=3)
    most = 0

    def count() -> bool:
        nonlocal most
        most = max(most, server.active_requests)
        return len(server.requests) == 24

    counting = asyncio.create_task(server.wait_until(count))
    await asyncio.gather(*(rows_of(stage, batch_of(8)) for _ in range(3)))
    await counting
    assert most == 3
    await stage._client.aclose()


async def test_missing_or_invalid_keys_and_unusable_checkpoint_are_rejected(
    server: FriendliServer, tmp_path: Path
) -> None:
    stage = stage_of(server, checkpoint=tmp_path / "done", key="number")
    with pytest.raises(RowsError, match="no column 'number'; available: 'id', 'prompt'"):
        await rows_of(stage, batch_of(1))
    with pytest.raises(RowsError, match=r"a key must be a str or a 64-bit int, not 0\.5"):
        await rows_of(stage, batch_of(2, number=np.array([1, 0.5], dtype=object)))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be used"):
        stage_of(server, checkpoint=tmp_path / "file")
    (tmp_path / "done" / "notes.jsonl").write_text("mine\n")
    with pytest.raises(CheckpointError, match=r"notes\.jsonl: the line at byte 0"):
        stage_of(server, checkpoint=tmp_path / "done")
    assert server.requests == []


@pytest.mark.parametrize("column", ["text", "finish_reason", "error"])
async def test_column_that_would_be_overwritten_is_rejected(server: FriendliServer, column: str) -> None:
    stage = stage_of(server)
    with pytest.raises(RowsError, match=f"would overwrite the column '{column}': rename it"):
        await rows_of(stage, batch_of(2, **{column: np.array(["mine", "mine"])}))
    with pytest.raises(RowsError, match="the column 'prompt': rename it, or choose another output="):
        await rows_of(stage_of(server, output="prompt"), batch_of(1))
    with pytest.raises(ValueError, match="output: the stage adds another column 'error'"):
        stage_of(server, output="error")
    assert server.requests == []


def delayed_reply(received: ReceivedRequest) -> Script:
    content = received.json_object["messages"][0]["content"]
    reply = json_body({"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}]})
    return Script((delay(0.02), *reply.steps), reply.status, reply.headers)


# --- on a cluster ----------------------------------------------------------------------------------------------------

ROWS: Final = 1000


class Job:
    """Runs of one job on its own cluster."""

    def __init__(self, server: FriendliServer, folder: Path) -> None:
        self.server = server
        self.checkpoint = folder / "done"
        self.out = folder / "out.jsonl"
        self.log = folder / "log"

    async def start(self) -> asyncio.subprocess.Process:
        program = Path(__file__).parent / "support" / "ray_job.py"
        arguments = [sys.executable, str(program), self.server.url, str(self.checkpoint), str(ROWS), str(self.out)]
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(*arguments, stdout=log, stderr=subprocess.STDOUT)

    async def reach(self, process: asyncio.subprocess.Process, requests: int) -> None:
        """Waits for a number of requests; fails immediately if the driver exits first."""
        coming = asyncio.ensure_future(self.server.wait_for_requests(requests, timeout=300))
        ended = asyncio.ensure_future(process.wait())
        await asyncio.wait({coming, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not coming.done():
            coming.cancel()
            pytest.fail(self.log.read_text()[-3000:])
        coming.result()

    async def finish(self, process: asyncio.subprocess.Process) -> None:
        assert await process.wait() == 0, self.log.read_text()[-3000:]

    def actors(self) -> list[int]:
        """Returns the process ids of all actors so far, which are part of their checkpoint file names."""
        return [int(path.name.split("-")[-2]) for path in self.checkpoint.glob("*.jsonl")]

    def check(self, kills: int) -> None:
        rows = [json.loads(line) for line in self.out.read_text().splitlines()]
        assert sorted(row["id"] for row in rows) == list(range(ROWS))
        assert {row["error"] for row in rows} == {None}
        assert all(row["text"] == row["prompt"] for row in rows)
        sent = Counter(request.json_object["messages"][0]["content"] for request in self.server.requests)
        assert len(sent) == ROWS
        assert sent.total() - ROWS <= kills * CONCURRENCY
        print(f"{sent.total() - ROWS} rows were sent again")


@pytest.fixture
def job(remote: FriendliServer, tmp_path: Path) -> Job:
    remote.always(delayed_reply)
    return Job(remote, tmp_path)


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.ray
@needs_ray
async def test_killed_actor_and_killed_driver_lose_no_rows(job: Job) -> None:
    driver = await job.start()
    await job.reach(driver, 200)
    os.kill(job.actors()[0], signal.SIGKILL)
    await job.reach(driver, 500)
    driver.kill()
    await driver.wait()
    driver = await job.start()
    await job.finish(driver)
    assert len(set(job.actors())) >= 4  # two per run
    job.check(kills=3)  # one actor, then both together with their driver
