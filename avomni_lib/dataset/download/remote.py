"""A file as listed by its source, and its comparison with a file on the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib.dataset import names


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as listed by the source; unknown values are None.

    Path and ids become parts of file names, so they are checked on creation.

    Raises:
        AvomniError: the path is not relative, or an id or the size is invalid.
    """

    path: str  # inside the repository
    size: int  # bytes
    sha256: str | None = None  # of a large file's content
    blob_id: str | None = None  # git's id of a small file's content, or of a large one's pointer
    xet_hash: str | None = None  # of a large file's content, if the hub offers Xet

    def __post_init__(self) -> None:
        fault = names.path_fault(self.path)
        names.need("the path of a file", self.path, fault, "what the source lists")
        where = f"{self.path}, as the source lists it"
        names.need("the size", self.size, names.size_fault(self.size), where)
        ids = {"sha256": (self.sha256, 64), "git id": (self.blob_id, 40)}
        for what, (value, num_digits) in (ids | {"Xet hash": (self.xet_hash, 64)}).items():
            if value is not None:
                names.need(f"the {what}", value, names.hex_fault(value, num_digits), where)

    @property
    def content_id(self) -> str | None:
        """Id of the content: equal ids mean equal bytes in any revision."""
        return self.sha256 or self.blob_id

    def new_hash(self) -> Any:
        """A hash object to update with the content, for use with `wrong`."""
        return hashlib.sha256() if self.sha256 or not self.blob_id else _git_hash(self.size)

    def wrong(self, size: int, content_hash: Any) -> str | None:
        """Why `size` bytes with this hash are not this file, or None."""
        if size != self.size:
            return f"{size:,} bytes in place of {self.size:,}"
        if self.content_id is None or content_hash.hexdigest() == self.content_id:
            return None
        return "its sha256 is wrong" if self.sha256 else "its git blob id is wrong"

    def differs(self, content: Path) -> str | None:
        """Why the file at `content` is not this one, or None; reads the whole file."""
        size, content_hash = content.stat().st_size, None
        if size == self.size and self.content_id is not None:
            with open(content, "rb") as file:
                content_hash = hashlib.file_digest(file, self.new_hash)
        return self.wrong(size, content_hash)


def git_blob_id(content: bytes) -> str:
    """Git's id of a file's content, by which the hub identifies small files."""
    blob = _git_hash(len(content))
    blob.update(content)
    return str(blob.hexdigest())


def _git_hash(size: int) -> Any:
    """Git's id of a file is the sha1 of a header and the content (Pro Git, "Git Objects")."""
    return hashlib.sha1(b"blob %d\0" % size)
