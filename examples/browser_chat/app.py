"""A page that streams an answer, and stops it by its button; try `uvicorn app:app` in this directory."""

from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import FileResponse

from friendli_async import AsyncFriendli
from friendli_async.integrations.fastapi import FriendliResponse, get_client, install_error_handlers, lifespan

app = FastAPI(lifespan=lifespan())
install_error_handlers(app)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/chat")
async def chat(client: Annotated[AsyncFriendli, Depends(get_client)], question: dict[str, str]) -> FriendliResponse:
    messages = [{"role": "user", "content": question["text"]}]
    return FriendliResponse(client.serverless.chat.stream(model="deepseek-r1", messages=messages))
