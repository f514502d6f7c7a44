"""A FastAPI app; try `uvicorn fastapi_app:app`. A browser that goes away stops the model, on either route."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi_disconnect import while_connected

from friendli_async import AsyncFriendli, ChatStream


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, AsyncFriendli]]:
    async with AsyncFriendli() as client:  # one for the whole app
        yield {"client": client}


async def opened(request: Request, q: str) -> AsyncGenerator[ChatStream]:
    client: AsyncFriendli = request.state.client
    stream = client.serverless.chat.stream(model="deepseek-r1", messages=[{"role": "user", "content": q}])
    async with await while_connected(request, stream):  # open before the response begins, closed however it ends
        yield stream


app = FastAPI(lifespan=lifespan)


@app.get("/stream")
async def stream(chat: Annotated[ChatStream, Depends(opened)]) -> StreamingResponse:
    return StreamingResponse(chat.text(), media_type="text/plain")


@app.get("/plain")
async def plain(request: Request, q: str) -> str:
    client: AsyncFriendli = request.state.client
    call = client.serverless.chat.complete(model="deepseek-r1", messages=[{"role": "user", "content": q}])
    return (await while_connected(request, call)).text
