"""An app with an unlimited drain: `uvicorn support.patient_app:app`."""

from typing import Annotated

from fastapi import Depends, FastAPI

from friendli_async import AsyncFriendli
from friendli_async.integrations.fastapi import FriendliResponse, client_of, lifespan

app = FastAPI(lifespan=lifespan(drain=None))


@app.get("/relay")
async def relay(client: Annotated[AsyncFriendli, Depends(client_of)]) -> FriendliResponse:
    return FriendliResponse(client.serverless.chat.stream(model="m", messages=[{"role": "user", "content": "Hi"}]))
