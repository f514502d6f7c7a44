"""The checkpoint of a run: what is stored, what is sent again, and how it survives kills and full disks."""

import asyncio
import dataclasses
import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from pydantic import BaseModel
from support.sockets import client_of, complete

from friendli_async import (
    APIConnectionError,
    AsyncFriendli,
    ChatCompletion,
    ConfigurationError,
    InternalServerError,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
)
from friendli_async.bulk import (
    CheckpointError,
    CheckpointInUseError,
    DuplicateKeyError,
    Outcome,
    RowsError,
    journal,
    run_all,
)
from friendli_async.testing import FriendliServer, status

ROWS: Final = [{"id": f"row {number}", "text": "x" * number} for number in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "done.jsonl"


class Caller:
    """A call that records its rows, and returns or raises a scripted reply."""

    def __init__(self, reply: Callable[[Any], Any] = lambda row: {"of": row}) -> None:
        self.rows: list[Any] = []
        self._reply = reply

    async def __call__(self, row: Any) -> Any:
        self.rows.append(row)
        await asyncio.sleep(0)
        reply = self._reply(row)
        if isinstance(reply, BaseException):
            raise reply
        return reply


async def run(
    rows: Any, call: Any, path: Path, seen: list[Outcome[Any, Any]] | None = None, **options: Any
) -> list[Outcome[Any, Any]]:
    """Runs to the end; `seen` also receives the outcomes that precede an error."""
    options = {"concurrency": 3, "key": lambda row: row["id"], "ordered": True, **options}
    seen = [] if seen is None else seen
    async with asyncio.timeout(30), run_all(rows, call, checkpoint=path, **options) as outcomes:
        async for outcome in outcomes:
            seen.append(outcome)  # a comprehension would lose its list on an error
    return seen


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- resuming --------------------------------------------------------------------------------------------------------


async def test_completed_rows_are_resumed_from_the_file(path: Path) -> None:
    first = await run(ROWS[:5], Caller(), path)
    caller = Caller()
    second = await run(ROWS, caller, path)
    assert caller.rows == ROWS[5:]
    assert [outcome.resumed for outcome in second] == [True] * 5 + [False] * 3
    assert [outcome.reply for outcome in second[:5]] == [outcome.reply for outcome in first]
    assert [line["key"] for line in lines(path)] == [row["id"] for row in ROWS]


async def test_outcome_is_written_before_it_is_yielded(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=1, key=lambda row: str(row["id"])) as outcomes:
        async for outcome in outcomes:
            assert outcome.key in {line["key"] for line in lines(path)}


async def test_reply_of_this_library_is_restored(path: Path, server: FriendliServer, client: AsyncFriendli) -> None:
    async def call(row: Any) -> ChatCompletion:
        return await complete(client)

    [first] = await run(ROWS[:1], call, path)
    [again] = await run(ROWS[:1], call, path)
    assert type(again.reply) is ChatCompletion
    assert again.reply == first.reply
    assert len(server.requests) == 1
    with pytest.raises(AttributeError, match="was not returned by a call"):
        _ = again.reply.meta


@pytest.mark.parametrize("reply", [None, True, 7, 1.5, "text", ["a", 1], {"a": [None]}, "half a pair: \ud83d"])
async def test_json_reply_is_restored(path: Path, reply: Any) -> None:
    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], Caller(lambda row: reply), path)
        assert (outcome.reply, type(outcome.reply), outcome.resumed) == (reply, type(reply), resumed)


class Invoice(msgspec.Struct):
    number: str
    total: float = 0.0


async def test_custom_type_is_restored_with_reply_type(path: Path) -> None:
    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], Caller(lambda row: Invoice(row["id"], 2.5)), path, reply_type=Invoice)
        assert (outcome.reply, outcome.resumed) == (Invoice("row 0", 2.5), resumed)


async def test_reply_of_unrestorable_type_is_yielded_before_the_error(path: Path) -> None:
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(CheckpointError, match="pass reply_type=Invoice"):
        await run(ROWS, Caller(lambda row: Invoice("1")), path, concurrency=1, seen=seen)
    assert [outcome.reply for outcome in seen] == [Invoice("1")]
    assert path.read_bytes() == b""


