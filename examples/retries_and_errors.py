"""Error handling: retries, timeouts, and the partial reply of an interrupted stream."""

import asyncio
import os

import friendli_async as f
from friendli_async.replies import Attempt

MODEL = os.environ.get("FRIENDLI_MODEL", "meta-llama-3.1-8b-instruct")


def report(attempt: Attempt) -> None:
    print(f"retrying in {attempt.wait:.2f} s after {attempt.cause}")


async def main() -> None:
    async with f.AsyncFriendli(
        timeout=f.Timeouts(connect=5, first_event=30, idle=20, total=90),
        retry=f.RetryPolicy(max_attempts=4, initial=0.25, max_retry_after=30, on_retry=report),
    ) as client:
        stream = client.serverless.chat.stream(model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}])
        try:
            reply = await stream.result()
            print(f"{reply.text!r}, {len(reply.meta.attempts)} attempts, request {reply.meta.request_id}")
        except f.RateLimitError as error:
            print(f"rate limited: retry after {error.retry_after} s")
        except f.APIStatusError as error:
            print(f"status {error.status_code} ({error.code}): {error.message}, request {error.request_id}")
        except f.APITimeoutError as error:
            print(f"timed out: {error.limit!r} is limited to {error.seconds:g} s")
        except f.StreamInterruptedError as error:
            print(f"interrupted after {error.partial.text if error.partial else ''!r}")
        except f.FriendliError as error:
            print(f"failed: {error}")


if __name__ == "__main__":
    asyncio.run(main())
