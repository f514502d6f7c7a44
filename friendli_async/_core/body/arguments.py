"""What a call was given, checked before anything is sent, and encoded. Pure."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import UserString
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final, TypedDict, cast, get_type_hints

import msgspec

from friendli_async._core.body.forms import Form
from friendli_async._help import described
from friendli_async._hints import parameter_hint, setting_hint
from friendli_async.errors import ArgumentError
from friendli_async.replies import Reply


class Arguments(msgspec.Struct, frozen=True):
    """What a call was given, checked and encoded: nothing that the caller does to its objects later changes it."""

    body: bytes | Form | None = None
    query: str = ""
    """Encoded, without the question mark."""
    path: Mapping[str, str] = {}
    """Path parameters, percent-encoded."""
    model: str | None = None
    """The model that is asked for, where the body names one: for reports of the call."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class ForeignArguments(Arguments, frozen=True):
    """What a request to somebody else's server is given: it gets this, and nothing of ours, the token least of all."""

    url: str = ""
    """The absolute URL, instead of the operation's path."""


def model_of(given: Mapping[str, object]) -> str | None:
    """The model that a call names, if it does."""
    model = given.get("model")
    return str.__str__(model) if isinstance(model, str) else None  # an enum's str() is its name


def path_parameters(**parameters: str) -> dict[str, str]:
    """Percent-encodes path parameters.

    Raises:
        ValueError: One is empty, or a dot segment: it would address something else.
    """
    for name, value in parameters.items():
        if not isinstance(value, str):
            raise ArgumentError(f"{name}: Expected `str`, got `{type(value).__name__}`")
        if value in {"", ".", ".."}:
            raise ArgumentError(f"{name}: {value!r} identifies nothing")
    from urllib.parse import quote

    return {name: quote(value, safe="") for name, value in parameters.items()}


def encode_query(query: Mapping[str, object], label: str = "extra_query[{!r}]") -> str:
    """Encodes query parameters: sequences repeat the key, booleans are lower-case, times ISO 8601; None is left out.

    Args:
        query: The parameters.
        label: How an error calls a parameter; ``{}`` stands for its name.

    Raises:
        ValueError: A value that a query has no form for.
    """
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        values = cast("Sequence[object]", value) if isinstance(value, list | tuple) else [value]
        pairs.extend((name, _query_text(label.format(name), item)) for item in values if item is not None)
    if not pairs:
        return ""
    from urllib.parse import urlencode

    return urlencode(pairs)


def _query_text(name: str, value: object) -> str:
    plain = _plain(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, int) or (isinstance(plain, float) and math.isfinite(plain)):
        return str(plain)
    if isinstance(plain, datetime):
        return plain.isoformat().replace("+00:00", "Z")
    if isinstance(plain, str) and not any("\ud800" <= character <= "\udfff" for character in plain):
        return plain
    raise ArgumentError(f"{name}: {value!r} cannot be sent in a query")


def without_none(**parameters: object) -> dict[str, object]:
    """The parameters that are not None: left out rather than null, as engines that serve one model want ``model``."""
    return {name: value for name, value in parameters.items() if value is not None}


@described
class ExtraQuery(TypedDict, total=False):
    """What every method takes besides its own parameters."""

    extra_query: Mapping[str, object] | None
    """Further query parameters, as they are; they win over the others."""


@described
class ExtraOptions(ExtraQuery, total=False):
    """What every method that sends JSON takes besides its own parameters."""

    extra_body: Mapping[str, object] | None
    """Further keys of the body, as they are; they win over the parameters."""


def each(make: Callable[[object], object]) -> Callable[[object], object]:
    """Makes something of each item of a list; what is no list stays as it is, for the check to judge."""

    def made(given: object) -> object:
        if isinstance(given, str | bytes) or not isinstance(given, Sequence):
            return given
        return [make(item) for item in cast("Sequence[object]", given)]

    return made


# What is neither text nor a list, and a Sequence all the same.
_NO_LISTS: Final = (str, bytes, bytearray, memoryview, UserString)


