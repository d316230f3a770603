"""A file as its source lists it, and whether a file on the disk is that one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from avomni_lib import files


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the source lists it; what is not known is None.

    Attributes:
        path: Inside the repository.
        size: Bytes.
        sha256: Of a large file's content.
        blob_id: Git's id: of a small file's content, of the pointer to a large one.
    """

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None

    def differs(self, content: Path) -> str | None:
        """Why the file at `content` is not this one, or None. Reads the whole of it."""
        size = content.stat().st_size
        if size != self.size:
            return f"{size:,} bytes in place of {self.size:,}"
        if self.sha256:
            return None if files.sha256_file(content) == self.sha256 else "its sha256 is wrong"
        if self.blob_id and git_blob_id(content.read_bytes()) != self.blob_id:
            return "its git blob id is wrong"
        return None


def git_blob_id(content: bytes) -> str:
    """Git's id of a file (Pro Git, "Git Objects"): how the hub knows small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
