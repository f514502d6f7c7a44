"""Static types of bulk runs: outcomes carry the type of the row and of the reply."""

from pathlib import Path
from typing import Any, assert_type

from friendli_async import AsyncFriendli, ChatCompletion
from friendli_async.bulk import Adaptive, Outcome, Progress, Run, run_all


async def use(client: AsyncFriendli) -> None:
    async def ask(row: tuple[str, int]) -> ChatCompletion:
        return await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": row[0]}])

    run = run_all([("a", 1)], ask, concurrency=Adaptive(max=8), checkpoint="x.jsonl", key=lambda row: row[1])
    assert_type(run, Run[tuple[str, int], ChatCompletion])
    async with run as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, Outcome[tuple[str, int], ChatCompletion])
            assert_type(outcome.key, str | int)
            assert_type(outcome.row, tuple[str, int])
            assert_type(outcome.reply, ChatCompletion | None)
            assert_type(outcome.error, Exception | None)
            assert_type(outcome.result(), ChatCompletion)
    assert_type(run.progress, Progress)

    async def length(row: Any) -> int:
        return len(row)

    assert_type(run_all(Path("rows.jsonl"), length), Run[Any, int])

    async def either(row: int) -> ChatCompletion | str:
        return str(row)

    assert_type(run_all([1], either, reply_type=ChatCompletion | str), Run[int, ChatCompletion | str])
    assert_type(run_all(Path("rows.jsonl"), either, reply_type=ChatCompletion | str), Run[int, ChatCompletion | str])
    run_all([1], ask)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]  # wrong row type
