"""A stream or a run as the response of any ASGI app: Starlette, FastAPI, Litestar, Quart, or none.

It needs no framework. In a FastAPI or Starlette route, return ``integrations.fastapi.FriendliResponse``.

    async def app(scope, receive, send):
        stream = client.serverless.chat.stream(model="m", messages=[...])
        await SSEResponse(stream)(scope, receive, send)

Bytes from upstream are relayed unchanged. A browser that disconnects stops the model at once, whether it was reading or
not. A browser that reads slowly applies backpressure upstream: the next piece is read once the previous one was sent.
One that stops reading is disconnected after a while.

``error_status`` and ``error_body`` map an error to a response for the browser, and ``drain_on_shutdown`` lets responses
end before the server does, here and in ``integrations.fastapi``.
"""

from friendli_async.asgi.errors import error_body, error_status
from friendli_async.asgi.events import Encoded
from friendli_async.asgi.response import Servable, SSEResponse
from friendli_async.asgi.shutdown import Drainable, drain_on_shutdown

__all__ = ["Drainable", "Encoded", "SSEResponse", "Servable", "drain_on_shutdown", "error_body", "error_status"]