def test_undecodable_reply_type_is_rejected(path: Path) -> None:
    with pytest.raises(TypeError):
        run_all(ROWS, Caller(), checkpoint=path, reply_type=AsyncFriendli)
    assert not path.exists()


# --- rows sent again -------------------------------------------------------------------------------------------------

TRANSIENT: Final = [
    RateLimitError("slow down", status_code=429),
    InternalServerError("oops", status_code=500),
    APIConnectionError("gone"),
    ResponseDecodeError("no JSON"),
    ConfigurationError("no token"),
    KeyError("a bug"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
async def test_row_that_failed_transiently_is_sent_again(path: Path, error: Exception) -> None:
    [failed] = await run(ROWS[:1], Caller(lambda row: error), path)
    assert failed.error is error
    [again] = await run(ROWS[:1], Caller(), path)
    assert (again.error, again.resumed) == (None, False)
    [done] = await run(ROWS[:1], Caller(), path)
    assert (done.error, done.resumed) == (None, True)
    assert lines(path)[0]["error"]["type"] == type(error).__name__


async def test_permanently_rejected_row_is_not_sent_again(path: Path, server: FriendliServer) -> None:
    server.enqueue(status(422, message="no such parameter"))
    async with client_of(server.url) as client:

        async def call(row: Any) -> ChatCompletion:
            return await complete(client)

        [failed] = await run(ROWS[:1], call, path)
        [again] = await run(ROWS[:1], call, path)
    assert isinstance(failed.error, UnprocessableEntityError)
    assert isinstance(again.error, UnprocessableEntityError)
    assert again.resumed
    assert str(again.error) == str(failed.error)
    assert (again.error.body, again.error.type) == (failed.error.body, failed.error.type)
    assert len(server.requests) == 1


async def test_changed_row_is_logged_and_sent_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await run(ROWS[:3], Caller(), path)
    caller = Caller()
    changed = [ROWS[0], {**ROWS[1], "text": "another"}, dict(reversed(ROWS[2].items()))]
    with caplog.at_level(logging.WARNING, "friendli_async"):
        outcomes = await run(changed, caller, path)
    assert [outcome.resumed for outcome in outcomes] == [True, False, True]
    assert caller.rows == [changed[1]]
    assert "'row 1' has changed" in caplog.text
    assert [outcome.resumed for outcome in await run(changed, Caller(), path)] == [True, True, True]


async def test_row_without_key_is_identified_by_index_and_content(path: Path) -> None:
    await run(["a", "b", "c"], Caller(), path, key=None)
    caller = Caller()
    outcomes = await run(["a", "new", "b", "c"], caller, path, key=None)
    assert [outcome.key for outcome in outcomes] == [0, 1, 2, 3]
    assert caller.rows == ["new", "b", "c"]


@dataclasses.dataclass
class Question:
    id: str
    tags: tuple[str, ...] = ()


class Model(BaseModel):
    id: str
    size: int = 1


@pytest.mark.parametrize(
    "row",
    [Question("a", ("x",)), Model(id="a"), Invoice("a"), ("a", 1), {"id": "\ud83d"}],
    ids=lambda row: type(row).__name__,
)
async def test_rows_of_many_types_are_resumed(path: Path, row: Any) -> None:
    for resumed in (False, True):
        [outcome] = await run([row], Caller(lambda row: "done"), path, key=None)
        assert outcome.resumed is resumed


# --- rejected input --------------------------------------------------------------------------------------------------


async def test_duplicate_key_is_rejected(path: Path) -> None:
    caller = Caller()
    with pytest.raises(DuplicateKeyError, match="'row 1'"):
        await run([*ROWS[:3], ROWS[1]], caller, path)
    assert caller.rows == ROWS[:3]
    assert len(lines(path)) == 3
    with pytest.raises(DuplicateKeyError, match="'row 0'"):  # also among resumed rows
        await run([ROWS[0], ROWS[0]], caller, path)
    assert len(caller.rows) == 3


@pytest.mark.parametrize("key", [1.5, True, None, b"a", ("a",), 1 << 64, "\ud83d"])
async def test_invalid_key_is_rejected_before_sending(path: Path, key: Any) -> None:
    caller = Caller()
    with pytest.raises(RowsError, match="key"):
        await run(ROWS, caller, path, key=lambda row: key)
    assert caller.rows == []


async def test_string_and_integer_keys_are_distinct(path: Path) -> None:
    for resumed in (False, True):
        outcomes = await run([1, "1", -1], Caller(repr), path, key=lambda row: row)
        assert [(outcome.reply, outcome.resumed) for outcome in outcomes] == [
            ("1", resumed),
            ("'1'", resumed),
            ("-1", resumed),
        ]


async def test_unserializable_row_is_rejected_before_sending(path: Path) -> None:
    caller = Caller()
    with pytest.raises(RowsError, match="row 1 cannot be compared"):
        await run(["fine", object()], caller, path, key=None)
    assert caller.rows == ["fine"]


@pytest.mark.parametrize("content", [b"a novel\n", b"a novel", b'{"id": 1}\n', b"\n", b'{"key":"a"}\n', b"\xff\xfe\n"])
async def test_file_that_is_not_a_checkpoint_is_rejected_and_unchanged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    caller = Caller()
    with pytest.raises(CheckpointError, match="nothing was changed"):
        await run(ROWS, caller, path)
    assert path.read_bytes() == content
    assert caller.rows == []


async def test_path_that_cannot_be_a_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "done.jsonl"):
        with pytest.raises(CheckpointError, match=bad.name):
            await run(ROWS, Caller(), bad)


async def test_checkpoint_is_locked_by_its_run(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=1) as outcomes:
        await anext(outcomes)
        with pytest.raises(CheckpointInUseError, match="in use by another run"):
            await run(ROWS, Caller(), path)
        script = """if True:
            import sys; from pathlib import Path; from friendli_async.bulk.journal import Journal
            Journal(Path(sys.argv[1]), b"").open(None)"""
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, path, stderr=subprocess.PIPE)
        _, stderr = await other.communicate()
        assert b"CheckpointInUseError" in stderr
    assert len(await run(ROWS, Caller(), path, key=None)) == len(ROWS)


