"""Parameters and fields as help() shows them."""

import subprocess
import sys
from typing import Any, get_type_hints

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
def test_every_field_has_type_and_description(cls: Any) -> None:
    lines = [line.strip() for line in cls.__doc__.splitlines()]
    for name in cls.__annotations__:
        (line,) = [line for line in lines if line.startswith(f"{name} (")]
        kind, _, description = line.removeprefix(f"{name} (").partition("): ")
        assert kind
        assert description[0].isupper() or not description[0].isalpha()


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_types_of_options_can_be_resolved(cls: Any) -> None:
    assert get_type_hints(cls).keys() >= cls.__annotations__.keys()


def help_of(*classes: Any) -> str:
    """Returns what help() shows first in a new process: reading ``__doc__`` before, as tests do, may change it."""
    names = [f"{cls.__module__}.{cls.__name__}" for cls in classes]
    command = [sys.executable, "-m", "pydoc", *names]
    return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout


def test_help_shows_the_fields_of_every_class() -> None:
    assert help_of(*OPTIONS).count("\n |  Args:\n") == len(OPTIONS)


def test_help_lists_inherited_parameters_after_own() -> None:
    text = help_of(chat.ChatOptions)
    shown = [
        " |      temperature (float | None): Sampling temperature; lower is more deterministic.",
        " |      extra_query (Mapping[str, object] | None): Extra query parameters, sent as they are; ",
    ]
    assert [text.count(line) for line in shown] == [1, 1]
    assert text.index("min_tokens (") < text.index("temperature (") < text.index("extra_query (")


def test_multiline_field_description_is_kept_together() -> None:
    text = friendli_async.Timeouts.__doc__
    assert text is not None
    assert "\n    first_event (float | None): Per attempt, " in text
    assert "\n        While a form with files is being sent" in text
