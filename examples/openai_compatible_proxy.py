"""An OpenAI-compatible route of your own: `uvicorn openai_compatible_proxy:app`, then OpenAI(base_url=".../v1")."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from friendli_async import AsyncFriendli, ChatCompletion
from friendli_async.integrations.fastapi import FriendliResponse, client_of, install_error_handlers, lifespan
from friendli_async.integrations.fastapi import while_connected as connected

app = FastAPI(lifespan=lifespan())
install_error_handlers(app)


@app.post("/v1/chat/completions", response_model=ChatCompletion)
async def chat(
    request: Request, body: dict[str, Any], client: Annotated[AsyncFriendli, Depends(client_of)]
) -> ChatCompletion | Response:
    chat, streaming = client.serverless.chat, body.pop("stream", False)
    required = {"model": body.pop("model", ""), "messages": body.pop("messages", [])}
    if streaming:
        return FriendliResponse(chat.stream(**required, extra_body=body))
    return await connected(request, chat.complete(**required, extra_body=body))
