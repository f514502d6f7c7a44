"""Routing, and the validation of requests by the API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import unquote

from friendli_async.testing.audio import transcribe
from friendli_async.testing.billing import cost, usage
from friendli_async.testing.chat import answer_chat, render
from friendli_async.testing.completions import complete
from friendli_async.testing.endpoints import EndpointStore
from friendli_async.testing.files import FileStore
from friendli_async.testing.forms import form_values
from friendli_async.testing.images import PATH as IMAGE_PATH
from friendli_async.testing.images import paint, paint_in_container, show
from friendli_async.testing.messages import answer_messages, refuse_messages
from friendli_async.testing.models import list_models
from friendli_async.testing.received import ReceivedRequest, parse_json
from friendli_async.testing.responses import answer_responses
from friendli_async.testing.route import InvalidRequestError, Route
from friendli_async.testing.schema import from_text, validate
from friendli_async.testing.script import Script, status
from friendli_async.testing.text_operations import answer_detokenize, answer_tokenize, classify, embed
from friendli_async.testing.tool_assisted_chat import answer_tool_assisted_chat

_PREFIXES: Final = {"Serverless": "/serverless", "Dedicated": "/dedicated", "Container": ""}


def _deployed(
    path: str,
    answer: Callable[[ReceivedRequest], Script],
    *schemas: str,
    on: Sequence[str] = tuple(_PREFIXES),
    **options: Any,
) -> Iterator[Route]:
    """Yield the routes of an operation on several deployments. Those of containers need no token.

    The path is below the deployment's prefix, and `{}` in a schema is replaced by the name of the deployment.
    """
    for name in on:
        named = [schema.format(name) for schema in schemas]
        yield Route("POST", _PREFIXES[name] + path, answer, *named, needs_token=name != "Container", **options)


_TRANSCRIPTIONS: Final = ("ServerlessAudioTranscriptionSuccess", "StreamedAudioTranscriptionResult")
_PICTURE: Final = "{}ImageGenerateSuccess"

# Path, handler, and the schemas of body, reply and events.
_ROUTES: Final = (
    *_deployed(
        "/v1/chat/completions",
        answer_chat,
        "{}ChatCompletionBody",
        "ServerlessChatCompleteSuccess",
        "StreamedChatResult",
    ),
    *_deployed(
        "/v1/completions", complete, "{}CompletionsBody", "ServerlessCompletionsSuccess", "StreamedCompletionsResult"
    ),
    *_deployed(
        "/v1/messages", answer_messages, "{}MessagesBody", "{}MessagesSuccess", "MessagesStream", refuse=refuse_messages
    ),
    *_deployed("/v1/responses", answer_responses, "{}ResponsesBody", "{}ResponsesSuccess", "ResponsesStream"),
    *_deployed("/v1/audio/transcriptions", transcribe, "{}AudioTranscriptionBody", *_TRANSCRIPTIONS, form=True),
    *_deployed("/v1/tokenize", answer_tokenize, "{}TokenizationBody", "{}TokenizationSuccess"),
    *_deployed("/v1/detokenize", answer_detokenize, "{}DetokenizationBody", "{}DetokenizationSuccess"),
    *_deployed("/v1/chat/render", render, "{}ChatRenderBody", "{}ChatRenderSuccess", on=("Serverless", "Dedicated")),
    *_deployed("/v1/embeddings", embed, "{}EmbeddingsBody", "{}EmbeddingsSuccess", on=("Dedicated",)),
    *_deployed(
        "/classify",
        classify,
        "{}TextClassificationBody",
        "DedicatedTextClassificationSuccess",
        on=("Dedicated", "Container"),
    ),
    *_deployed("/v1/images/generations", paint, "{}ImageGenerationBody", _PICTURE, on=("Dedicated",)),
    *_deployed("/v1/images/edits", paint, "{}ImageEditBody", _PICTURE, on=("Dedicated",)),
    *_deployed("/v1/images/generations", paint_in_container, "{}ImageGenerationBody", _PICTURE, on=("Container",)),
    *_deployed("/v1/images/edits", paint_in_container, "{}ImageEditBody", _PICTURE, on=("Container",)),
    Route("GET", IMAGE_PATH, show, needs_token=False),
    Route(
        "POST",
        "/serverless/tools/v1/chat/completions",
        answer_tool_assisted_chat,
        "ServerlessToolAssistedChatCompletionBody",
        "ContainerChatCompleteSuccess",
        "ServerlessToolAssistedChatCompletionStreamSuccess",
    ),
    Route("GET", "/serverless/v1/models", list_models, reply="ServerlessModelListSuccess"),
    Route("GET", "/v1/team/cost", cost, reply="CostResponse", query="CostQuery"),
    Route("GET", "/v1/team/usage", usage, reply="UsageResponse", query="UsageQuery"),
)


class Router:
    """The routing table of all operations, with the endpoints and files of one server."""

    def __init__(self) -> None:
        self.routes: tuple[Route, ...] = (*_ROUTES, *EndpointStore().routes(), *FileStore().routes())
        """Every operation."""
        self._methods: dict[re.Pattern[str], dict[str, Route]] = {}
        for route in self.routes:
            pattern = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route.path))
            self._methods.setdefault(pattern, {})[route.method] = route

    def answer(self, request: ReceivedRequest, token: str | None) -> Script:
        """Answer a request as the API would: with 404, 405, 401, 400 or 422 if it is invalid.

        A `token` of None accepts any.
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
        try:
            return _validation_error(request, route) or route.answer(request)
        except InvalidRequestError as error:
            return route.refuse([error.error])

    def _find(self, request: ReceivedRequest) -> dict[str, Route] | None:
        for pattern, methods in self._methods.items():
            # An ID may contain an encoded slash, so the raw path is matched.
            if match := pattern.fullmatch(request.raw_path):
                request.path_parameters = {name: unquote(value) for name, value in match.groupdict().items()}
                return methods
        return None


def _authorized(request: ReceivedRequest, token: str | None) -> bool:
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    return token is None or (scheme.lower() == "bearer" and credentials.strip() == token)


def _validation_error(request: ReceivedRequest, route: Route) -> Script | None:
    """Validate the query or the body, and set the `values` of the request. No operation has both."""
    value: object = None
    try:
        if route.query:
            value = request.values = from_text(route.query, request.query)
        elif route.form:
            value = request.values = form_values(route.body, request.form)
        elif route.body:
            value = parse_json(request.body)
    except ValueError as error:
        return status(400, message=f"the body is not {'a form' if route.form else 'JSON'}: {error}")
    schema, where = (route.query, "query") if route.query else (route.body, "body")
    errors = validate(schema, value, where) if schema else []
    return route.refuse(errors) if errors else None
