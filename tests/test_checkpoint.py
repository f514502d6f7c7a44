"""The checkpoint of a run: what is in it, what is sent again, and what a kill, a full disk or a second run do to it."""

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
    """A call that remembers for which rows it was made, and gives or raises what it is told to."""

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
    """Runs to the end; `seen` has what comes before an error."""
    options = {"concurrency": 3, "key": lambda row: row["id"], "ordered": True, **options}
    seen = [] if seen is None else seen
    async with asyncio.timeout(30), run_all(rows, call, checkpoint=path, **options) as outcomes:
        async for outcome in outcomes:
            seen.append(outcome)  # a list would be lost
    return seen


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- what is done ----------------------------------------------------------------------------------------------------


async def test_what_is_done_is_given_from_the_file_and_not_sent_again(path: Path) -> None:
    first = await run(ROWS[:5], Caller(), path)
    caller = Caller()
    second = await run(ROWS, caller, path)
    assert caller.rows == ROWS[5:]
    assert [outcome.resumed for outcome in second] == [True] * 5 + [False] * 3
    assert [outcome.reply for outcome in second[:5]] == [outcome.reply for outcome in first]
    assert [line["key"] for line in lines(path)] == [row["id"] for row in ROWS]


async def test_an_outcome_is_in_the_file_before_it_is_given_out(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=1, key=lambda row: str(row["id"])) as outcomes:
        async for outcome in outcomes:
            assert outcome.key in {line["key"] for line in lines(path)}


async def test_a_reply_of_this_library_comes_back_as_what_it_was(
    path: Path, server: FriendliServer, client: AsyncFriendli
) -> None:
    async def call(row: Any) -> ChatCompletion:
        return await complete(client)

    [first] = await run(ROWS[:1], call, path)
    [again] = await run(ROWS[:1], call, path)
    assert type(again.reply) is ChatCompletion
    assert again.reply == first.reply
    assert len(server.requests) == 1
    with pytest.raises(AttributeError, match="did not come from a call"):
        _ = again.reply.meta


@pytest.mark.parametrize("reply", [None, True, 7, 1.5, "text", ["a", 1], {"a": [None]}, "half a pair: \ud83d"])
async def test_json_comes_back_as_what_it_was(path: Path, reply: Any) -> None:
    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], Caller(lambda row: reply), path)
        assert (outcome.reply, type(outcome.reply), outcome.resumed) == (reply, type(reply), resumed)


class Invoice(msgspec.Struct):
    number: str
    total: float = 0.0


async def test_a_type_of_the_users_own_comes_back_with_reply_type(path: Path) -> None:
    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], Caller(lambda row: Invoice(row["id"], 2.5)), path, reply_type=Invoice)
        assert (outcome.reply, outcome.resumed) == (Invoice("row 0", 2.5), resumed)


async def test_a_type_that_could_not_come_back_is_refused_and_its_reply_given_out(path: Path) -> None:
    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(CheckpointError, match="give reply_type=Invoice"):
        await run(ROWS, Caller(lambda row: Invoice("1")), path, concurrency=1, seen=seen)
    assert [outcome.reply for outcome in seen] == [Invoice("1")]
    assert path.read_bytes() == b""


def test_a_reply_type_that_nothing_can_be_decoded_into_is_refused(path: Path) -> None:
    with pytest.raises(TypeError):
        run_all(ROWS, Caller(), checkpoint=path, reply_type=AsyncFriendli)
    assert not path.exists()


# --- what is sent again ----------------------------------------------------------------------------------------------

