"""Chat resource lookup shared by the model adapters."""

from __future__ import annotations

from typing import Any

from friendli_async import AsyncFriendli
from friendli_async.chat import Chat
from friendli_async.client import DeploymentName

__all__ = ["chat_of"]


def chat_of(client: AsyncFriendli, deployment: DeploymentName, changes: dict[str, Any]) -> Chat:
    """Returns the chat resource of a deployment; ``changes`` are applied to a copy of the client."""
    client = client.with_options(**changes) if changes else client
    chat: Chat = getattr(client, deployment).chat
    return chat
