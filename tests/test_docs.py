"""The Python blocks in the README and in docs/ pass mypy --strict and run.

A block is run against the embedded server, with an open ``client`` and a token in the environment; every request that
it sends must succeed. A block that is a whole program (it calls ``asyncio.run``) or an app (``FastAPI(``) is run as a
module, and one with tests (``def test_``) by pytest. A comment right before a block changes this:

- ``<!-- continues -->``: the block continues the previous one.
- ``<!-- not run: REASON -->``: the block is only type-checked.
- ``<!-- not checked: REASON -->``: the block is neither type-checked nor run.
"""

import ast
import asyncio
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from fastapi.testclient import TestClient

import friendli_async
from friendli_async import errors
from friendli_async.cli.__main__ import COMMANDS
from friendli_async.testing import FriendliServer, text, tool_calls

ROOT: Final = Path(__file__).parent.parent
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted((ROOT / "docs").glob("**/*.md")))
FENCED: Final = re.compile(r"(?:<!-- (?P<note>[^\n]*?) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
CONTINUES: Final = "continues"
NOT_RUN: Final = "not run: "
NOT_CHECKED: Final = "not checked: "
WRAPPER: Final = """\
from friendli_async import AsyncFriendli


async def snippet(client: AsyncFriendli) -> None:
"""
"""Precedes a block that is not a module, to give it a client."""


@dataclass(frozen=True)
class Block:
    """A Python block of a page, including the blocks that it continues."""

    page: Path
    number: int
    code: str
    note: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).with_suffix('')}:{self.number}".lower()

    @property
    def has_tests(self) -> bool:
        return "def test_" in self.code

    @property
    def is_module(self) -> bool:
        is_program = "asyncio.run(" in self.code or "FastAPI(" in self.code
        return is_program or ast.get_docstring(ast.parse(self.code)) is not None


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    for number, match in enumerate(FENCED.finditer(page.read_text(encoding="utf-8")), 1):
        note, code = match["note"] or "", match["code"]
        if note == CONTINUES:
            code = f"{found[-1].code}\n{code}"
            note = found.pop().note
        found.append(Block(page, number, code, note))
    return found


BLOCKS: Final = [block for page in PAGES for block in blocks_of(page)]


@pytest.fixture
def server(remote: FriendliServer) -> FriendliServer:
    return remote


