"""The library's operations, compared with the list of the API's operations (`data/operations.json`)."""

import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any, Final

import pytest
from support.operations import served_operations

import friendli_async
from friendli_async._core.protocol import Operation

LIVE: Final[list[tuple[str, str, str]]] = [
    tuple(row) for row in json.loads((Path(__file__).parent / "data" / "operations.json").read_text())
]
"""Name in the official SDK, method and path of every current operation."""

EXTRAS: Final = {
    ("serverless.tool_assisted_chat", "POST", "/serverless/tools/v1/chat/completions"),
    ("file", "POST", "/beta/file"),
    ("file", "PATCH", "/beta/file/{file_id}"),
    ("file", "GET", "/beta/file/{file_id}"),
    ("file", "GET", "/beta/file/{file_id}/download_url"),
}
"""Operations that the official SDK has removed and this library keeps."""

OURS: Final = {(served.group, *served.key) for served in served_operations()}


def constants() -> list[tuple[str, Operation[Any]]]:
    found: list[tuple[str, Operation[Any]]] = []
    for info in pkgutil.walk_packages(friendli_async.__path__, "friendli_async."):
        if info.name.split(".")[1] not in {"testing", "demo"}:
            module = importlib.import_module(info.name)
            found += [
                (f"{info.name}.{name}", value)
                for name, value in vars(module).items()
                if isinstance(value, Operation) and value.path.startswith("/")
            ]
    return found


def test_operations_match_the_official_sdk_and_the_extras() -> None:
    live = {(name.rpartition(".")[0], method, path) for name, method, path in LIVE}
    assert len(LIVE) == len(live)
    assert sorted(OURS) == sorted(live | EXTRAS)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_have_the_number_of_operations(page: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    assert re.findall(r"\ball (\d+) (?:live )?operations", text) == [str(len(LIVE))]


def test_table_of_operations_has_every_group_of_each_deployment() -> None:
    text = (Path(__file__).parents[1] / "docs" / "other-apis.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `\{?([sdc,]+)\}?\.(\w+)\.", text, re.MULTILINE)
    groups = [served.group.split(".") for served in served_operations() if "." in served.group]
    assert {(letter, name) for letters, name in rows for letter in letters.split(",")} == {
        (deployment[0], name) for deployment, name in groups
    }


@pytest.mark.parametrize("operation", [value for _, value in constants()], ids=[name for name, _ in constants()])
def test_every_operation_is_used_by_a_resource(operation: Operation[Any]) -> None:
    assert any(served.operation is operation for served in served_operations())


def test_operation_names_match_client_attributes() -> None:
    for served in served_operations():
        group, method = served.operation.name.split(".")
        assert group == served.group.rpartition(".")[2]
        assert callable(getattr(served.resource, method))
