"""A FastAPI app: `uvicorn fastapi_app:app`. On every route, a disconnect of the browser stops the model."""

from typing import Annotated

from fastapi import Depends, FastAPI, Request, WebSocket

from friendli_async import AsyncFriendli, ChatCompletion, ChatStream
from friendli_async.integrations import fastapi as friendli

app = FastAPI(lifespan=friendli.lifespan())
friendli.install_error_handlers(app)
Client = Annotated[AsyncFriendli, Depends(friendli.get_client)]


def ask(client: AsyncFriendli, q: str) -> ChatStream:
    return client.serverless.chat.stream(model="deepseek-r1", messages=[{"role": "user", "content": q}])


@app.get("/stream")
async def stream(client: Client, q: str) -> friendli.FriendliResponse:
    return friendli.FriendliResponse(ask(client, q))


@app.get("/plain")
async def plain(request: Request, client: Client, q: str) -> ChatCompletion:
    return await friendli.while_connected(request, ask(client, q).result())


@app.websocket("/socket")
async def socket(websocket: WebSocket, client: Client, q: str) -> None:
    async def answer() -> None:
        async for text in ask(client, q).text():
            await websocket.send_text(text)

    await websocket.accept()
    await friendli.while_connected(websocket, answer())
    await websocket.close()
