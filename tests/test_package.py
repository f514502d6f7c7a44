"""The package as a whole: layers, names, sizes and imports."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
from anyio import to_thread
from support.live_objects import OF_A_CALL

import friendli_async
from friendli_async.cli.__main__ import COMMANDS
from friendli_async.testing import FriendliServer, status, text
from friendli_async.tools import LocalTool, tool

ROOT: Final = Path(friendli_async.__file__).parent
NAME: Final = "friendli_async"

LAYERS: Final = (
    {
        "_callables",
        "_help",
        "_hints",
        "_json",
        "_lazy",
        "_locks",
        "_pydantic",
        "_pydantic_types",
        "_version",
        "errors",
        "options",
        "rate_limits",
        "replies",
        "usage_limit",
    },
    {"_core"},
    {"streams"},
    {"<an API>"},  # every module that is not listed elsewhere
    {"client"},
    {""},  # the root, which re-exports the layers below
    {"blocking", "bulk"},
    {"integrations", "testing"},
    {"cli", "demo"},
    {"__main__"},
)
"""The components of the package, lowest layer first: a module imports from lower layers and its own component."""

OPEN_LAYERS: Final = LAYERS[:4]
"""Layers whose components may import from each other, as the APIs do; in higher layers they may not."""

CORE_LAYERS: Final = (
    {
        "",
        "status_errors",
        "error_json",
        "error_text",
        "held",
        "lenient",
        "loops",
        "observers",
        "pacing",
        "reporting",
        "secret",
        "settings",
        "text",
        "timing",
        "work",
    },
    {"body"},
    {"protocol"},
    {"net", "retry"},
    {"events", "runtime"},
    {"call", "engine"},
    {"pages", "resource"},
)
"""The layers inside `_core`, lowest first."""

ENTRY_POINTS: Final = ("__main__", ".engine_process")
"""Modules that are run, not imported; like `_core` they have no public names."""

PYTEST_PLUGIN: Final = "friendli_async.testing.fixtures"

ATTEMPT_LOOP: Final = (f"{NAME}._core.call", 60)
"""The module of the attempt loop and its maximum number of lines; every other function has at most 40."""


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name."""

    name: str
    for_types_only: bool


