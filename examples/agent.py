"""An agent with two tools, which the model may call in parallel: `python examples/agent.py [QUESTION]`."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from friendli_async import AsyncFriendli, ChatChunk
from friendli_async.tools import ToolFinished, tool


@tool
async def weather(city: str) -> dict[str, object]:
    """Current weather in a city."""
    return {"city": city, "sky": "clear", "degrees": 21}


@tool
def local_time(utc_offset: float = 0.0) -> str:
    """Current time of day at a UTC offset in hours."""
    return f"{datetime.now(UTC) + timedelta(hours=utc_offset):%H:%M}"


async def main(question: str, model: str = "meta-llama-3.3-70b-instruct") -> None:
    messages = [{"role": "user", "content": question}]
    async with AsyncFriendli() as client:  # reads FRIENDLI_TOKEN
        run = client.serverless.chat.run(
            model=model, messages=messages, tools=[weather, local_time], parallel_tool_calls=True
        )
        async for event in run:
            if isinstance(event, ChatChunk):
                print(event.text, end="", flush=True)
            elif isinstance(event, ToolFinished):
                print(f"[{event.call.function.name}: {event.content}]")
    print()


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "How is the weather in Seoul, and what time is it there?"))
