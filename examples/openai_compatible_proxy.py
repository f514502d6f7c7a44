"""An OpenAI-compatible proxy: `uvicorn openai_compatible_proxy:app`, then OpenAI(base_url="http://.../v1")."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from friendli_async import AsyncFriendli, ChatCompletion
from friendli_async.integrations import fastapi as friendli

app = FastAPI(lifespan=friendli.lifespan())
friendli.install_error_handlers(app)
Client = Annotated[AsyncFriendli, Depends(friendli.get_client)]


@app.get("/v1/models")  # chat programs with a menu of models ask for it first
async def models(client: Client) -> dict[str, Any]:
    listed = [{"id": model.id, "object": "model"} for model in (await client.serverless.model.list()).data]
    return {"object": "list", "data": listed}


@app.post("/v1/chat/completions", response_model=ChatCompletion)
async def chat(request: Request, body: dict[str, Any], client: Client) -> ChatCompletion | Response:
    chat, streaming = client.serverless.chat, body.pop("stream", False)
    if "max_completion_tokens" in body:  # OpenAI's newer name, which its packages send
        body["max_tokens"] = body.pop("max_completion_tokens")
    required = {"model": body.pop("model", ""), "messages": body.pop("messages", [])}
    if streaming:
        body.setdefault("stream_options", {"include_usage": False})  # a chunk without choices, only for who asks for it
        return friendli.FriendliResponse(chat.stream(**required, extra_body=body))
    return await friendli.while_connected(request, chat.complete(**required, extra_body=body))
