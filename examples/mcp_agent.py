"""An agent with the tools of an MCP server, which asks before each call (`pip install 'friendli_async[mcp]' 'mcp>=2'`).

python examples/mcp_agent.py "Which files are here?" uvx mcp-server-git
"""

import asyncio
import sys

from mcp import Client, StdioServerParameters

from friendli_async import AsyncFriendli, ToolCall
from friendli_async.integrations.mcp import mcp_tools


async def approve(call: ToolCall) -> bool:
    question = f"Call {call.function.name}({call.function.arguments})? [y/n] "
    return (await asyncio.to_thread(input, question)).startswith("y")


async def main(question: str, command: str, *arguments: str) -> None:
    server = StdioServerParameters(command=command, args=list(arguments))
    async with AsyncFriendli() as client, Client(server) as session:
        run = client.serverless.chat.run(
            model="meta-llama-3.3-70b-instruct",
            messages=[{"role": "user", "content": question}],
            tools=await mcp_tools(session),
            before_tool=approve,
        )
        print((await run.result()).reply.text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
