"""The chat that a model of another library calls."""

from __future__ import annotations

from typing import Any

from friendli_async import AsyncFriendli
from friendli_async.chat import Chat
from friendli_async.client import DeploymentName

__all__ = ["chat_of"]


def chat_of(client: AsyncFriendli, deployment: DeploymentName, changes: dict[str, Any]) -> Chat:
    """The chat of a deployment, by a copy of the client where there are changes of its settings."""
    client = client.with_options(**changes) if changes else client
    chat: Chat = getattr(client, deployment).chat
    return chat
