"""Google-style docstrings: what a function does, and what its parameters mean."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Final

__all__ = ["described_by"]

_SECTION: Final = re.compile(
    r"(Args|Arguments|Parameters|Params|Keyword Args|Keyword Arguments|Other Parameters|Returns?|Yields?|Raises"
    r"|Attributes|Examples?|Notes?|Warnings?|Warns|Tips?|Todo|References|See Also):\s*"
)
_OF_PARAMETERS: Final = frozenset({"Args", "Arguments", "Parameters", "Params", "Keyword Args", "Keyword Arguments"})
# A name, perhaps a type in parentheses, a colon, words.
_ENTRY: Final = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?=\s|$)\s*(.*)")


def described_by(docstring: str | None) -> tuple[str, dict[str, str]]:
    """Reads a docstring.

    Returns:
        What stands before its first section, and the words of each parameter, in one line each.
    """
    lines = cleandoc(docstring or "").split("\n")
    start = next((number for number, line in enumerate(lines) if _SECTION.fullmatch(line)), len(lines))
    words: dict[str, str] = {}
    section = ""
    inside: list[str] = []
    for line in [*lines[start:], "End:"]:
        if line[:1].strip():  # not indented: the section is over
            if section in _OF_PARAMETERS:
                words |= _entries(inside)
            heading = _SECTION.fullmatch(line)
            section, inside = heading[1] if heading is not None else "", []
        else:
            inside.append(line)
    return "\n".join(lines[:start]).strip(), words


def _entries(lines: list[str]) -> dict[str, str]:
    """The parameters of a section: an entry begins at the section's own indentation, and goes on below a deeper one."""
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    words: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.strip()
        if text and len(line) - len(line.lstrip()) == indents[0]:
            entry = _ENTRY.fullmatch(text)
            name = entry[1] if entry is not None else ""
            text = entry[2] if entry is not None else ""
            words |= {name: ""} if name else {}
        if name and text:
            words[name] = f"{words[name]} {text}".strip()
    return {name: text for name, text in words.items() if text}
