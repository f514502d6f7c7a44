"""An agent with two tools: the model calls both at once, and answers from what they give.

python examples/agent.py "How is the weather in Seoul, and what is the time there?"
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from friendli_async import AsyncFriendli, ChatChunk
from friendli_async.tools import ToolFinished, tool


@tool
async def weather(city: str) -> dict[str, object]:
    """Weather of a city, by its name."""
    return {"city": city, "sky": "clear", "degrees": 21}


@tool
def time(hours_from_utc: float = 0.0) -> str:
    """The time of day, so many hours east of Greenwich."""
    return f"{datetime.now(UTC) + timedelta(hours=hours_from_utc):%H:%M}"


async def main(question: str, model: str = "meta-llama-3.3-70b-instruct") -> None:
    ask = [{"role": "user", "content": question}]
    async with AsyncFriendli() as client:
        run = client.serverless.chat.run(model=model, messages=ask, tools=[weather, time], parallel_tool_calls=True)
        async for event in run:
            if isinstance(event, ChatChunk):
                print(event.text, end="", flush=True)
            elif isinstance(event, ToolFinished):
                print(f"[{event.call.function.name}: {event.content}]")
    print()


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "How is the weather in Seoul, and what is the time there?"))
