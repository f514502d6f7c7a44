"""A page on the terminal, written from top to bottom: headings, a dialogue that streams token by token, figures."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Final, TextIO

__all__ = ["Page"]

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
_MAX_WIDTH: Final = 96
_BARS: Final = "▁▂▃▄▅▆▇█"
_SYMBOLS: Final = f"─│·⚙✓✗…{_BARS}"
_PLAIN: Final = "-||*+!~_.:-=+*#"
_MIN_BARS: Final = 8
_JOINERS: Final = "\u200c\u200d"  # parts of words in some scripts, and of emoji


class Page:
    """Writes to a terminal with colours, and plainly to anything else.

    Colours are omitted if the output is not a terminal, `NO_COLOR` is set (https://no-color.org) or `TERM` is `dumb`;
    box-drawing and other symbols are replaced if the encoding of the output lacks them.

    Args:
        out: Where to write; standard output by default.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        terminal = self._out.isatty()
        self._can_erase = terminal and os.environ.get("TERM") != "dumb"
        self._coloured = self._can_erase and not os.environ.get("NO_COLOR")
        pairs = zip(_SYMBOLS, _PLAIN, strict=True)
        self._plain = {ord(symbol): plain for symbol, plain in pairs if self._encodable(symbol) != symbol}
        self._width = max(40, min(_MAX_WIDTH, shutil.get_terminal_size().columns if terminal else 80))
        self.is_speaking: bool = False
        self._text_width = self._width - len(_INDENT)
        self._column = 0
        self._word = self._space = ""

    def styled(self, text: str, style: str) -> str:
        """Return text without control characters in a style (`bold`, `dim`, `title` or a colour), if colours are on."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._coloured and text else text

    def line(self, text: str, style: str | None = None) -> None:
        """Write one line of text without styles inside the margin, wrapped if it is too long."""
        width = self._width - len(_MARGIN)
        words = " ".join(text.split())
        for part in textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False):
            self._write(f"{_MARGIN}{self.styled(part, style) if style else part}".rstrip() + "\n")

    def title(self, text: str, note: str) -> None:
        """Write the title of the page."""
        fits = len(_MARGIN) + len(text) + 2 + len(note) <= self._width
        self._write(
            "\n" + _MARGIN + self.styled(text, "title") + ("  " + self.styled(note, "dim") if fits else "") + "\n"
        )
        if not fits:
            self.line(note, "dim")
        self._write(_MARGIN + self.styled("─" * (self._width - len(_MARGIN)), "dim") + "\n\n")

    def section(self, text: str) -> None:
        """Write the heading of a section."""
        self.line(text, "bold")

    def code(self, *lines: str) -> None:
        """Show the code for the following output; it is never wrapped, so that it can be copied."""
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
        self._column = 0
        self._word = self._space = ""

    def text(self, piece: str) -> None:
        """Continue a message: words are wrapped, and appear once they are complete, at most one token late.

        The text is a model's: control characters, which could affect the terminal, are removed.
        """
        for character in piece:
            if character.isspace():
                self._flush_word()
                # Buffered until a word follows: no trailing spaces in lines, and no trailing empty lines in answers.
                self._space = "\n" if "\n" in (character, self._space) else " "
            else:
                self._word += _clean(character)
                if _width_of(self._word) >= self._text_width:
                    self._flush_word()

    def end_text(self) -> None:
        """End a message, if one was started."""
        if self.is_speaking:
            self._flush_word()
            self._write("\n")
            self.is_speaking = False

    def status(self, symbol: str, name: str, text: str, style: str) -> None:
        """Write one line about a tool, truncated to the width."""
        head = f"{symbol} {name:<18}"
        shown = _truncate(_clean(text), self._text_width - _width_of(head) - 1)
        self._write(f"{_INDENT}{self.styled(head, style)} {self.styled(shown, 'dim')}\n")

    def figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Write a row of figures with their names, in several rows if the width requires it."""
        row, used = "", 0
        separator = " · "
        for number, name in figures:
            length = len(number) + 1 + len(name)
            if row and used + len(separator) + length > self._text_width:
                self._write(_INDENT + row + "\n")
                row, used = "", 0
            if row:
                row += self.styled(separator, "dim")
                used += len(separator)
            row += self.styled(number, "green") + " " + self.styled(name, "dim")
            used += length
        self._write(_INDENT + row + "\n")

    def bars(self, values: Sequence[float], name: str) -> None:
        """Draw values as a row of small bars, scaled to the largest; if there are too many, the last ones.

        Fewer than eight values are not drawn.
        """
        shown = values[-(self._text_width - len(name) - 1) :]
        if len(shown) < _MIN_BARS:
            return
        top = max(shown) or 1.0
        drawn = "".join(_BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in shown)
        self._write(f"{_INDENT}{self.styled(drawn, 'cyan')} {self.styled(name, 'dim')}\n")

    def blank(self) -> None:
        """Write an empty line."""
        self._write("\n")

    def _flush_word(self) -> None:
        word, self._word = self._word, ""
        if not word:
            return
        space, self._space = self._space if self._column else "", ""
        length = _width_of(word)
        if space == "\n" or (self._column and self._column + len(space) + length > self._text_width):
            self._write("\n" + _INDENT)
            space, self._column = "", 0
        self._write(space + word)
        self._column += len(space) + length

    def _write(self, text: str) -> None:
        self._out.write(self._encodable(text.translate(self._plain)))
        self._out.flush()

    def _encodable(self, text: str) -> str:
        """Return a text with question marks for what the output cannot encode."""
        encoding = self._out.encoding or "utf-8"
        return text.encode(encoding, "replace").decode(encoding)


def _width_of(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _clean(text: str) -> str:
    """Returns a text without the characters that could affect the terminal."""
    return "".join(each for each in text if each in _JOINERS or not unicodedata.category(each).startswith("C"))


def _truncate(text: str, room: int) -> str:
    return text if _width_of(text) <= room else text[: max(0, room - 3)] + "..."
