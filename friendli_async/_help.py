"""Field documentation in help(): types, and the docstrings below the fields.

Python discards the string below a field, and help() truncates the annotations of a TypedDict. The strings are therefore
read from the source. This happens when the class is created, as help() accepts no lazily computed docstrings.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from inspect import cleandoc
from typing import Final, TypeVar

C = TypeVar("C", bound=type)

# A field and the string below it, if any.
_FIELD: Final = re.compile(r'^    (\w+): .*\n(?:    [ )].*\n)*(?:    """([^"]*(?:"(?!"")[^"]*)*)"""\n)?', re.MULTILINE)

_field_docs: Final[dict[object, dict[str, str]]] = {}
"""Field docstrings of the classes decorated so far."""


def document_fields(cls: C) -> C:
    """Adds a class's fields to its docstring, including inherited ones, with types and field docstrings."""
    source = _source(cls.__module__)
    start = source.find(f"\nclass {cls.__name__}(")
    if start < 0 or cls.__doc__ is None:  # without source, or with -OO
        return cls
    statement, _, block = source[start:].partition("\n\n\n")[0].partition(":\n")
    docs = dict(_FIELD.findall(f"{block}\n"))
    for base in re.findall(r"\w+", statement):
        docs |= {**_field_docs.get(vars(sys.modules[cls.__module__]).get(base), {}), **docs}
    _field_docs[cls] = docs
    kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in cls.__annotations__.items()}
    title = "Args" if issubclass(cls, dict) else "Attributes"
    lines = [cleandoc(cls.__doc__), "", f"{title}:"]
    for name, text in docs.items():
        if name in kinds:
            lines.append(f"    {name} ({kinds[name]})" + (f": {text}".replace("\n", "\n    ") if text else ""))
    cls.__doc__ = "\n".join(lines)
    return cls


@lru_cache(maxsize=1)  # a module's classes are created one after the other
def _source(module: str) -> str:
    try:
        return vars(sys.modules[module])["__loader__"].get_source(module) or ""
    except (KeyError, AttributeError, OSError):
        return ""
