"""Chat render: the prompt that a model's chat template makes of a conversation, without an answer to it.

Wire: ``POST {deployment}/v1/chat/render``, the same for serverless and dedicated endpoints; containers have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Unpack

from friendli_async._core.body.arguments import ExtraOptions, Parameters
from friendli_async._core.resource import Resource, operation
from friendli_async._help import described
from friendli_async.chat.inputs import REQUIRED, SENT, TOOLS, Messages, Tool
from friendli_async.replies import Reply

__all__ = ["ChatRender", "ChatRenderOptions", "RenderedChat"]


@described
class ChatRenderOptions(ExtraOptions, total=False):
    """Optional parameters of rendering. What is left out is left to the server; None is sent as null."""

    chat_template_kwargs: Mapping[str, object] | None
    """Variables for the model's chat template."""
    tools: Sequence[Tool | Mapping[str, object]] | None
    """Functions that the model is told of."""


class RenderedChat(Reply, frozen=True, kw_only=True):
    """A conversation as the model reads it."""

    text: str


_PARAMETERS: Final = Parameters(ChatRenderOptions, REQUIRED, {"tools": TOOLS}, SENT)
_RENDER: Final = operation("chat_render.render", "POST /v1/chat/render", RenderedChat, repeatable=True)


class ChatRender(Resource):
    """A model's chat template: ``client.serverless.chat_render``, ``client.dedicated.chat_render``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call; see ``friendli_async.errors``.
    """

    async def render(self, *, model: str, messages: Messages, **options: Unpack[ChatRenderOptions]) -> RenderedChat:
        """Renders a conversation into the prompt that the model would get.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            messages: The conversation, as for ``chat.complete``.
            options: See ``ChatRenderOptions``.

        Returns:
            The prompt's ``text``, with ``meta``.
        """
        required = {"model": model, "messages": messages}
        return await self._engine.call(_RENDER, _PARAMETERS.encode("render", required, options))
