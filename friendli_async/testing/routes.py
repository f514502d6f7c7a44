"""Which path answers what, and the checks of the API that come before an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from friendli_async.testing.chat import answer_chat
from friendli_async.testing.frames import error_body
from friendli_async.testing.received import ReceivedRequest, parse_json
from friendli_async.testing.schema import validate
from friendli_async.testing.script import Script, json_body, status
from friendli_async.testing.tool_assisted_chat import answer_tool_assisted_chat


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Args:
        schema: Name of the schema of the request body.
        answer: Gives the reply to a request that passed all checks.
        needs_token: Whether the request must carry the token.
    """

    schema: str
    answer: Callable[[ReceivedRequest], Script]
    needs_token: bool = True


_ROUTES: Final[Mapping[str, Mapping[str, Endpoint]]] = {
    "/serverless/v1/chat/completions": {"POST": Endpoint("ServerlessChatCompletionBody", answer_chat)},
    "/dedicated/v1/chat/completions": {"POST": Endpoint("DedicatedChatCompletionBody", answer_chat)},
    "/v1/chat/completions": {"POST": Endpoint("ContainerChatCompletionBody", answer_chat, needs_token=False)},
    "/serverless/tools/v1/chat/completions": {
        "POST": Endpoint("ServerlessToolAssistedChatCompletionBody", answer_tool_assisted_chat)
    },
}


def route(request: ReceivedRequest, token: str | None) -> Script:
    """Answer a request as the API would.

    Args:
        request: What came in.
        token: The token that it must carry; `None` accepts any.

    Returns:
        The reply: 404, 405, 401, 400 or 422 for a request that is wrong, else the endpoint's own.
    """
    methods = _ROUTES.get(request.path)
    if methods is None:
        return status(404, message=f"there is nothing at {request.path}")
    endpoint = methods.get(request.method)
    if endpoint is None:
        allowed = {"Allow": ", ".join(methods)}
        return status(405, message=f"{request.path} does not answer {request.method}", headers=allowed)
    if endpoint.needs_token and not _authorized(request, token):
        return status(401, message="the token is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
    return _check_body(request, endpoint)


def _authorized(request: ReceivedRequest, token: str | None) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return token is None or (scheme.lower() == "bearer" and given.strip() == token)


def _check_body(request: ReceivedRequest, endpoint: Endpoint) -> Script:
    def refuse(reason: str) -> Script:
        return json_body(error_body(f"the body is not JSON: {reason}", kind="invalid_request_error"), status=400)

    body = parse_json(request.body, invalid=refuse)
    if isinstance(body, Script):
        return body
    errors = validate(endpoint.schema, body)
    if errors:
        return json_body({"detail": errors}, status=422)
    return endpoint.answer(request)
