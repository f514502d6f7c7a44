"""The measured clients, behind a common interface.

Each is constructed as its documentation recommends, except that pools allow 5,000 connections and retries are off.
The constructor imports the client's library, so that a process loads only one of them.
"""

import asyncio
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable
from typing import Any, ClassVar, Final, TypeAlias

from .wire import MODEL

MESSAGES: Final[list[Any]] = [
    {"role": "system", "content": "You are a careful assistant."},
    {"role": "user", "content": "What is the answer to life, the universe and everything? Give your reasons."},
]
BODY: Final = {"model": MODEL, "messages": MESSAGES}
Each: TypeAlias = Callable[[Any], object]

_TOKEN: Final = "benchmark-token"
_PATH: Final = "/serverless/v1/chat/completions"
_CONNECTIONS: Final = 5_000


class Client(ABC):
    """One chat client that talks to `base`, a URL whose path chooses the server's behaviour."""

    module: ClassVar[str]
    """The client's top-level module, to check whether it is installed."""

    def __init__(self, base: str) -> None:
        """Store the base URL; subclasses import their library and construct its client."""
        self.base = base

    @abstractmethod
    async def read(self, each: Each) -> None:
        """Read one chat stream to its end and pass each decoded chunk to `each`."""

    @abstractmethod
    async def plain(self) -> None:
        """Make one chat call that is not streamed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections."""


class Floor(Client):
    """The minimum with the same libraries: no SSE parsing rules, no accumulation, no error handling, no limits."""

    module = "aiohttp"

    def __init__(self, base: str) -> None:
        """Use the structs of `Ours`, so that both decode into the same types."""
        super().__init__(base)
        import aiohttp
        import msgspec

        from friendli_async import ChatChunk, ChatCompletion

        self._url = base + _PATH
        self._encode = msgspec.json.encode
        self._chunks = msgspec.json.Decoder(ChatChunk)
        self._replies = msgspec.json.Decoder(ChatCompletion)
        headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"}
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_CONNECTIONS), headers=headers)

    async def read(self, each: Each) -> None:
        decode = self._chunks.decode
        async with self._session.post(self._url, data=self._encode(BODY | {"stream": True})) as response:
            rest = b""
            async for data in response.content.iter_any():
                *frames, rest = (rest + data).split(b"\n\n")
                for frame in frames:
                    payload = frame[6:]
                    if payload != b"[DONE]":
                        each(decode(payload))

    async def plain(self) -> None:
        async with self._session.post(self._url, data=self._encode(BODY)) as response:
            self._replies.decode(await response.read())

    async def aclose(self) -> None:
        await self._session.close()


class Ours(Client):
    """friendli_async, through its public API."""

    module = "friendli_async"

    def __init__(self, base: str, **options: Any) -> None:
        """Construct the client with additional `options`."""
        super().__init__(base)
        from friendli_async import AsyncFriendli

        self._client = AsyncFriendli(_TOKEN, server_url=base, retry=None, max_connections=_CONNECTIONS, **options)
        self._chat = self._client.serverless.chat

    async def read(self, each: Each) -> None:
        async with self._chat.stream(model=MODEL, messages=MESSAGES) as stream:
            async for chunk in stream:
                each(chunk)

    async def relay(self, each: Each) -> None:
        """Read the raw bytes of one stream."""
        async for data in self._chat.stream(model=MODEL, messages=MESSAGES).raw():
            each(data)

    async def encode(self, each: Each) -> None:
        """Read the events of one stream, and encode them again."""
        from msgspec.json import encode

        async for chunk in self._chat.stream(model=MODEL, messages=MESSAGES):
            each(b"data: " + encode(chunk) + b"\n\n")

    async def tee(self, n: int, each: Each) -> None:
        """Read one stream in `n` concurrent branches."""

        async def read(branch: AsyncIterable[object]) -> None:
            async for chunk in branch:
                each(chunk)

        branches = self._chat.stream(model=MODEL, messages=MESSAGES).tee(n)
        await asyncio.gather(*map(read, branches))

    async def plain(self) -> None:
        await self._chat.complete(model=MODEL, messages=MESSAGES)

    async def reply(self) -> Any:
        """Make the same call and return its reply."""
        return await self._chat.complete(model=MODEL, messages=MESSAGES)

    async def aclose(self) -> None:
        await self._client.aclose()


class OpenAI(Client):
    """The official `openai` client."""

    module = "openai"

    def __init__(self, base: str) -> None:
        super().__init__(base)
        import openai

        # Its default pool of 1,000 connections exceeds the number of streams that it keeps up with.
        self._client = openai.AsyncOpenAI(api_key=_TOKEN, base_url=base, max_retries=0)

    async def read(self, each: Each) -> None:
        stream = await self._client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        async with stream:
            async for chunk in stream:
                each(chunk)

    async def plain(self) -> None:
        await self._client.chat.completions.create(model=MODEL, messages=MESSAGES)

    async def aclose(self) -> None:
        await self._client.close()


class Friendli(Client):
    """The official `friendli` client."""

    module = "friendli"

    def __init__(self, base: str) -> None:
        super().__init__(base)
        import friendli
        import httpx

        # Its default pool has 100 connections and a pool timeout of 5 s, so that 1,000 streams would fail.
        self._http = httpx.AsyncClient(limits=httpx.Limits(max_connections=_CONNECTIONS), timeout=None)
        client: Any = friendli  # `stream=True` does not decide the type of what its methods return
        self._client = client.AsyncFriendli(token=_TOKEN, server_url=base, async_client=self._http, retry_config=None)

    async def read(self, each: Each) -> None:
        stream = await self._client.serverless.chat.complete(model=MODEL, messages=MESSAGES, stream=True)
        async with stream:
            async for event in stream:
                each(event.data)

    async def plain(self) -> None:
        await self._client.serverless.chat.complete(model=MODEL, messages=MESSAGES)

    async def aclose(self) -> None:
        await self._http.aclose()


FLOOR: Final = "floor"
OURS: Final = "friendli_async"
CLIENTS: Final[dict[str, type[Client]]] = {FLOOR: Floor, OURS: Ours, "openai": OpenAI, "friendli": Friendli}


def installed(name: str) -> bool:
    """Return whether the library of a client is installed."""
    return importlib.util.find_spec(CLIENTS[name].module) is not None
