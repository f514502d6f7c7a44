"""A FastAPI app; try `uvicorn fastapi_app:app`. A browser that goes away stops the model, on every route."""

from typing import Annotated

from fastapi import Depends, FastAPI, Request, WebSocket

from friendli_async import AsyncFriendli, ChatCompletion, ChatStream
from friendli_async.integrations.fastapi import FriendliResponse, client_of, install_error_handlers, lifespan
from friendli_async.integrations.fastapi import while_connected as connected

app = FastAPI(lifespan=lifespan())
install_error_handlers(app)
Client = Annotated[AsyncFriendli, Depends(client_of)]


def asked(client: AsyncFriendli, q: str) -> ChatStream:
    return client.serverless.chat.stream(model="deepseek-r1", messages=[{"role": "user", "content": q}])


@app.get("/stream")
async def stream(client: Client, q: str) -> FriendliResponse:
    return FriendliResponse(asked(client, q))


@app.get("/plain")
async def plain(request: Request, client: Client, q: str) -> ChatCompletion:
    return await connected(request, asked(client, q).result())


@app.websocket("/socket")
async def socket(websocket: WebSocket, client: Client, q: str) -> None:
    async def answer() -> None:
        async for text in asked(client, q).text():
            await websocket.send_text(text)

    await websocket.accept()
    await connected(websocket, answer())
    await websocket.close()
