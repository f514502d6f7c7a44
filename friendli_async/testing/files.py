"""Files, kept in memory, with the complete upload protocol: initiate, upload, complete, download."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from friendli_async.testing.frames import timestamp
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import Route, stored
from friendli_async.testing.script import Script, body, json_body, status

_PATH: Final = "/beta/file"

_File = dict[str, Any]
"""The information about a file, as in the replies."""


class FileStore:
    """The files of one server. Contents are stored by digest, so that equal ones are uploaded once."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._contents: dict[str, bytes] = {}

    def routes(self) -> tuple[Route, ...]:
        """Return the routes of all operations on files, and of the URLs for upload and download."""
        one, files = f"{_PATH}/{{file_id}}", self._files
        url = stored("file", files, self._download_url)
        return (
            Route("POST", _PATH, self._initiate, "FileInitUploadRequest", "FileInitUploadResponse"),
            Route("PATCH", one, stored("file", files, self._complete)),
            Route("GET", one, stored("file", files, lambda file, _: json_body(file)), reply="FileInfo"),
            Route("GET", f"{one}/download_url", url, reply="FileGetDownloadURLResponse"),
            Route("POST", "/uploads/{file_id}", stored("file", files, self._upload), needs_token=False),
            Route("GET", "/downloads/{file_id}", stored("file", files, self._download), needs_token=False),
        )

    def _initiate(self, request: ReceivedRequest) -> Script:
        fields = request.json_object
        name = f"file-{len(self._files) + 1}"
        self._files[name] = {
            "id": name,
            **{field: fields[field] for field in ("name", "size", "digest", "projectId")},
            "creatorId": "user-1",
            "createdAt": timestamp(request.created),
            "expiresAt": None,
            "status": "UPLOADING",
        }
        if fields["digest"] in self._contents:
            return json_body({"fileId": name, "uploadUrl": None, "aws": None})
        form = {"key": f"files/{name}", "policy": f"size={fields['size']}"}
        return json_body({"fileId": name, "uploadUrl": f"{request.origin}/uploads/{name}", "aws": form})

    def _upload(self, file: _File, request: ReceivedRequest) -> Script:
        try:
            parts = {part.name: part for part in request.form}
        except ValueError as error:
            return status(400, message=f"the body is not a form: {error}")
        if parts.get("key") is None or parts["key"].text != f"files/{file['id']}":
            return status(403, message="the form fields of the upload are missing")
        if list(parts)[-1] != "file":
            return status(400, message="the form does not end with the file")
        content = parts["file"].data
        if len(content) != file["size"]:
            return status(400, message=f"expected {file['size']} bytes, received {len(content)}")
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != file["digest"]:
            return status(400, message="the content does not match the declared digest")
        self._contents[file["digest"]] = content
        return body(b"", status=204, content_type="text/plain")

    def _complete(self, file: _File, _: ReceivedRequest) -> Script:
        if file["digest"] not in self._contents:
            return status(409, message="the content has not been uploaded")
        file["status"] = "UPLOADED"
        return json_body(None)

    def _download_url(self, file: _File, request: ReceivedRequest) -> Script:
        if file["status"] != "UPLOADED":
            return status(409, message="the upload was not completed")
        url = f"{request.origin}/downloads/{file['id']}"
        return json_body({"fileId": file["id"], "s3Uri": f"s3://files/{file['id']}", "downloadUrl": url})

    def _download(self, file: _File, _: ReceivedRequest) -> Script:
        content = self._contents.get(file["digest"])
        if content is None:
            return status(404, message=f"there is no content of {file['id']}")
        return body(content, content_type="application/octet-stream")
