"""Chat resource lookup shared by the model adapters."""

from __future__ import annotations

from typing import Any

import msgspec

from friendli_async import AsyncFriendli
from friendli_async.chat import Chat
from friendli_async.client import DeploymentName


def chat_of(
    client: AsyncFriendli,
    deployment: DeploymentName,
    changes: dict[str, Any],
    *,
    timeout: float | None,
    max_retries: int | None,
) -> Chat:
    """Returns the chat resource of a deployment, with changed settings, of the client or of a copy.

    ``timeout`` is that of a whole call in seconds, and ``max_retries`` counts attempts after the first; the other
    timeouts and the rest of the retry policy stay. None is the client's.
    """
    if timeout is not None:
        changes["timeout"] = msgspec.structs.replace(client.timeout, total=timeout)
    if max_retries is not None:
        changes["retry"] = msgspec.structs.replace(client.retry, max_attempts=max_retries + 1)
    client = client.with_options(**changes) if changes else client
    chat: Chat = getattr(client, deployment).chat
    return chat
