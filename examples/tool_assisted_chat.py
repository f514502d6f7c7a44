"""Tool-assisted chat: the server runs the built-in tools, and streams their status with the answer."""

import asyncio

from friendli_async import AsyncFriendli, ChatChunk, ToolStatus


async def main() -> None:
    async with AsyncFriendli() as client:
        async for event in client.serverless.tool_assisted_chat_completion(
            tool_assisted_completion_request_body={
                "model": "meta-llama-3.1-8b-instruct",
                "max_tokens": 200,
                "messages": [{"role": "user", "content": "What is 3 + 4 * 5?"}],
                "tools": [{"type": "math:calculator"}, {"type": "web:url"}],
            },
        ):
            match event:
                case ChatChunk():
                    print(event.text, end="", flush=True)
                case ToolStatus(name=name, status="STARTED"):
                    arguments = ", ".join(f"{each.name}={each.value}" for each in event.parameters)
                    print(f"[{name}({arguments})", end="", flush=True)
                case ToolStatus(status="ENDED"):
                    print(f" gives {event.result}]")
                case ToolStatus(status="ERRORED"):
                    print(f" failed: {event.error}]")
                case ToolStatus():
                    print(".", end="")
        print()


if __name__ == "__main__":
    asyncio.run(main())
