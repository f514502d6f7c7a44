"""A batch job, which resumes if it is run again: `python examples/batch.py QUESTIONS.jsonl CHECKPOINT.jsonl`."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from friendli_async import AsyncFriendli, ChatCompletion
from friendli_async.bulk import Progress, run_all

MODEL = os.environ.get("FRIENDLI_MODEL", "meta-llama-3.1-8b-instruct")


def show(progress: Progress) -> None:
    if progress.done % 100 == 0:
        print(f"{progress.done} rows, {progress.failed} failed, {progress.limit} at a time", file=sys.stderr)


async def main(rows: Path, checkpoint: Path) -> None:
    async with AsyncFriendli() as client:

        async def answer(row: dict[str, Any]) -> ChatCompletion:
            messages = [{"role": "user", "content": row["question"]}]
            return await client.serverless.chat.complete(model=MODEL, messages=messages, max_tokens=100)

        run = run_all(rows, answer, checkpoint=checkpoint, key=lambda row: str(row["id"]), on_progress=show)
        async with run as outcomes:
            async for outcome in outcomes:
                source = "from the checkpoint" if outcome.resumed else f"attempts: {outcome.attempts}"
                print(f"{outcome.key} ({source}): {outcome.error or outcome.result().text}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
