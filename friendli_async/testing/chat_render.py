"""The embedded server's chat rendering: a made-up template."""

from __future__ import annotations

from typing import Final

from friendli_async.testing.chat import message_text
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import deployed
from friendli_async.testing.script import Script, json_body

__all__ = ["ROUTES", "render"]


def render(request: ReceivedRequest) -> Script:
    """Answer a request to render a chat.

    Args:
        request: The request.
    """
    body = request.json_object
    turns = [f"<|{message['role']}|>\n{message_text(message)}\n" for message in body["messages"]]
    tools = [f"<|tool|>\n{tool['function']['name']}\n" for tool in body.get("tools") or ()]
    return json_body({"text": "".join([*tools, *turns, "<|assistant|>\n"])})


ROUTES: Final = deployed(
    "/v1/chat/render", render, body="{}ChatRenderBody", reply="{}ChatRenderSuccess", on=("Serverless", "Dedicated")
)
"""Chat rendering, for the deployments that support it."""
