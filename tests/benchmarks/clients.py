"""The measured clients, all behind the same two verbs.

Each is built as its own documentation builds it, except that pools admit 5,000 connections and retries are off. A
client's library is imported by its constructor, so that one process holds one library only.
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
    """The module whose absence means that the client is not installed."""

    def __init__(self, base: str) -> None:
        """Remember where to talk to; subclasses import and build their library's client."""
        self.base = base

    @abstractmethod
    async def read(self, each: Each) -> None:
        """Read one chat stream to its end and hand each decoded chunk to `each`."""

    @abstractmethod
    async def plain(self) -> None:
        """Make one chat call that is not streamed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections."""


class Floor(Client):
    """The least that can be done with the same libraries: no framing rules, no accumulation, no errors, no limits."""

    module = "aiohttp"

    def __init__(self, base: str) -> None:
        """Use the structs that `Ours` gives, so that both decode into the same."""
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
    """friendli_async, by its public interface."""

    module = "friendli_async"

    def __init__(self, base: str, **options: Any) -> None:
        """Build the client with `options` beside what all measurements have."""
        super().__init__(base)
        from friendli_async import AsyncFriendli

        self._client = AsyncFriendli(_TOKEN, server_url=base, retry=None, max_connections=_CONNECTIONS, **options)
        self._chat = self._client.serverless.chat

    async def read(self, each: Each) -> None:
        async with self._chat.stream(model=MODEL, messages=MESSAGES) as stream:
            async for chunk in stream:
                each(chunk)

    async def relay(self, each: Each) -> None:
        """Read one stream's bytes as they come."""
        async for data in self._chat.stream(model=MODEL, messages=MESSAGES).raw():
            each(data)

    async def encode(self, each: Each) -> None:
        """Read one stream's events, and make bytes of them again."""
        from msgspec.json import encode

        async for chunk in self._chat.stream(model=MODEL, messages=MESSAGES):
            each(b"data: " + encode(chunk) + b"\n\n")

    async def tee(self, n: int, each: Each) -> None:
        """Read one stream in `n` branches at once."""

        async def read(branch: AsyncIterable[object]) -> None:
            async for chunk in branch:
                each(chunk)

        branches = self._chat.stream(model=MODEL, messages=MESSAGES).tee(n)
        await asyncio.gather(*map(read, branches))

    async def plain(self) -> None:
        await self._chat.complete(model=MODEL, messages=MESSAGES)

    async def reply(self) -> Any:
        """Make the same call, and return what it gave."""
        return await self._chat.complete(model=MODEL, messages=MESSAGES)

    async def aclose(self) -> None:
        await self._client.aclose()


class OpenAI(Client):
    """The official `openai` client."""

    module = "openai"

    def __init__(self, base: str) -> None:
        super().__init__(base)
        import openai

        # Its own pool admits 1,000 connections, more streams than it keeps up with.
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

        # Its own pool admits 100 connections and waits for one 5 s at most, which 1,000 streams would only fail on.
        self._http = httpx.AsyncClient(limits=httpx.Limits(max_connections=_CONNECTIONS), timeout=None)
        self._client = friendli.AsyncFriendli(token=_TOKEN, server_url=base, async_client=self._http, retry_config=None)

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
    """Tell whether the library of a client can be imported."""
    return importlib.util.find_spec(CLIENTS[name].module) is not None