PASSING: Final = [
    RateLimitError("slow down", status_code=429),
    InternalServerError("oops", status_code=500),
    APIConnectionError("gone"),
    ResponseDecodeError("no JSON"),
    ConfigurationError("no token"),
    KeyError("a bug"),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
async def test_a_row_that_failed_by_what_may_pass_is_sent_again(path: Path, error: Exception) -> None:
    [failed] = await run(ROWS[:1], Caller(lambda row: error), path)
    assert failed.error is error
    [again] = await run(ROWS[:1], Caller(), path)
    assert (again.error, again.resumed) == (None, False)
    [done] = await run(ROWS[:1], Caller(), path)
    assert (done.error, done.resumed) == (None, True)
    assert lines(path)[0]["error"]["type"] == type(error).__name__


async def test_a_row_that_was_refused_for_good_is_not_sent_again(path: Path, server: FriendliServer) -> None:
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


async def test_a_row_that_has_changed_is_named_and_sent_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await run(ROWS[:3], Caller(), path)
    caller = Caller()
    changed = [ROWS[0], {**ROWS[1], "text": "another"}, dict(reversed(ROWS[2].items()))]
    with caplog.at_level(logging.WARNING, "friendli_async"):
        outcomes = await run(changed, caller, path)
    assert [outcome.resumed for outcome in outcomes] == [True, False, True]
    assert caller.rows == [changed[1]]
    assert "'row 1' has changed" in caplog.text
    assert [outcome.resumed for outcome in await run(changed, Caller(), path)] == [True, True, True]


async def test_without_a_key_a_row_is_known_by_its_place_and_content(path: Path) -> None:
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
async def test_rows_of_many_types_are_known_again(path: Path, row: Any) -> None:
    for resumed in (False, True):
        [outcome] = await run([row], Caller(lambda row: "done"), path, key=None)
        assert outcome.resumed is resumed


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_two_rows_with_one_key_are_refused(path: Path) -> None:
    caller = Caller()
    with pytest.raises(DuplicateKeyError, match="'row 1'"):
        await run([*ROWS[:3], ROWS[1]], caller, path)
    assert caller.rows == ROWS[:3]
    assert len(lines(path)) == 3
    with pytest.raises(DuplicateKeyError, match="'row 0'"):  # of rows that are done, too
        await run([ROWS[0], ROWS[0]], caller, path)
    assert len(caller.rows) == 3


@pytest.mark.parametrize("key", [1.5, True, None, b"a", ("a",), 1 << 64, "\ud83d"])
async def test_what_is_no_key_is_refused_before_anything_is_sent(path: Path, key: Any) -> None:
    caller = Caller()
    with pytest.raises(RowsError, match="key"):
        await run(ROWS, caller, path, key=lambda row: key)
    assert caller.rows == []


async def test_text_and_numbers_are_different_keys(path: Path) -> None:
    for resumed in (False, True):
        outcomes = await run([1, "1", -1], Caller(repr), path, key=lambda row: row)
        assert [(outcome.reply, outcome.resumed) for outcome in outcomes] == [
            ("1", resumed),
            ("'1'", resumed),
            ("-1", resumed),
        ]


async def test_a_row_that_cannot_be_written_is_refused_before_it_is_sent(path: Path) -> None:
    caller = Caller()
    with pytest.raises(RowsError, match="the row 1 cannot be compared"):
        await run(["fine", object()], caller, path, key=None)
    assert caller.rows == ["fine"]


@pytest.mark.parametrize("content", [b"a novel\n", b"a novel", b'{"id": 1}\n', b"\n", b'{"key":"a"}\n', b"\xff\xfe\n"])
async def test_a_file_that_is_no_checkpoint_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    caller = Caller()
    with pytest.raises(CheckpointError, match="nothing was changed"):
        await run(ROWS, caller, path)
    assert path.read_bytes() == content
    assert caller.rows == []


async def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "done.jsonl"):
        with pytest.raises(CheckpointError, match=bad.name):
            await run(ROWS, Caller(), bad)


async def test_a_checkpoint_serves_one_run_at_a_time(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=1) as outcomes:
        await anext(outcomes)
        with pytest.raises(CheckpointInUseError, match="in use by another run"):
            await run(ROWS, Caller(), path)
        script = """if True:
            import sys; from pathlib import Path; from friendli_async.bulk.journal import Journal
            Journal(Path(sys.argv[1]), b"").open(None)"""
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, path, stderr=subprocess.PIPE)
        _, said = await other.communicate()
        assert b"CheckpointInUseError" in said
    assert len(await run(ROWS, Caller(), path, key=None)) == len(ROWS)


# --- what may befall the file ----------------------------------------------------------------------------------------


async def test_a_file_that_is_cut_anywhere_loses_the_cut_line_and_nothing_else(path: Path) -> None:
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