class Parameters:
    """The keywords of a method that sends JSON: which there are, and what their values must be.

    Args:
        options: A TypedDict of the optional ones.
        required: Types of those that the method spells out.
        checks: Types to check by where the annotation is wider than the wire: annotations serve the type checkers, and
            take any mapping; a check takes a tagged struct.
        sent: What makes some of them into what goes out, before they are checked, as ``each`` of a function.
    """

    def __init__(
        self,
        options: type,
        required: Mapping[str, Any],
        checks: Mapping[str, Any],
        sent: Mapping[str, Callable[[object], object]] = {},
    ) -> None:
        self._options = options
        self._sent = sent
        self._types = {**required, **checks}

    @cached_property
    def _expected(self) -> type[Any]:
        """Made on first use: it costs a millisecond, and a service uses few of the methods."""
        types = {**get_type_hints(self._options), **self._types}
        return msgspec.defstruct(
            "Arguments", [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in types.items()]
        )

    def prepared(self, given: Mapping[str, object]) -> dict[str, object]:
        """What was given, as it goes out."""
        return {**given, **{name: make(given[name]) for name, make in self._sent.items() if name in given}}

    def check(self, values: Mapping[str, object], prefix: str = "") -> None:
        """Checks values by name; keys that it does not know pass.

        Raises:
            ValueError: With the path of the bad value, as ``messages[2].role``.
        """
        check_values(values, self._expected, prefix)

    def checked(self, method: str, required: Mapping[str, object], options: Mapping[str, object]) -> dict[str, object]:
        """Checks what a method was given; see ``encode``. Returns it as it goes out."""
        check_keywords(options, self._options.__annotations__, method, required)
        given = self.prepared({**required, **options})
        self.check(given)
        return given

    def encode(
        self,
        method: str,
        required: Mapping[str, object],
        options: Mapping[str, object],
        fixed: Mapping[str, object] = {},
    ) -> Arguments:
        """Checks what a method was given and makes it into a body.

        Args:
            method: The method's name, for the errors.
            required: Its spelt-out parameters.
            options: Its other keywords; ``extra_body`` and ``extra_query`` among them pass anything through.
            fixed: What the method itself sends.

        Raises:
            TypeError: A keyword that the method does not have.
            ValueError: A value of the wrong type, or one that is not JSON, with its path.
        """
        given, extra, query = self.take(method, required, options)
        return Arguments(encode_json({**given, **fixed, **extra}), query, model=model_of(given))

    def take(
        self, method: str, required: Mapping[str, object], options: Mapping[str, object]
    ) -> tuple[dict[str, object], Mapping[str, object], str]:
        """Checks what a method was given; see ``encode``, which makes it JSON.

        Returns:
            The parameters that were given, what ``extra_body`` holds, and the encoded query.
        """
        given = self.checked(method, required, options)
        query: Any = given.pop("extra_query", None)
        extra: Any = given.pop("extra_body", None) or {}
        if "stream" in extra:
            raise ArgumentError("extra_body.stream: stream() is a method of its own, so it cannot be set here")
        return given, extra, encode_query(query or {})


def check_keywords(
    given: Mapping[str, object], known: Collection[str], method: str, required: Mapping[str, object] = {}
) -> None:
    """Refuses keywords that the method does not have.

    Args:
        given: The keywords.
        known: Those that it has.
        method: Its name.
        required: Its spelt-out parameters.

    Raises:
        TypeError: Names the unknown keyword, and what it is called here or where a setting belongs.
    """
    for name in given:
        if name in known:
            continue
        if name == "stream":
            advice = "leave it out" if method == "stream" else "call stream() instead"
            raise TypeError(f"{method}() takes no 'stream': {advice}, it is a method of its own")
        if (setting := setting_hint(name)) is not None:
            raise TypeError(f"{method}() takes no {name!r}: {setting}")
        hint = parameter_hint(name, {*known, *required})
        raise TypeError(f"{method}() got an unexpected keyword argument {name!r}{hint}")


def check_values(values: object, expected: type[Any], prefix: str = "") -> None:
    """Checks values against a type; unknown keys are not looked at.

    Raises:
        ValueError: With the path of the bad value, as ``messages[2].role``.
    """
    try:
        try:
            msgspec.convert(values, expected)
        except (msgspec.ValidationError, AttributeError):
            # Once more, for what stands in for a plain type: a string's enum, a deque, numpy's float. An AttributeError
            # is of what is no list and no mapping, and has items: msgspec asks it for its keys.
            msgspec.convert(_builtin(values), expected)
    except AttributeError as error:
        raise ArgumentError(
            f"{prefix or 'arguments'}: {type(error.obj).__name__} is not JSON{_advice(error.obj)}"
        ) from None
    except msgspec.ValidationError as error:
        found = re.fullmatch(_PLACE, str(error))
        reason, of_key, path = found.groups() if found is not None else (str(error), None, "")
        where = (prefix + path).lstrip(".") or "arguments"
        advice = "" if of_key else _advice(_at(values, path))
        raise ArgumentError(f"{where}: {'a key is bad: ' if of_key else ''}{reason}{advice}") from None
    except RecursionError:
        raise ArgumentError("the arguments are nested too deeply, or contain themselves") from None


