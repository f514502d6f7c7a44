"""A Pydantic AI agent with a tool, streamed: `python examples/pydantic_ai_agent.py [QUESTION]`."""

import asyncio
import sys

from pydantic_ai import Agent

from friendli_async import AsyncFriendli
from friendli_async.integrations.pydantic_ai import FriendliModel

agent = Agent(instructions="Answer in one sentence.")


@agent.tool_plain
def weather(city: str) -> str:
    """Current weather in a city."""
    return f"sunny in {city}, 21 degrees"


async def main(question: str) -> None:
    async with AsyncFriendli() as client:  # reads FRIENDLI_TOKEN
        model = FriendliModel("meta-llama-3.1-8b-instruct", client=client)
        async with agent.run_stream(question, model=model) as answer:
            async for text in answer.stream_text(delta=True):
                print(text, end="", flush=True)
        print(f"\n{answer.usage.output_tokens} tokens", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "How is the weather in Paris?"))