async def test_blocks_that_were_never_written_are_cut(path: Path) -> None:
    await run(ROWS[:2], Caller(), path)
    whole = path.read_bytes()
    for rest in (b"\0" * 4096, whole[:20] + b"\0" * 100):
        path.write_bytes(whole + rest)
        assert all(outcome.resumed for outcome in await run(ROWS[:2], Caller(), path))
        assert path.read_bytes() == whole


class Disk:
    """Stands in for `os.write`: takes so many bytes, a few at a time, and then is full."""

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


async def test_a_short_write_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal.os, "write", Disk(1 << 30, at_once=7))
    await run(ROWS, Caller(), path)
    monkeypatch.undo()
    assert [line["key"] for line in lines(path)] == [row["id"] for row in ROWS]


async def test_a_full_disk_ends_the_run_with_every_paid_outcome_given_out(
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
    written = len(lines(path))  # and no half of a line
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


def test_a_write_that_the_kernel_cuts_leaves_no_half_line(path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SMALL_FILES, str(path)]
    # What is measured there could not be written, either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written: File too large" in done.stdout
    assert path.read_bytes().endswith(b"}\n")
    assert 3 < len(lines(path)) < 10


@pytest.mark.parametrize("fate", ["removed", "replaced"])
async def test_a_file_that_is_taken_away_during_a_run_is_noticed(path: Path, fate: str) -> None:
    def take_away(row: Any) -> str:
        if row is ROWS[2]:
            path.unlink()
            if fate == "replaced":
                path.touch()
        return "done"

    with pytest.raises(CheckpointError, match=fate):
        await run(ROWS, Caller(take_away), path)


async def test_what_is_written_is_made_durable_at_the_close_and_in_between(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    between = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        loop.call_soon_threadsafe(between.set)

    monkeypatch.setattr(journal, "_sync", sync)
    monkeypatch.setattr(journal, "_SYNC_SECONDS", 0.001)
    async with asyncio.timeout(30):
        async for outcome in run_all(ROWS, Caller(), checkpoint=path, concurrency=1):
            if outcome.key == 2:
                await between.wait()
    assert synced[-1] == path.stat().st_size
    assert len(synced) >= 2


async def test_a_disk_that_fails_to_sync_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal, "_sync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        await run(ROWS, Caller(), path)


async def test_leaving_a_run_leaves_what_is_done_in_the_file(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=2, key=lambda row: str(row["id"])) as outcomes:
        await anext(outcomes)
    done = len(lines(path))
    assert done >= 1
    again = await run(ROWS, Caller(), path)
    assert sum(outcome.resumed for outcome in again) == done


# --- kill -9 ---------------------------------------------------------------------------------------------------------

NURSERY: Final = """
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

AsyncFriendli("test-token")  # loads the machine, which each would else load anew
for line in sys.stdin:  # each time a process of its own, without waiting for its imports
    pid = os.fork()
    if not pid:
        asyncio.run(job(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLS: Final = 50
CONCURRENCY: Final = 8


async def test_fifty_kills_lose_no_row_finish_none_twice_and_send_again_only_what_was_under_way(
    path: Path, remote: FriendliServer
) -> None:
    chance, rows = random.Random(10), 1200
    nursery = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", NURSERY, remote.url, str(path), str(rows), str(CONCURRENCY),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    endings = []
    try:
        async with asyncio.timeout(300):
            for kill in range(KILLS + 1):
                before = len(remote.requests)
                nursery.stdin.write(b"\n")
                pid = int(await nursery.stdout.readline())
                if kill < KILLS:
                    await remote.wait_for_requests(before + chance.randrange(1, 25))
                    await asyncio.sleep(chance.random() * 0.003)  # into whatever it is doing
                    os.kill(pid, signal.SIGKILL)
                endings.append(int(await nursery.stdout.readline()))
    finally:
        nursery.kill()
        await nursery.wait()
    assert endings == [-signal.SIGKILL] * KILLS + [0]
    assert sorted(int(line["key"]) for line in lines(path)) == list(range(rows))
    sent = Counter(request.json_object["messages"][0]["content"] for request in remote.requests)
    assert set(sent) == {str(row) for row in range(rows)}
    assert sent.total() - rows <= KILLS * CONCURRENCY
