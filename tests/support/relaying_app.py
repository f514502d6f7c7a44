"""The app that the tests run under real servers, in subprocesses: `uvicorn support.relaying_app:app`."""

import asyncio
from typing import Annotated

from fastapi import Depends, FastAPI, Request, WebSocket
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import Response

from friendli_async import AsyncFriendli, ChatCompletion, ChatStream
from friendli_async.asgi import SSEResponse
from friendli_async.integrations.fastapi import (
    FriendliResponse,
    client_of,
    install_error_handlers,
    lifespan,
    while_connected,
)
from friendli_async.tools import tool

app = FastAPI(lifespan=lifespan(drain=0.2, retry=None))
install_error_handlers(app)

Client = Annotated[AsyncFriendli, Depends(client_of)]


def streamed(client: AsyncFriendli) -> ChatStream:
    return client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}])


@app.get("/relay")
async def relay(client: Client) -> FriendliResponse:
    return FriendliResponse(streamed(client))


@tool
async def wait() -> None:
    """Never returns."""
    await asyncio.get_running_loop().create_future()


@app.get("/run")
async def run(client: Client) -> FriendliResponse:
    started = client.serverless.chat.run(model="m", messages=[{"role": "user", "content": "Hi"}], tools=[wait])
    return FriendliResponse(started, encode=lambda event: type(event).__name__)


@app.get("/impatient")
async def impatient(client: Client) -> FriendliResponse:
    return FriendliResponse(streamed(client), send_timeout=0.2)


@app.get("/early")
async def early(client: Client) -> FriendliResponse:
    return FriendliResponse(streamed(client), answer_after=0.05)


@app.post("/plain")
async def plain(request: Request, client: Client, question: dict[str, str]) -> ChatCompletion:
    call = client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": question["q"]}])
    return await while_connected(request, call)


@app.websocket("/socket")
async def socket(websocket: WebSocket, client: Client) -> None:
    await websocket.accept()

    async def answer() -> None:
        async for text in streamed(client).text():
            await websocket.send_text(text)

    await while_connected(websocket, answer())
    await websocket.close()


class Labelled(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-label"] = "yes"
        return response


wrapped = FastAPI()
install_error_handlers(wrapped)
wrapped.add_middleware(Labelled)
wrapped.get("/relay")(relay)
wrapped.post("/plain")(plain)
app.mount("/wrapped", wrapped)


async def bare(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg] # untyped ASGI
    await SSEResponse(streamed(scope["state"]["friendli"]))(scope, receive, send)  # type: ignore[arg-type] # the same


app.mount("/bare", bare)  # type: ignore[arg-type] # the same