# --- damaged files and disk errors -----------------------------------------------------------------------------------


async def test_file_truncated_anywhere_loses_only_the_partial_line(path: Path) -> None:
    await run(ROWS[:3], Caller(), path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        caller = Caller()
        outcomes = await run(ROWS[:3], caller, path)
        kept = sum(is_json(line) for line in whole[:length].split(b"\n"))
        assert [outcome.resumed for outcome in outcomes] == [True] * kept + [False] * (3 - kept)
        assert caller.rows == ROWS[kept:3]
        assert path.read_bytes() == whole


async def test_unwritten_blocks_at_the_end_are_removed(path: Path) -> None:
    await run(ROWS[:2], Caller(), path)
    whole = path.read_bytes()
    for rest in (b"\0" * 4096, whole[:20] + b"\0" * 100):
        path.write_bytes(whole + rest)
        assert all(outcome.resumed for outcome in await run(ROWS[:2], Caller(), path))
        assert path.read_bytes() == whole


class Disk:
    """Replaces `os.write`: accepts `space` bytes, at most `at_once` per call, and is then full."""

    def __init__(self, space: int, at_once: int = 1 << 20) -> None:
        self.space = space
        self._at_once = at_once
        self._write = os.write

    def __call__(self, file: int, data: Any) -> int:
        size = min(len(data), self.space, self._at_once)
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.space -= size
        return self._write(file, bytes(data[:size]))


async def test_short_write_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal.os, "write", Disk(1 << 30, at_once=7))
    await run(ROWS, Caller(), path)
    monkeypatch.undo()
    assert [line["key"] for line in lines(path)] == [row["id"] for row in ROWS]


async def test_full_disk_ends_run_after_yielding_every_paid_outcome(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal.os, "write", Disk(250))
    seen: list[Outcome[Any, Any]] = []
    caller = Caller()
    with pytest.raises(CheckpointError, match=r"done\.jsonl cannot be written: No space left on device"):
        await run(ROWS, caller, path, seen)
    monkeypatch.undo()
    assert sorted(outcome.key for outcome in seen) == sorted(row["id"] for row in caller.rows)
    assert len(caller.rows) < len(ROWS)
    written = len(lines(path))  # fails on a partial line
    assert 0 < written < len(caller.rows)
    assert sum(outcome.resumed for outcome in await run(ROWS, Caller(), path)) == written


