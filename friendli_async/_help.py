"""Fields in help(): their types, and the words that stand under them in the source.

Python drops a string under a field, and help() cuts the annotations of a TypedDict off. So the words are read from the
source, when the class is made: help() takes nothing that is made later.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from inspect import cleandoc
from typing import Final, TypeVar

__all__ = ["described"]

C = TypeVar("C", bound=type)

# A class statement and the block below it; a field and the string under it, if there is one.
_CLASS: Final = re.compile(r"^class (\w+)(.*):\n((?: .*\n|\n)*)", re.MULTILINE)
_FIELD: Final = re.compile(r'^    (\w+): .*\n(?:    [ )].*\n)*(?:    """([^"]*(?:"(?!"")[^"]*)*)"""\n)?', re.MULTILINE)

_words: Final[dict[object, dict[str, str]]] = {}
"""What the fields of the classes so far mean."""


def described(cls: C) -> C:
    """Lists a class's fields in its docstring: its own and those of its bases, with types and the words under them."""
    statement, block = _classes(cls.__module__).get(cls.__name__, ("", ""))
    if cls.__doc__ is None or not block:  # under -OO, or without the source
        return cls
    words = dict(_FIELD.findall(block))
    for base in re.findall(r"\w+", statement):
        words |= {**_words.get(vars(sys.modules[cls.__module__]).get(base), {}), **words}
    _words[cls] = words
    kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in cls.__annotations__.items()}
    title = "Args" if issubclass(cls, dict) else "Attributes"
    lines = [cleandoc(cls.__doc__), "", f"{title}:"]
    for name, text in words.items():
        if name in kinds:
            lines.append(f"    {name} ({kinds[name]})" + (f": {text}".replace("\n", "\n    ") if text else ""))
    cls.__doc__ = "\n".join(lines)
    return cls


@lru_cache(maxsize=1)  # a module's classes are made one after the other
def _classes(module: str) -> dict[str, tuple[str, str]]:
    try:
        source = vars(sys.modules[module])["__loader__"].get_source(module) or ""
    except (KeyError, AttributeError, OSError):
        source = ""
    return {name: (statement, block) for name, statement, block in _CLASS.findall(source)}
