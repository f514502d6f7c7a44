"""Chat render: renders a conversation with a model's chat template, without generating an answer.

Wire: ``POST {deployment}/v1/chat/render``, the same for serverless and dedicated endpoints; containers have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Unpack

from friendli_async._core.body.arguments import ExtraOptions, Parameters
from friendli_async._core.resource import Resource, operation
from friendli_async._help import document_fields
from friendli_async.chat.inputs import CONVERTERS, REQUIRED, TOOLS, LocalTool, Messages, Tool
from friendli_async.replies import Reply

__all__ = ["ChatRender", "ChatRenderOptions", "RenderedChat"]


@document_fields
class ChatRenderOptions(ExtraOptions, total=False):
    """Optional parameters of rendering. Omitted ones are left to the server; None is sent as null."""

    chat_template_kwargs: Mapping[str, object] | None
    """Variables for the model's chat template."""
    tools: Sequence[Tool | Mapping[str, object] | LocalTool] | None
    """Functions to include in the prompt: definitions, or local tools (``@tool``)."""


class RenderedChat(Reply, frozen=True, kw_only=True):
    """A rendered prompt."""

    text: str


_PARAMETERS: Final = Parameters(ChatRenderOptions, REQUIRED, {"tools": TOOLS}, CONVERTERS)
_RENDER: Final = operation("chat_render.render", "POST /v1/chat/render", RenderedChat, repeatable=True)


class ChatRender(Resource):
    """A model's chat template: ``client.serverless.chat_render``, ``client.dedicated.chat_render``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed; see ``friendli_async.errors``.
    """

    async def render(self, *, model: str, messages: Messages, **options: Unpack[ChatRenderOptions]) -> RenderedChat:
        """Renders a conversation into the prompt that the model would receive.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            messages: The conversation, as for ``chat.complete``.
            options: See ``ChatRenderOptions``.

        Returns:
            The prompt's ``text``, with ``meta``.
        """
        required = {"model": model, "messages": messages}
        return await self._engine.call(_RENDER, _PARAMETERS.encode("render", required, options))