SMALL_FILES: Final = """
import asyncio, resource, signal, sys
from friendli_async.bulk import CheckpointError, run_all
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
async def call(row):
    return "x" * 100
async def main():
    async for outcome in run_all(range(100), call, checkpoint=sys.argv[1], concurrency=1):
        pass
try:
    asyncio.run(main())
except CheckpointError as error:
    print(error)
"""


def test_write_limited_by_the_kernel_leaves_no_partial_line(path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SMALL_FILES, str(path)]
    # Coverage could not write its data under that limit, either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written: File too large" in done.stdout
    assert path.read_bytes().endswith(b"}\n")
    assert 3 < len(lines(path)) < 10


@pytest.mark.parametrize("change", ["removed", "replaced"])
async def test_file_removed_or_replaced_during_run_is_detected(path: Path, change: str) -> None:
    def remove_file(row: Any) -> str:
        if row is ROWS[2]:
            path.unlink()
            if change == "replaced":
                path.touch()
        return "done"

    with pytest.raises(CheckpointError, match=change):
        await run(ROWS, Caller(remove_file), path)


async def test_file_is_synced_periodically_and_on_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    first_sync = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        loop.call_soon_threadsafe(first_sync.set)

    monkeypatch.setattr(journal, "_sync", sync)
    monkeypatch.setattr(journal, "_SYNC_SECONDS", 0.001)
    async with asyncio.timeout(30):
        async for outcome in run_all(ROWS, Caller(), checkpoint=path, concurrency=1):
            if outcome.key == 2:
                await first_sync.wait()
    assert synced[-1] == path.stat().st_size
    assert len(synced) >= 2


async def test_sync_failure_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal, "_sync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        await run(ROWS, Caller(), path)


async def test_leaving_a_run_keeps_completed_rows_in_the_file(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=2, key=lambda row: str(row["id"])) as outcomes:
        await anext(outcomes)
    done = len(lines(path))
    assert done >= 1
    again = await run(ROWS, Caller(), path)
    assert sum(outcome.resumed for outcome in again) == done


# --- kill -9 ---------------------------------------------------------------------------------------------------------

FORK_SERVER: Final = """
import asyncio, os, sys
from friendli_async import AsyncFriendli
from friendli_async.bulk import run_all

async def job(url, path, rows, concurrency):
    async with AsyncFriendli("test-token", server_url=url) as client:
        async def call(row):
            messages = [{"role": "user", "content": f"{row}"}]
            return await client.serverless.chat.complete(model="m", messages=messages)
        seen = set()
        async for outcome in run_all(range(rows), call, concurrency=concurrency, checkpoint=path, key=str):
            assert outcome.result().text == f"You said: {outcome.row}"
            assert outcome.key not in seen
            seen.add(outcome.key)
        assert len(seen) == rows

AsyncFriendli("test-token")  # imports the core before forking
for line in sys.stdin:  # one process per line, forked to skip the imports
    pid = os.fork()
    if not pid:
        asyncio.run(job(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLS: Final = 50
CONCURRENCY: Final = 8


async def test_fifty_kills_complete_each_row_once_and_resend_only_rows_in_flight(
    path: Path, remote: FriendliServer
) -> None:
    rng, rows = random.Random(10), 1200
    fork_server = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", FORK_SERVER, remote.url, str(path), str(rows), str(CONCURRENCY),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert fork_server.stdin is not None
    assert fork_server.stdout is not None
    endings = []
    try:
        async with asyncio.timeout(300):
            for kill in range(KILLS + 1):
                before = len(remote.requests)
                fork_server.stdin.write(b"\n")
                pid = int(await fork_server.stdout.readline())
                if kill < KILLS:
                    await remote.wait_for_requests(before + rng.randrange(1, 25))
                    await asyncio.sleep(rng.random() * 0.003)  # at a random point of its work
                    os.kill(pid, signal.SIGKILL)
                endings.append(int(await fork_server.stdout.readline()))
    finally:
        fork_server.kill()
        await fork_server.wait()
    assert endings == [-signal.SIGKILL] * KILLS + [0]
    assert sorted(int(line["key"]) for line in lines(path)) == list(range(rows))
    sent = Counter(request.json_object["messages"][0]["content"] for request in remote.requests)
    assert set(sent) == {str(row) for row in range(rows)}
    assert sent.total() - rows <= KILLS * CONCURRENCY
