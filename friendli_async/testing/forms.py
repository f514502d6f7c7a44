"""Parses `multipart/form-data` (RFC 7578), the format of transcription and upload requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import Any

from friendli_async.testing.schema import from_text, resolve

__all__ = ["FormPart"]


@dataclass(frozen=True)
class FormPart:
    """One part of a form.

    Args:
        name: Name of the field.
        filename: Name of the file; `None` if the part is not a file.
        content_type: Its `Content-Type`, or `None`.
        data: The content.
    """

    name: str
    filename: str | None
    content_type: str | None
    data: bytes

    @property
    def text(self) -> str:
        """The content as text."""
        return self.data.decode("utf-8", "replace")


def parse_form(content_type: str, body: bytes) -> tuple[FormPart, ...]:
    """Parse the parts of a form, in order.

    Args:
        content_type: The request's `Content-Type`, with the boundary.
        body: The request's body.

    Raises:
        ValueError: The body is not a form, or a malformed one.
    """
    head = HeaderParser().parsestr(f"Content-Type: {content_type}")
    boundary = head.get_boundary()
    if head.get_content_type() != "multipart/form-data" or not boundary:
        raise ValueError("the Content-Type is not multipart/form-data with a boundary")
    return tuple(_parts(body, boundary.encode("latin-1", "replace")))


def form_values(schema: str, parts: Sequence[FormPart]) -> dict[str, object]:
    """Convert the parts of a form to the value that its schema, given by name, describes.

    The `multipart` of the schema's properties says which parts are JSON. A file becomes an object with `fileName`,
    `Content-Type`, and `content`, which is empty: the bytes are in the part.

    Raises:
        ValueError: A part that should be JSON is not.
    """
    properties: Mapping[str, Mapping[str, Any]] = resolve({"$ref": schema})["properties"]
    texts: dict[str, list[str]] = {}
    values: dict[str, object] = {}
    for part in parts:
        if part.filename is not None:
            values[part.name] = {"fileName": part.filename, "content": "", "Content-Type": part.content_type or ""}
        elif properties.get(part.name, {}).get("multipart") == "json":
            values[part.name] = _json(part)
        else:
            texts.setdefault(part.name, []).append(part.text)
    return {**from_text(schema, texts), **values}


def _parts(body: bytes, boundary: bytes) -> Iterator[FormPart]:
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise ValueError("the form does not end with its boundary")
    for piece in pieces[1:-1]:
        head, _, data = piece.partition(b"\r\n\r\n")
        headers = HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip())
        name = str(headers.get_param("name", header="Content-Disposition"))
        yield FormPart(name, headers.get_filename(), headers["Content-Type"], data)


def _json(part: FormPart) -> object:
    try:
        return json.loads(part.data)
    except (ValueError, RecursionError):
        raise ValueError(f"the part {part.name} is not JSON") from None
