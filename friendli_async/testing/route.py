"""What one operation of the API is to the embedded server: where it is, what it takes, what it gives."""

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
    """Reply 422 with the errors as most operations give them.

    Args:
        errors: What `validate` found.
    """
    return json_body({"detail": list(errors)}, status=422)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one path. Schemas go by their names.

    Args:
        method: HTTP method.
        path: Path; `{name}` stands for one segment, which the request then has among its `path_parameters`.
        answer: Gives the reply to a request that passed all checks.
        body: Schema of the request body; `None` where it takes none.
        form: Whether that body is a form rather than JSON.
        query: Schema of the query; `None` where it takes none.
        reply: Schema of the JSON reply; `None` where it has none.
        events: Schema of the events of a streamed reply; `None` where it does not stream.
        needs_token: Whether the request must carry the token.
        refuse: Gives the 422 reply to a request that its schemas forbid.
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
    """Make the routes of an operation that several deployments serve. Only those of containers need no token.

    Args:
        path: Path below the deployment's prefix.
        answer: Gives the reply.
        body: Schema of the request body; `{}` stands for the name of the deployment.
        reply: Schema of the JSON reply; likewise.
        events: Schema of the events of a streamed reply.
        form: Whether the body is a form.
        refuse: Gives the 422 reply.
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