def module_name(path: Path) -> str:
    return ".".join((NAME, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


SOURCES: Final = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def component(module: str) -> str:
    """Returns the first name below the package, of a module or a subpackage; entry points may import everything."""
    first = module.removeprefix(NAME).removeprefix(".").partition(".")[0]
    return "__main__" if module.endswith(".__main__") else first


def layer_index(name: str, layers: tuple[set[str], ...]) -> int | None:
    return next((index for index, components in enumerate(layers) if name in components), None)


def layer(module: str) -> int:
    found = layer_index(component(module), LAYERS)
    return LAYERS.index({"<an API>"}) if found is None else found


def may_import(importer: str, imported: str) -> bool:
    if component(importer) == component(imported):
        return component(importer) != "_core" or core_layer(imported) <= core_layer(importer)
    if layer(importer) == layer(imported):
        return layer(importer) < len(OPEN_LAYERS)
    return layer(imported) < layer(importer)


def core_layer(module: str) -> int:
    name = component(module.replace("._core", "", 1))
    found = layer_index(name, CORE_LAYERS)
    if found is None:
        pytest.fail(f"_core.{name} is in no layer: add it to CORE_LAYERS")
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_imports(nodes(module)))


def _imports(tree: tuple[ast.AST, ...]) -> Iterator[Import]:
    type_checking = {
        id(inner)
        for node in tree
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in tree:
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                # `from friendli_async import errors` imports the submodule; `FriendliError` is only a name in the root.
                inner = [f"{module}.{alias.name}" for alias in names]
                found = [name if name in SOURCES else module for name in inner]
            case ast.ImportFrom():
                pytest.fail(f"line {node.lineno}: relative import, use an absolute one")
            case _:
                continue
        yield from (Import(name, id(node) in type_checking) for name in found)


def parsed(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


@cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    """Returns the syntax tree of a module, itself first."""
    return tuple(ast.walk(parsed(module)))


# --- layers ----------------------------------------------------------------------------------------------------------


def test_modules_import_only_from_their_own_and_lower_layers() -> None:
    ours = {(name, found.name) for name in SOURCES for found in imports(name) if found.name.partition(".")[0] == NAME}
    assert {(importer, imported) for importer, imported in ours if not may_import(importer, imported)} == set()


def test_there_are_no_import_cycles() -> None:
    graph = {
        name: {found.name for found in imports(name) if found.name in SOURCES and not found.for_types_only}
        for name in SOURCES
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {error.args[1]}")
    assert set(order) == set(SOURCES)


@pytest.mark.parametrize(
    ("library", "importers"),
    [("aiohttp", ("_core.net.", "testing.", "demo.")), ("tenacity", ("_core.retry",))],
)
def test_library_is_imported_only_where_allowed(library: str, importers: tuple[str, ...]) -> None:
    # Imports under `TYPE_CHECKING` are allowed everywhere.
    found = {
        name.removeprefix(f"{NAME}.")
        for name in SOURCES
        for used in imports(name)
        if used.name.partition(".")[0] == library and not used.for_types_only
    }
    assert found
    assert {name for name in found if not f"{name}.".startswith(importers)} == set()


def test_commands_are_imported_by_statements_which_freezers_follow() -> None:
    imported = {found.name for found in imports(f"{NAME}.cli.__main__")}
    assert {f"{NAME}.cli.{command}" for command in COMMANDS} - imported == set()
    # PyInstaller finds `from package.__main__ import run`, but not this.
    assert [name for name, path in SOURCES.items() if "import __main__" in path.read_text("utf-8")] == []


def test_core_contains_no_endpoint_paths() -> None:
    paths = {
        f"{name}: {node.value}"
        for name in SOURCES
        if component(name) == "_core"
        for node in nodes(name)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("/v1/")
    }
    assert paths == set()


# --- size and names --------------------------------------------------------------------------------------------------


def line_count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the number of lines of a function without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    match function.body[0]:
        case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=int(last)):
            lines -= last - first + 1
    return lines


def test_module_and_function_sizes_are_limited() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length > 600} == {}
    too_long = [
        (name, node.name, line_count(node))
        for name in SOURCES
        for node in nodes(name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and line_count(node) > 40
    ]
    in_loop = [length for name, _, length in too_long if name == ATTEMPT_LOOP[0]]
    assert len(in_loop) <= 1
    assert max(in_loop, default=0) <= ATTEMPT_LOOP[1]
    assert [each for each in too_long if each[0] != ATTEMPT_LOOP[0]] == []


def test_module_names_are_specific() -> None:
    parts = {part.strip("_") for name in SOURCES for part in name.split(".")}
    assert not parts & {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}


def test_root_all_is_complete_and_sorted() -> None:
    public = {
        name
        for name, value in vars(friendli_async).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert friendli_async.__all__ == sorted(public | {"__version__"})


def declared(module: str) -> list[str]:
    """Returns a module's `__all__`, which is empty for entry points: they are not imported."""
    return [] if module.endswith(ENTRY_POINTS) else list(getattr(import_module(module), "__all__", []))


def defined(module: str) -> Iterator[str]:
    """Yields the public names that a module defines, except type variables."""
    for node in parsed(module).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names = [name]
            case ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec"))):
                continue
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                continue
        yield from (name for name in names if not name.startswith("_"))


def test_all_has_existing_names_without_duplicates() -> None:
    for module in SOURCES:
        names = declared(module)
        assert len(set(names)) == len(names), module
        assert [name for name in names if not hasattr(import_module(module), name)] == [], module


def test_public_names_have_one_module_to_import_them_from_beside_the_root() -> None:
    modules = [name for name in SOURCES if name.count(".") == 1 and "._" not in name]
    homes = Counter((name, id(getattr(import_module(module), name))) for module in modules for name in declared(module))
    assert len(homes) > 300
    several = {name for (name, _), count in homes.items() if count > 1}
    # What is uploaded, in each module that uploads something; and what chats have beside their own types.
    assert several <= {"Content", "FunctionCall", "TextView", "ToolCall", "Usage"}


def test_types_that_tests_count_exist() -> None:
    classes = {node.name for name in SOURCES for node in nodes(name) if isinstance(node, ast.ClassDef)}
    assert OF_A_CALL - classes == set()


def used_names() -> set[tuple[str, str]]:
    """Returns the names of modules that other modules, or tests, import, or take from an imported module."""
    tests = [node for path in Path(__file__).parent.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    by_name = {name.rpartition(".")[2]: name for name in SOURCES}
    used: set[tuple[str, str]] = set()
    for node in (*tests, *(node for name in SOURCES for node in nodes(name))):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module in SOURCES:
                used.update((module, alias.name) for alias in names)
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in by_name:
                used.add((by_name[module], name))
    return used


def test_public_names_are_in_all_and_other_names_have_an_underscore() -> None:
    """Names that only other modules of the package, and tests of it, use may have neither."""
    checked = [name for name in SOURCES if component(name) != "_core" and not name.endswith(ENTRY_POINTS)]
    public = {(module, name) for module in checked for name in {*defined(module)} - {*declared(module)}}
    commands = {(f"friendli_async.cli.{name}", entry) for name in COMMANDS for entry in ("add_arguments", "run")}
    assert public - used_names() - commands == set()


def test_all_of_a_module_in_a_package_is_exported_by_a_package() -> None:
    """So `__all__` means what users may import, and the API reference, which reads it, shows nothing else."""
    packages = {name for name in SOURCES if declared(name) and any(each.startswith(f"{name}.") for each in SOURCES)}
    exported = {name for package in packages for name in declared(package)} | {"ToolCallView"}  # what a method returns
    modules = [name for name in SOURCES if name.rpartition(".")[0] in packages - {NAME} and name != PYTEST_PLUGIN]
    found = {module: {*declared(module)} - exported for module in modules}
    assert {module: names for module, names in found.items() if names} == {}
    internal = [name for name in SOURCES if component(name) == "cli" or "integrations._" in name]
    assert [module for module in internal if declared(module)] == []


def test_public_protocols_can_be_checked_at_run_time() -> None:
    """pydantic and beartype do so with annotations of their users' own classes and functions."""
    modules = [import_module(module) for module in SOURCES if component(module) != "_core"]
    public = [getattr(module, name) for module in modules for name in declared(module.__name__)]
    protocols = [each for each in public if getattr(each, "_is_protocol", False)]
    assert LocalTool in protocols
    assert [each for each in protocols if isinstance(object(), each)] == []
    assert isinstance(tool(test_py_typed_is_shipped), LocalTool)


def test_annotations_of_classes_for_type_checkers_resolve_at_run_time() -> None:
    """Sphinx reads them from the source, and cannot show the signature of a struct if it cannot evaluate one."""
    found = [
        (module, ast.unparse(field.annotation))
        for module in SOURCES
        for node in nodes(module)
        if isinstance(node, ast.ClassDef)
        for block in node.body
        if isinstance(block, ast.If)
        for field in block.body
        if isinstance(field, ast.AnnAssign)
    ]
    assert found
    for module, annotation in found:
        eval(annotation, vars(import_module(module)))


def test_py_typed_is_shipped() -> None:
    assert (ROOT / "py.typed").read_bytes() == b""


def test_installed_metadata_has_version_and_dependencies() -> None:
    assert version(NAME) == friendli_async.__version__
    always = [line for line in requires(NAME) or () if "extra ==" not in line]
    assert {re.split(r"[<>=!~ ]", line)[0] for line in always} == {"aiohttp", "msgspec", "tenacity", "anyio"}


# --- import time -----------------------------------------------------------------------------------------------------


def run(script: str, *arguments: str) -> list[str]:
    """Runs a script in a fresh interpreter; returns the JSON list that it prints."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    names: list[str] = json.loads(done.stdout)
    return names


@pytest.mark.compatibility
def test_importing_the_package_does_not_load_heavy_modules() -> None:
    heavy = "{'aiohttp', 'tenacity', 'anyio', 'asyncio.base_events', 'ssl', 'friendli_async.testing'}"
    assert run(f"import friendli_async, json, sys; print(json.dumps(sorted({heavy} & set(sys.modules))))") == []


REQUESTS: Final = """
import asyncio, json, sys
from friendli_async import AsyncFriendli, BadRequestError, RetryPolicy

async def main(url):
    messages = [{"role": "user", "content": "Hi"}]
    async with AsyncFriendli("test-token", server_url=url, retry=RetryPolicy(initial=0.0)) as client:
        before = set(sys.modules)
        chat = client.serverless.chat
        await chat.complete(model="m", messages=messages)
        async with chat.stream(model="m", messages=messages) as stream:
            async for chunk in stream:
                pass
        try:
            await chat.complete(model="m", messages=messages)
        except BadRequestError:
            pass
        async for event in client.serverless.tool_assisted_chat_completion(
            tool_assisted_completion_request_body={
                "model": "m", "messages": messages, "tools": [{"type": "math:calculator"}]
            }
        ):
            pass
        return sorted(set(sys.modules) - before)

print(json.dumps(asyncio.run(main(sys.argv[1]))))
"""


@pytest.mark.compatibility
async def test_calls_streams_retries_and_errors_import_no_modules() -> None:
    async with FriendliServer() as server:
        server.enqueue(text("once"), status(503), text("twice"), status(400))
        assert await to_thread.run_sync(run, REQUESTS, server.url) == []
        assert len(server.requests) == 5


END_OF_A_RUN: Final = """
import asyncio, json, sys
IMPORTS
from friendli_async.bulk import run_all

async def main():
    async for outcome in run_all(range(3), asyncio.sleep):
        loaded = set(sys.modules)
    return sorted(set(sys.modules) - loaded)

print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.compatibility
@pytest.mark.parametrize("imports", ["", "import anyio"])
def test_end_of_a_run_imports_no_modules(imports: str) -> None:
    """Its connections may have all the files that the process may open."""
    assert run(END_OF_A_RUN.replace("IMPORTS", imports)) == []