def test_every_python_block_is_found() -> None:
    fences = {page: page.read_text(encoding="utf-8").count("```python") for page in PAGES}
    seen = {page: len(FENCED.findall(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert seen == fences
    assert len([block for block in BLOCKS if block.page == README and not block.note]) >= 8


def test_skipped_blocks_state_a_reason() -> None:
    notes = [block.note for block in BLOCKS if block.note]
    assert [note for note in notes if not re.match(rf"({NOT_RUN}|{NOT_CHECKED}).{{15}}", note)] == []


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_block_compiles_within_the_line_length(block: Block) -> None:
    compile(block.code, block.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    shown = block.page.parent == ROOT / "docs" and block.page.stem != "design"
    assert max(map(len, block.code.splitlines())) <= (88 if shown else 120)  # see docs/.ruff.toml


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.page == README], ids=lambda block: block.name)
def test_blocks_of_the_readme_are_short(block: Block) -> None:
    assert len(block.code.splitlines()) < 20


def test_every_block_passes_mypy() -> None:
    pytest.importorskip("mypy")
    # A fixed directory, so that mypy's cache serves unchanged blocks.
    directory = ROOT / "build" / "documented"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    checked = [block for block in BLOCKS if not block.note.startswith(NOT_CHECKED)]
    for block in checked:
        code = block.code if block.is_module else WRAPPER + textwrap.indent(block.code, "    ")
        (directory / re.sub(r"\W", "_", block.name)).with_suffix(".py").write_text(code, encoding="utf-8")
    # The options of `make lint`, to share its cache.
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    files = sorted(directory.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert len(files) == len(checked)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace of a registered module, in which the type hints of a block's classes can be resolved."""
    module = ModuleType("documented")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return vars(module)


RUN: Final = [block for block in BLOCKS if not block.note]


@pytest.mark.parametrize("block", [block for block in RUN if block.has_tests], ids=lambda block: block.name)
def test_tests_of_block_pass(tmp_path: Path, block: Block) -> None:
    file = tmp_path / "test_block.py"
    file.write_text(block.code, encoding="utf-8")
    plugins = ["-p", "friendli_async.testing.fixtures", "-p", "pytest_asyncio.plugin"]
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path), "-o", "asyncio_mode=auto"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *plugins, str(file)],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, f"{block.code.count('def test_')} passed" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("block", [block for block in RUN if not block.has_tests], ids=lambda block: block.name)
async def test_block_runs(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, namespace: dict[str, Any], tmp_path: Path, block: Block
) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks write files
    monkeypatch.setenv("FRIENDLI_TOKEN", "test-token")
    monkeypatch.setenv("FRIENDLI_SERVER_URL", server.url)
    monkeypatch.setenv("FRIENDLI_CONTAINER_URL", server.url)
    if block.is_module:
        await asyncio.to_thread(exec, compile(block.code, block.name, "exec"), namespace)
    else:
        code = compile(block.code, block.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        async with friendli_async.AsyncFriendli() as client:
            namespace["client"] = client
            running = eval(code, namespace)
            if inspect.isawaitable(running):
                await asyncio.wait_for(running, 60)
    calls = re.search(r"\b(?:await|in|with) client\.(?!with_options|drain|aclose)", block.code)
    if calls and not re.search(r"FastAPI\(|FriendliServer\(\)", block.code):
        assert server.requests
    assert all(request.status == 200 for request in server.requests)


def test_approval_app_takes_a_decision_in_another_request(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, namespace: dict[str, Any]
) -> None:
    monkeypatch.setenv("FRIENDLI_TOKEN", "test-token")
    monkeypatch.setenv("FRIENDLI_SERVER_URL", server.url)
    block = next(block for block in BLOCKS if "ChatResponse" in block.code)
    exec(compile(block.code, block.name, "exec"), namespace)
    server.enqueue(tool_calls(("pay", {"amount": 5})), text("It is paid."))
    with TestClient(namespace["app"]) as browser:
        assert "to_decide" in browser.post("/chats/a/messages?q=Pay").text
        [call] = browser.get("/to-decide").json()["a"]
        assert browser.post("/chats/a/decisions", json={}).status_code == 422
        decisions = {call["id"]: True}
        assert "It is paid." in browser.post("/chats/a/decisions", json=decisions).text
        assert browser.post("/chats/a/decisions", json=decisions).status_code == 409
    assert server.requests[1].json_object["messages"][-1]["content"] == "paid 5"


# --- whole pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = page if not path else (page.parent / path)
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_links_of_the_readme_lead_to_files_of_the_sdist() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["sdist"]["only-include"]
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert {target for target in linked if not target.startswith(tuple(included))} == set()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ .*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in headings}


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page != README}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_lead_to_every_part_of_a_page(page: Path) -> None:
    text = re.sub(
        r"```.*?```", lambda block: "\n" * block[0].count("\n"), page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    parts = re.split(r"^#+ ", text, flags=re.MULTILINE)
    assert max(part.count("\n") for part in parts) < 130  # readers and the search find headings, not paragraphs


def test_reference_documents_every_public_name() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    shown = {name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)}
    documented = {name.rpartition(".")[2] for name in shown}
    documented.update(*(getattr(pkgutil.resolve_name(name), "__all__", ()) for name in shown))
    for module in public_modules():
        names = set(getattr(importlib.import_module(module), "__all__", ()))
        assert names - documented - {"__version__"} == set(), module


