"""Every Python block of the README and of docs/ passes mypy --strict; `test_examples.py` runs the README's."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
BLOCK: Final = re.compile(r"(?P<before><!--[^\n]*-->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
EXEMPT: Final = "not type-checked: "
"""Stands in a comment before a block that cannot be checked, with the reason behind it."""
FRAME: Final = """\
from friendli_async import AsyncFriendli


async def snippet(client: AsyncFriendli) -> None:
"""
"""A block is a part of a program that has a client."""


def blocks() -> dict[str, tuple[str, str]]:
    """The comment before each block, and its code, by the name of a file."""
    return {
        f"{page.stem.lower()}_{number}.py": (found["before"] or "", found["code"])
        for page in PAGES
        for number, found in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), 1)
    }


def as_module(code: str) -> str:
    """A block as a whole module."""
    whole = "asyncio.run(" in code or ast.get_docstring(ast.parse(code)) is not None
    return code if whole else FRAME + textwrap.indent(code, "    ")


def test_a_block_that_is_not_checked_has_its_reason() -> None:
    exempt = [before for before, _ in blocks().values() if before]
    assert len(exempt) <= 1
    assert all(EXEMPT in before and len(before.partition(EXEMPT)[2]) > 20 for before in exempt)


def test_every_block_passes_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for name, (before, code) in blocks().items():
        if EXEMPT not in before:
            (tmp_path / name).write_text(as_module(code), encoding="utf-8")
    options = ["--strict", "--python-version", "3.11", "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--config-file", "", *map(str, sorted(tmp_path.glob("*.py")))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert len(list(tmp_path.glob("*.py"))) >= 11
    assert done.returncode == 0, done.stdout.replace(f"{tmp_path}/", "") + done.stderr
