"""Files, kept in memory, with the complete upload protocol: initiate, upload, complete, download."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import Route, refuse
from friendli_async.testing.script import Script, body, json_body, status

__all__ = ["FileStore", "StoredFile"]

_PATH: Final = "/beta/file"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass
class StoredFile:
    """One file.

    Args:
        id: Its ID.
        name: Its name.
        size: Its size in bytes, as declared.
        digest: `sha256:` and the hexadecimal digest, as declared.
        project_id: Its project.
        created_at: When the upload was initiated.
        status: `UPLOADING` until it is completed, then `UPLOADED`.
    """

    id: str
    name: str
    size: int
    digest: str
    project_id: str
    created_at: str
    status: str = "UPLOADING"


class FileStore:
    """The files of one server. Contents are stored by digest, so that equal ones are uploaded once."""

    def __init__(self) -> None:
        self._files: dict[str, StoredFile] = {}
        self._contents: dict[str, bytes] = {}

    def routes(self) -> tuple[Route, ...]:
        """Return the routes of all operations on files, and of the URLs for upload and download."""
        one = f"{_PATH}/{{file_id}}"
        return (
            Route(
                method="POST",
                path=_PATH,
                answer=self._initiate,
                body="FileInitUploadRequest",
                reply="FileInitUploadResponse",
            ),
            Route(method="PATCH", path=one, answer=self._for_file(self._complete)),
            Route(method="GET", path=one, answer=self._for_file(_info), reply="FileInfo"),
            Route(
                method="GET",
                path=f"{one}/download_url",
                answer=self._for_file(self._download_url),
                reply="FileGetDownloadURLResponse",
            ),
            Route(method="POST", path="/uploads/{file_id}", answer=self._for_file(self._upload), needs_token=False),
            Route(method="GET", path="/downloads/{file_id}", answer=self._for_file(self._download), needs_token=False),
        )

    def _for_file(self, answer: Callable[[StoredFile, ReceivedRequest], Script]) -> Callable[[ReceivedRequest], Script]:
        def find(request: ReceivedRequest) -> Script:
            name = request.path_parameters["file_id"]
            file = self._files.get(name)
            return status(404, message=f"there is no file {name}") if file is None else answer(file, request)

        return find

    def _initiate(self, request: ReceivedRequest) -> Script:
        fields = request.json_object
        if not _DIGEST.fullmatch(fields["digest"]):
            message = "Input should be sha256: and 64 hexadecimal digits"
            return refuse([{"loc": ["body", "digest"], "msg": message, "type": "value_error"}])
        created = datetime.fromtimestamp(request.created, UTC).isoformat().replace("+00:00", "Z")
        file = StoredFile(
            id=f"file-{len(self._files) + 1}",
            name=fields["name"],
            size=int(fields["size"]),
            digest=fields["digest"],
            project_id=fields["projectId"],
            created_at=created,
        )
        self._files[file.id] = file
        if file.digest in self._contents:
            return json_body({"fileId": file.id, "uploadUrl": None, "aws": None})
        form = {"key": f"files/{file.id}", "policy": f"size={file.size}"}
        return json_body({"fileId": file.id, "uploadUrl": f"{request.origin}/uploads/{file.id}", "aws": form})

    def _upload(self, file: StoredFile, request: ReceivedRequest) -> Script:
        try:
            parts = {part.name: part for part in request.form}
        except ValueError as error:
            return status(400, message=f"the body is not a form: {error}")
        if parts.get("key") is None or parts["key"].text != f"files/{file.id}":
            return status(403, message="the form fields of the upload are missing")
        content = parts["file"].data if "file" in parts else None
        if content is None or list(parts)[-1] != "file":
            return status(400, message="the form does not end with the file")
        if len(content) != file.size:
            return status(400, message=f"expected {file.size} bytes, received {len(content)}")
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != file.digest:
            return status(400, message="the content does not match the declared digest")
        self._contents[file.digest] = content
        return body(b"", status=204, content_type="text/plain")

    def _complete(self, file: StoredFile, _: ReceivedRequest) -> Script:
        if file.digest not in self._contents:
            return status(409, message="the content has not been uploaded")
        file.status = "UPLOADED"
        return json_body(None)

    def _download_url(self, file: StoredFile, request: ReceivedRequest) -> Script:
        if file.status != "UPLOADED":
            return status(409, message="the upload was not completed")
        url = f"{request.origin}/downloads/{file.id}"
        return json_body({"fileId": file.id, "s3Uri": f"s3://files/{file.id}", "downloadUrl": url})

    def _download(self, file: StoredFile, _: ReceivedRequest) -> Script:
        content = self._contents.get(file.digest)
        if content is None:
            return status(404, message=f"there is no content of {file.id}")
        return body(content, content_type="application/octet-stream")


def _info(file: StoredFile, _: ReceivedRequest) -> Script:
    return json_body(
        {
            "id": file.id,
            "name": file.name,
            "size": file.size,
            "digest": file.digest,
            "projectId": file.project_id,
            "creatorId": "user-1",
            "createdAt": file.created_at,
            "expiresAt": None,
            "status": file.status,
        }
    )
