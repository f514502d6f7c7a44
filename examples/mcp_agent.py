"""An agent with the tools of an MCP server, which asks before each call (`pip install 'friendli_async[mcp]' 'mcp>=2'`).

python examples/mcp_agent.py "Which files are here?" uvx mcp-server-git
"""

import asyncio
import sys

from mcp import Client, StdioServerParameters

from friendli_async import AsyncFriendli, ToolCall
from friendli_async.integrations.mcp import mcp_tools

MODEL = "meta-llama-3.3-70b-instruct"


async def approve(call: ToolCall) -> bool:
    print(f"Call {call.function.name}({call.function.arguments})? [y/n] ", end="", flush=True)
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, answered.set)  # input() in a thread would outlive Ctrl-C, and take the next line
    try:
        await answered.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().startswith("y")


async def main(question: str, command: str, *arguments: str) -> None:
    server = StdioServerParameters(command=command, args=list(arguments))
    async with AsyncFriendli() as client, Client(server) as session:
        messages, tools = [{"role": "user", "content": question}], await mcp_tools(session)
        run = client.serverless.chat.run(model=MODEL, messages=messages, tools=tools, before_tool=approve)
        print((await run.result()).reply.text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
