"""A conversation: each answer is streamed, and appended to the messages."""

import asyncio
import os
import sys

from friendli_async import AsyncFriendli
from friendli_async.chat import AssistantMessage, Message, SystemMessage, UserMessage
from friendli_async.replies import Usage

MODEL = os.environ.get("FRIENDLI_MODEL", "meta-llama-3.1-8b-instruct")


async def answer(client: AsyncFriendli, conversation: list[Message]) -> Usage | None:
    stream = client.serverless.chat.stream(model=MODEL, messages=conversation, max_tokens=200)
    async for chunk in stream:
        print(chunk.text, end="", flush=True)
    print()
    reply = await stream.result()  # the complete reply, assembled from the chunks
    conversation.append(AssistantMessage(reply.text))
    return reply.usage


async def main() -> None:
    conversation: list[Message] = [SystemMessage("Answer in one sentence.")]
    async with AsyncFriendli() as client:
        for question in sys.argv[1:] or ["Why is the sky blue?", "And at dusk?"]:
            print(f"> {question}")
            conversation.append(UserMessage(question))
            usage = await answer(client, conversation)
            if usage is not None:
                print(f"({usage.prompt_tokens} + {usage.completion_tokens} tokens)")


if __name__ == "__main__":
    asyncio.run(main())
