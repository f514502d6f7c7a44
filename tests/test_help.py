"""What help() shows of parameters and fields."""

import pydoc
from typing import Any

import pytest

import friendli_async
from friendli_async import (
    audio,
    billing,
    chat,
    classification,
    completions,
    embeddings,
    endpoints,
    images,
    messages,
    models,
    responses,
    tokens,
)
from friendli_async._core.settings import ClientOptions

APIS = [audio, billing, chat, classification, completions, embeddings, endpoints, images]
APIS += [messages, models, responses, tokens]
OPTIONS = [getattr(api, name) for api in APIS for name in api.__all__ if name.endswith("Options")] + [ClientOptions]
VALUES = [friendli_async.Meta, friendli_async.Attempt, friendli_async.Partial]
VALUES += [friendli_async.Timeouts, friendli_async.Limits, friendli_async.RetryPolicy]


@pytest.mark.parametrize("cls", [*OPTIONS, *VALUES], ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_field_is_shown_with_its_type_and_its_words(cls: Any) -> None:
    lines = [line.strip() for line in cls.__doc__.splitlines()]
    for name in cls.__annotations__:
        (line,) = [line for line in lines if line.startswith(f"{name} (")]
        kind, _, words = line.removeprefix(f"{name} (").partition("): ")
        assert kind
        assert words[0].isupper() or not words[0].isalpha()


def test_help_shows_inherited_parameters_behind_a_class_s_own() -> None:
    text = pydoc.render_doc(chat.ChatOptions, renderer=pydoc.plaintext)
    shown = [
        " |      temperature (float | None): Sampling temperature; lower is more deterministic.",
        " |      extra_query (Mapping[str, object] | None): Extra query parameters, sent as they are; ",
    ]
    assert [text.count(line) for line in shown] == [1, 1]
    assert text.index("min_tokens (") < text.index("temperature (") < text.index("extra_query (")


def test_words_of_several_lines_stay_together() -> None:
    text = friendli_async.Timeouts.__doc__
    assert text is not None
    assert "\n    first_event (float | None): Per attempt, " in text
    assert "\n        While a form with files is being sent" in text
