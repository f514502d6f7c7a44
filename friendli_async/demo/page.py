"""A page on the terminal, written from top to bottom: headings, a dialogue that streams token by token, figures."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO

_STYLES: Final = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "title": "1;36",
}
_MARGIN: Final = "  "
_LABEL: Final = 10  # columns for the name of the speaker
_INDENT: Final = _MARGIN + " " * _LABEL
_RULE: Final = "─" * 76
_LINE_END: Final = re.compile(r"\s*\n\s*")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Page:
    """Writes to a terminal with colours, and plainly to anything else. The terminal wraps long lines.

    Colours are omitted if the output is not a terminal, `NO_COLOR` is set (https://no-color.org) or `TERM` is `dumb`.
    What the encoding of the output lacks is replaced by question marks.

    Args:
        out: Where to write; standard output by default.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out: TextIO = sys.stdout if out is None else out
        target: Any = self._out
        if isinstance(target, io.TextIOWrapper):
            target.reconfigure(errors="replace")
        self._can_erase = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._can_erase and not os.environ.get("NO_COLOR")
        self.is_speaking: bool = False
        self._has_words = False  # of the message: many models begin with a blank
        self._space = ""  # written when text follows: no line and no answer ends with blanks

    def styled(self, text: str, style: str) -> str:
        """Return text in a style (`bold`, `dim`, `title` or a colour), if colours are on."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._coloured and text else text

    def line(self, text: str, style: str | None = None) -> None:
        """Write one line of text without styles inside the margin."""
        shown = _clean(text)
        self._write(f"{_MARGIN}{self.styled(shown, style) if style else shown}\n")

    def title(self, text: str, note: str) -> None:
        """Write the title of the page."""
        self._write(f"\n{_MARGIN}{self.styled(text, 'title')}  {self.styled(note, 'dim')}\n")
        self._write(f"{_MARGIN}{self.styled(_RULE, 'dim')}\n\n")

    def section(self, text: str) -> None:
        """Write the heading of a section."""
        self.line(text, "bold")

    def code(self, *lines: str) -> None:
        """Show the code for the following output."""
        bar = self.styled("│", "blue")
        self._write("\n")
        for line in lines:
            self._write(f"{_MARGIN}{bar} {self.styled(line, 'blue')}\n")
        self._write("\n")

    def waiting(self, text: str) -> None:
        """Show a waiting message; `waited` erases it. Does nothing if the terminal cannot erase."""
        if self._can_erase:
            self._write(_MARGIN + self.styled(f"{text}...", "dim"))

    def waited(self) -> None:
        """Erase the message of `waiting`."""
        if self._can_erase:
            self._write("\r\x1b[K")

    def question(self, text: str) -> None:
        """Write the message of the user."""
        self.speaker("you", "magenta")
        self.text(text)
        self.end_text()

    def speaker(self, name: str, style: str) -> None:
        """Start a message of the dialogue: `text` continues after the name."""
        self._write(_MARGIN + self.styled(f"{name:<{_LABEL}}", style))
        self.is_speaking = True
        self._has_words = False
        self._space = ""

    def text(self, piece: str) -> None:
        """Continue a message.

        The text is a model's: control characters, which could affect the terminal, are removed.
        """
        text = self._space + _clean(piece)
        if not self._has_words:
            text = text.lstrip()
        words = text.rstrip()
        self._space = text[len(words) :]
        if words:
            self._has_words = True
            self._write(_LINE_END.sub("\n" + _INDENT, words))

    def end_text(self) -> None:
        """End a message, if one was started."""
        if self.is_speaking:
            self._write("\n")
            self.is_speaking = False

    def status(self, symbol: str, name: str, text: str, style: str) -> None:
        """Write one line about a tool."""
        self._write(f"{_INDENT}{self.styled(f'{symbol} {name:<18}', style)} {self.styled(_clean(text), 'dim')}\n")

    def figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Write a row of figures with their names."""
        parts = [f"{self.styled(number, 'green')} {self.styled(name, 'dim')}" for number, name in figures]
        self._write(_INDENT + self.styled(" · ", "dim").join(parts) + "\n")

    def blank(self) -> None:
        """Write an empty line."""
        self._write("\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _clean(text: str) -> str:
    """Returns a text without the characters that could affect the terminal."""
    return _CONTROLS.sub("", text)
