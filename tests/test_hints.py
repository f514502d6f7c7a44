"""Names that come from elsewhere, or are mistyped: each is told by what it is called here."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any
from unittest import mock

import pytest
from support.sockets import client_of

from friendli_async import AsyncFriendli, ConfigurationError, Limits, RetryPolicy, Timeouts

CLIENT = client_of("http://nowhere")


def attribute(path: str) -> Any:
    found: Any = CLIENT
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("chat", "here it is serverless.chat or dedicated.chat or container.chat"),
        ("completions", "here it is serverless.completions or dedicated.completions or container.completions"),
        ("responses", "here it is serverless.responses or dedicated.responses or container.responses"),
        ("models", "here it is serverless.model"),
        ("images", "here it is dedicated.image or container.image"),
        ("embeddings", "here it is dedicated.embeddings"),
        ("endpoints", "here it is dedicated.endpoint"),
        ("beta", "here it is serverless.chat or dedicated.chat or container.chat"),
        ("files", "here it is file"),
        ("close", "here it is aclose"),
        ("servrless", "did you mean 'serverless'?"),
        ("zzz", "it has aclose, "),
        ("serverless.models", "here it is model"),
        ("serverless.tokens", "here it is token"),
        ("serverless.embeddings", "it has "),
        ("serverless.chat.completions", "here it is complete or stream"),
        ("serverless.chat.create", "here it is complete or stream"),
        ("serverless.chat.completee", "did you mean 'complete'?"),
        ("serverless.completions.create", "here it is complete or stream"),
        ("serverless.audio.transcriptions", "here it is transcribe or stream"),
        ("dedicated.image.generations", "here it is generate"),
        ("dedicated.endpoint.retrieve", "here it is get_spec"),
        ("container.endpoint", "it has "),
        ("file.create", "it has "),
    ],
)
def test_an_attribute_that_there_is_not_is_told_by_its_name_here(path: str, hint: str) -> None:
    with pytest.raises(AttributeError) as raised:
        attribute(path)
    assert f"has no attribute {path.rpartition('.')[2]!r}; {hint}" in str(raised.value)


GROUPS = ("serverless", "dedicated", "container", "serverless.chat", "dedicated.endpoint", "file", "cost", "usage")


@pytest.mark.parametrize("path", GROUPS)
def test_looking_for_what_is_not_there_goes_on_working(path: str) -> None:
    group = attribute(path)
    assert not hasattr(group, "nothing")
    assert getattr(group, "nothing", 5) == 5
    assert not hasattr(group, "__wrapped__")
    assert "nothing" not in dir(group)
    assert inspect.getmembers(group)
    assert inspect.getdoc(group) == inspect.getdoc(type(group))
    assert repr(group).startswith("<")
    spec = mock.create_autospec(group)
    with pytest.raises(AttributeError):
        _ = spec.nothing
    assert type(copy.copy(group)) is type(group)
    with pytest.raises(AttributeError) as raised:
        _ = group._nothing
    assert str(raised.value) == f"{type(group).__name__!r} object has no attribute '_nothing'"


def test_a_client_is_neither_pickled_nor_copied_and_a_half_made_one_has_no_attributes() -> None:
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            action(CLIENT)
    bare = AsyncFriendli.__new__(AsyncFriendli)
    assert not hasattr(bare, "serverless")
    assert not hasattr(bare, "_settings")


def test_what_is_there_is_not_looked_up_in_the_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("friendli_async._hints._attribute_hint", lambda *_: pytest.fail("looked up"))
    assert CLIENT.serverless.chat.complete
    assert CLIENT.gauges
    assert not hasattr(CLIENT.serverless, "_repr_html_")


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        (Timeouts, "read", "here it is idle=... and first_event=..."),
        (Timeouts, "timeout", "here it is Timeouts(total=...)"),
        (Timeouts, "totl", "did you mean 'total'?"),
        (Timeouts, "zzz", "it takes connect, pool, first_event, idle, total"),
        (RetryPolicy, "max_retries", "here it is max_attempts=..., the first one counted"),
        (RetryPolicy, "status_forcelist", "here it is statuses={...}"),
        (RetryPolicy, "backoff_factor", "here it is initial=..."),
        (RetryPolicy, "max_attempt", "did you mean 'max_attempts'?"),
        (Limits, "max_connections", "here it is AsyncFriendli(max_connections=...)"),
        (Limits, "events", "did you mean 'event'?"),
    ],
)
def test_a_field_that_a_value_does_not_have_is_told_by_its_name_here(kind: Any, name: str, hint: str) -> None:
    with pytest.raises(TypeError) as raised:
        kind(**{name: 3})
    assert str(raised.value) == f"{kind.__name__}() got an unexpected keyword argument {name!r}; {hint}"
    assert str(inspect.signature(kind)).startswith("(*, ")
    assert pickle.loads(pickle.dumps(kind())) == copy.deepcopy(kind()) == kind()
    with pytest.raises(TypeError, match="positional"):
        kind(1)


@pytest.mark.parametrize("name", ["timeout", "retry", "limits", "wake"])
def test_a_bad_setting_that_is_no_secret_is_quoted(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not '10'"):
        CLIENT.with_options(**{name: "10"})


@pytest.mark.parametrize("name", ["store", "metadata", "user", "service_tier"])
async def test_a_parameter_of_openais_that_there_is_not_goes_into_extra_body(name: str) -> None:
    for method in ("complete", "stream"):
        with pytest.raises(TypeError, match=f"{name}'; what is not listed goes into extra_body=") as raised:
            await getattr(CLIENT.serverless.chat, method)(model="m", messages=[], **{name: "x"})
        assert "did you mean" not in str(raised.value)
