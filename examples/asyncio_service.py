"""A TCP service that streams an answer to each line it receives. Try: nc 127.0.0.1 8023"""

import asyncio
import contextlib
import os

from friendli_async import AsyncFriendli, FriendliError, Timeouts

MODEL = os.environ.get("FRIENDLI_MODEL", "meta-llama-3.1-8b-instruct")


async def answer(client: AsyncFriendli, question: str, writer: asyncio.StreamWriter) -> None:
    stream = client.serverless.chat.stream(model=MODEL, messages=[{"role": "user", "content": question}])
    try:
        async with stream.text() as pieces:  # an error or a cancellation closes the stream, which stops the model
            async for piece in pieces:
                writer.write(piece.encode())
                await writer.drain()
    except FriendliError as error:
        writer.write(f"[{type(error).__name__}]".encode())
    writer.write(b"\n")


async def main() -> None:
    async with AsyncFriendli(timeout=Timeouts(total=120)) as client:  # one client for all connections

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(ConnectionError):  # the peer may have gone
                async for line in reader:
                    await answer(client, line.decode(), writer)

        server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ.get("PORT", "8023")))
        print("Listening on port", server.sockets[0].getsockname()[1], flush=True)
        with contextlib.closing(server):  # serve_forever() waits for open connections from Python 3.12 on
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
