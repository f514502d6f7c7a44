"""Parsing of Google-style docstrings: the description of a function and of its parameters."""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Final

_PARAMETER_SECTIONS: Final = ("Args", "Arguments", "Parameters", "Params", "Keyword Args", "Keyword Arguments")
_SECTION: Final = re.compile(
    rf"({'|'.join(_PARAMETER_SECTIONS)}|Other Parameters|Returns?|Yields?|Raises|Attributes|Examples?|Notes?"
    r"|Warnings?|Warns|Tips?|Todo|References|See Also):\s*"
)
# A name, an optional type in parentheses, a colon, a description.
_ENTRY: Final = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?=\s|$)\s*(.*)")


def parse_docstring(docstring: str | None) -> tuple[str, dict[str, str]]:
    """Parses a docstring.

    Returns:
        The text before its first section, and the description of each parameter, joined into one line.
    """
    lines = cleandoc(docstring or "").split("\n")
    start = next((number for number, line in enumerate(lines) if _SECTION.fullmatch(line)), len(lines))
    descriptions: dict[str, str] = {}
    section = ""
    body: list[str] = []
    for line in [*lines[start:], "End:"]:
        if line[:1].strip():  # not indented: the section ends
            if section in _PARAMETER_SECTIONS:
                descriptions |= _parse_entries(body)
            heading = _SECTION.fullmatch(line)
            section, body = heading[1] if heading is not None else "", []
        else:
            body.append(line)
    return "\n".join(lines[:start]).strip(), descriptions


def _parse_entries(lines: list[str]) -> dict[str, str]:
    """Parses a section's entries: each begins at the section's indentation and continues in lines indented deeper."""
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    descriptions: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.strip()
        if text and len(line) - len(line.lstrip()) == indents[0]:
            entry = _ENTRY.fullmatch(text)
            name = entry[1] if entry is not None else ""
            text = entry[2] if entry is not None else ""
            descriptions |= {name: ""} if name else {}
        if name and text:
            descriptions[name] = f"{descriptions[name]} {text}".strip()
    return {name: text for name, text in descriptions.items() if text}