def _at(values: Any, path: str) -> object:
    """What stands at a path, as ``.messages[2].role``; None where nothing does."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        try:
            values = values[int(index)] if index else values[name]
        except (LookupError, TypeError):
            return None
    return cast("object", values)


def _advice(value: object) -> str:
    """How to make JSON of what is none, as the end of a sentence."""
    if isinstance(value, type):
        return ""
    how = next((how for mark, how in _DUMPS.items() if hasattr(type(value), mark)), None)
    if how is None and isinstance(value, Iterable) and not isinstance(value, Sequence | Mapping):
        how = "a list of it"
    return f"; pass {how}" if how else ""


# What tells a kind of class, and how JSON is made of its instances.
_DUMPS: Final = {
    "model_dump": "its model_dump()",
    "__dataclass_fields__": "dataclasses.asdict() of it",
    "__attrs_attrs__": "attrs.asdict() of it",
    "_asdict": "its _asdict()",
}
# "Expected `int`, got `str` - at `$.messages[2].role`", or "... - at `key` in `$.logit_bias`"
_PLACE: Final = r"(?s)(.*) - at (`key` in )?`\$([^`]*)`"
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_EVERYDAY: Final = _PLAIN | {list, dict, float}


def _is_plain_json(value: Any) -> bool:
    """Whether a value is JSON at first sight: the built-in types themselves, all the way down."""
    kind = cast("type[object]", type(value))
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _PLAIN and not _is_plain_json(item)):
                return False
        return True
    if kind is list or kind is tuple:
        for item in value:  # noqa: SIM110  # a generator would cost twice as much
            if type(item) not in _PLAIN and not _is_plain_json(item):
                return False
        return True
    return kind in _PLAIN or (kind is float and math.isfinite(value))


def check_json(value: object, path: str = "", above: tuple[int, ...] = ()) -> None:
    """Checks that a value is JSON: what the encoder would quietly turn into something else is refused.

    Raises:
        ValueError: With its path: NaN, infinity, a value or key that is not JSON, a container that contains itself.
    """
    plain = shallow(value) if isinstance(value, msgspec.Struct) else _plain(value)
    if type(plain) in _PLAIN or (isinstance(plain, float) and math.isfinite(plain)):
        return
    place = path or "value"
    if isinstance(plain, float):
        raise ArgumentError(f"{place}: {plain} is not JSON")
    if id(value) in above:
        raise ArgumentError(f"{place}: contains itself")
    above = (*above, id(value))
    if isinstance(plain, dict):
        for key, item in cast("dict[object, object]", plain).items():
            if type(key) is not str:
                raise ArgumentError(f"{place}: the key {key!r} is not a string")
            if type(item) not in _PLAIN:
                check_json(item, f"{path}.{key}" if path else key, above)
    elif isinstance(plain, list):
        for index, item in enumerate(cast("list[object]", plain)):
            if type(item) not in _PLAIN:
                check_json(item, f"{path}[{index}]", above)
    else:
        raise ArgumentError(f"{place}: {type(value).__name__} is not JSON{_advice(value)}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, _NO_LISTS)


def _plain(value: object) -> object:
    """The everyday form of a value that stands for one; anything else as it is."""
    if type(value) in _EVERYDAY:
        return value
    # A subclass of a plain type: its value, whatever it prints itself as.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    if _is_list(value):
        return list(cast("Sequence[object]", value))
    numpy: Any = sys.modules.get("numpy")  # without it there are no scalars of its own
    if numpy is None or not isinstance(value, numpy.generic):
        return value
    scalar: Any = value
    found: object = scalar.item()
    return found if isinstance(found, str | int | float) else value


def shallow(struct: msgspec.Struct) -> dict[str, object]:
    """A struct as a dict that goes out alike, its values as they are: so that they are checked, too."""
    config = struct.__struct_config__
    fields = {name: value for name, value in msgspec.structs.asdict(struct).items() if value is not msgspec.UNSET}
    if config.omit_defaults:
        fields = {name: value for name, value in fields.items() if value is not None}
    return {config.tag_field: config.tag, **fields} if config.tag_field else fields


def _builtin(value: object) -> object:
    """The everyday form of a value, all the way down.

    So are parts of replies, such as a tool call inside a message that is a dict.
    """
    if isinstance(value, msgspec.Struct) and not isinstance(value, Reply):
        value = shallow(value)
    plain = _plain(value)
    if isinstance(plain, dict):
        return {key: _builtin(item) for key, item in cast("dict[object, object]", plain).items()}
    if isinstance(plain, list):
        return [_builtin(item) for item in cast("list[object]", plain)]
    return plain


_encoder: Final = msgspec.json.Encoder(enc_hook=_plain)


def encode_json(body: Mapping[str, object]) -> bytes:
    """Encodes a body as compact UTF-8 JSON; text with lone surrogates, which UTF-8 has no form for, goes out escaped.

    Raises:
        ValueError: The body is not JSON (see ``check_json``).
    """
    try:
        try:
            plain = _is_plain_json(body)
        except RecursionError:
            plain = False
        if not plain:  # the slow look, which knows more types, and where what is wrong stands
            check_json(body)
        try:
            return _encoder.encode(body)
        except UnicodeEncodeError:
            return json.dumps(msgspec.to_builtins(body, enc_hook=_plain), separators=(",", ":")).encode("ascii")
    except RecursionError:
        raise ArgumentError("the arguments are nested too deeply") from None