def public_modules() -> list[str]:
    """Returns the modules that users import from, without the core and the command-line programs."""
    internal = {
        "_callables",
        "_core",
        "_help",
        "_hints",
        "_json",
        "_lazy",
        "_locks",
        "_pydantic",
        "_version",
        "demo",
        "cli",
        "__main__",
    }
    found = [info.name for info in pkgutil.iter_modules(friendli_async.__path__) if info.name not in internal]
    return ["friendli_async", *(f"friendli_async.{name}" for name in found)]


def test_tables_state_the_defaults() -> None:
    timeouts, limits, retry = friendli_async.Timeouts(), friendli_async.Limits(), friendli_async.RetryPolicy()
    text = (ROOT / "docs" / "timeouts-and-retries.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", text, re.MULTILINE))
    assert rows["connect"] == f"{timeouts.connect:g} s"
    assert (rows["pool"], timeouts.pool) == ("none", None)
    assert rows["first_event"] == f"{timeouts.first_event:g} s"
    assert rows["idle"] == f"{timeouts.idle:g} s"
    assert (rows["total"], timeouts.total) == ("none", None)
    assert rows["event"] == f"{limits.event >> 20} MiB"
    assert rows["reply"] == f"{limits.reply >> 20} MiB"
    assert rows["error"] == f"{limits.error >> 10} KiB"
    assert rows["max_attempts"] == str(retry.max_attempts)
    assert rows["max_retry_after"] == f"{retry.max_retry_after:g} s"
    assert rows["statuses"] == ", ".join(map(str, sorted(retry.statuses)))
    assert f"{retry.initial:g} s, {retry.multiplier}, {retry.max_wait:g} s" in text


def test_errors_page_names_every_error() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    names = [name for name in errors.__all__ if name.endswith("Error")]
    assert len(names) > 15
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_command_line_page_has_a_section_for_each_command() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"\n## {name}\n" not in text] == []


@pytest.mark.parametrize("section", ["Where to look", "What else is added, and where"])
def test_names_in_the_tables_for_maintainers_exist(section: str) -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    names = set(re.findall(r"`([\w./]+)`", text.partition("\n## ")[0]))
    files = [README, *(path for folder in ("friendli_async", "tests", "docs") for path in (ROOT / folder).rglob("*.*"))]
    paths = {name for name in names if name.endswith((".py", ".md"))}
    assert [name for name in paths if not any(f"/{path.as_posix()}".endswith(f"/{name}") for path in files)] == []
    modules = [set(re.findall(r"\w+", path.read_text(encoding="utf-8"))) for path in files if path.suffix == ".py"]
    assert len(names) > 20
    assert [name for name in names - paths if not any(words.issuperset(name.split(".")) for words in modules)] == []


def test_where_to_look_names_at_most_two_places_a_row_and_the_files_that_define_them() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("\n## Where to look\n")[2]
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    assert [row for row in rows if len(row) > 170] == []  # to be found at a glance
    wrong: list[str] = []
    for row in rows:
        for names, path in re.findall(r"((?:`[\w.]+` and )?`[A-Za-z_.]+`) in `([\w/]+\.py)`", row):
            tree = ast.parse((ROOT / "friendli_async" / path).read_text(encoding="utf-8"))
            wrong += [f"{name} in {path}" for name in re.findall(r"`([\w.]+)`", names) if not is_defined(name, tree)]
    assert wrong == []


def is_defined(name: str, tree: ast.AST) -> bool:
    """Whether a class or function, or a method such as `Call.run`, is defined in the body of a module or class."""
    first, _, rest = name.partition(".")
    defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.iter_child_nodes(tree) if isinstance(node, defined) and node.name == first]
    return any(not rest or is_defined(rest, node) for node in found)


def test_every_example_is_in_the_table() -> None:
    text = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w.]+)/?` \|", text, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "examples").iterdir() if not path.name.startswith("__")}


def test_changelog_names_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{friendli_async.__version__}]" in changelog
    assert "## [Unreleased]" in changelog
