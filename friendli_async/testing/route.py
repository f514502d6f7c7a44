"""The routes of the embedded server: path, schemas and handler of each operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.schema import Error
from friendli_async.testing.script import Script, json_body

__all__ = ["PREFIXES", "Route", "deployed", "refuse"]

PREFIXES: Final = {"Serverless": "/serverless", "Dedicated": "/dedicated", "Container": ""}


def refuse(errors: Sequence[Error]) -> Script:
    """Reply 422 with the errors in the format of most operations.

    Args:
        errors: What `validate` found.
    """
    return json_body({"detail": list(errors)}, status=422)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one path. Schemas are given by name.

    Args:
        method: HTTP method.
        path: Path; `{name}` matches one segment, which becomes one of the `path_parameters` of the request.
        answer: Returns the reply to a validated request.
        body: Schema of the request body, if any.
        form: Whether the body is a form instead of JSON.
        query: Schema of the query, if any.
        reply: Schema of the JSON reply, if any.
        events: Schema of the events of a streamed reply, if it can stream.
        needs_token: Whether the request must carry the token.
        refuse: Returns the 422 reply to a request that does not match its schemas.
    """

    method: str
    path: str
    answer: Callable[[ReceivedRequest], Script]
    body: str | None = None
    form: bool = False
    query: str | None = None
    reply: str | None = None
    events: str | None = None
    needs_token: bool = True
    refuse: Callable[[Sequence[Error]], Script] = refuse


def deployed(
    path: str,
    answer: Callable[[ReceivedRequest], Script],
    *,
    body: str,
    reply: str,
    events: str | None = None,
    form: bool = False,
    refuse: Callable[[Sequence[Error]], Script] = refuse,
    on: Sequence[str] = tuple(PREFIXES),
) -> tuple[Route, ...]:
    """Create the routes of an operation on several deployments. Those of containers need no token.

    Args:
        path: Path below the deployment's prefix.
        answer: Returns the reply.
        body: Schema of the request body; `{}` is replaced by the name of the deployment.
        reply: Schema of the JSON reply; likewise.
        events: Schema of the events of a streamed reply.
        form: Whether the body is a form.
        refuse: Returns the 422 reply.
        on: Names of the deployments.

    Returns:
        One route for each deployment.
    """
    return tuple(
        Route(
            method="POST",
            path=PREFIXES[name] + path,
            answer=answer,
            body=body.format(name),
            form=form,
            reply=reply.format(name),
            events=events,
            needs_token=name != "Container",
            refuse=refuse,
        )
        for name in on
    )
