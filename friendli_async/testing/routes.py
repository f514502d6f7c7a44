"""Routing, and the validation of requests by the API."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

from friendli_async.testing import (
    audio,
    billing,
    chat,
    completions,
    images,
    messages,
    models,
    responses,
    text_operations,
    tool_assisted_chat,
)
from friendli_async.testing.endpoints import EndpointStore
from friendli_async.testing.files import FileStore
from friendli_async.testing.forms import form_values
from friendli_async.testing.received import ReceivedRequest, parse_json
from friendli_async.testing.route import Route
from friendli_async.testing.schema import from_text, validate
from friendli_async.testing.script import Script, status

__all__ = ["Router"]

_MODULES = (audio, billing, chat, completions, images, messages, models, responses, text_operations, tool_assisted_chat)


class Router:
    """The routing table of all operations, with the endpoints and files of one server."""

    def __init__(self) -> None:
        self.routes: tuple[Route, ...] = (
            *(route for module in _MODULES for route in module.ROUTES),
            *EndpointStore().routes(),
            *FileStore().routes(),
        )
        """Every operation."""
        self._fixed = _by_path(route for route in self.routes if "{" not in route.path)
        self._templates = _by_path(route for route in self.routes if "{" in route.path)

    def answer(self, request: ReceivedRequest, token: str | None) -> Script:
        """Answer a request as the API would.

        Args:
            request: The request.
            token: The required token; `None` accepts any.

        Returns:
            The reply: 404, 405, 401, 400 or 422 for an invalid request, or that of the operation.
        """
        methods = self._find(request)
        if methods is None:
            return status(404, message=f"no route for {request.path}")
        route = methods.get(request.method)
        if route is None:
            allowed = {"Allow": ", ".join(methods)}
            return status(405, message=f"{request.method} is not allowed for {request.path}", headers=allowed)
        if route.needs_token and not _authorized(request, token):
            return status(401, message="the token is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
        return _validation_error(request, route) or route.answer(request)

    def _find(self, request: ReceivedRequest) -> dict[str, Route] | None:
        fixed = self._fixed.get(request.path)
        if fixed is not None:
            return fixed
        # An ID may contain an encoded slash, so the raw path is split.
        segments = request.raw_path.split("/")
        for template, methods in self._templates.items():
            names = template.split("/")
            if len(names) == len(segments) and all(
                name == segment or (name.startswith("{") and segment)
                for name, segment in zip(names, segments, strict=True)
            ):
                request.path_parameters = {
                    name[1:-1]: unquote(segment)
                    for name, segment in zip(names, segments, strict=True)
                    if name.startswith("{")
                }
                return methods
        return None


def _authorized(request: ReceivedRequest, token: str | None) -> bool:
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    return token is None or (scheme.lower() == "bearer" and credentials.strip() == token)


def _by_path(routes: Iterable[Route]) -> dict[str, dict[str, Route]]:
    table: dict[str, dict[str, Route]] = {}
    for route in routes:
        table.setdefault(route.path, {})[route.method] = route
    return table


def _validation_error(request: ReceivedRequest, route: Route) -> Script | None:
    errors = validate(route.query, from_text(route.query, request.query), "query") if route.query else []
    if route.body:
        try:
            body = form_values(route.body, request.form) if route.form else parse_json(request.body)
        except ValueError as error:
            return status(400, message=f"the body is not {'a form' if route.form else 'JSON'}: {error}")
        errors += validate(route.body, body)
    return route.refuse(errors) if errors else None
