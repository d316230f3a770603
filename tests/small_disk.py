"""Disks of a size or kind of their own, mounted where only a process that enters sees them."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[tuple[list[str], Path]]:
    """A tmpfs with these options at `place`, in a mount namespace of its own.

    The test is skipped where the kernel lets nobody but root make one.

    Yields:
        What to put before a command that is to see it, and where we see it.
    """
    place.mkdir(parents=True, exist_ok=True)
    script = f"mount -t tmpfs -o {options} none {shlex.quote(str(place))} && echo ready && cat"
    with subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as holder:
        if holder.stdout.readline() != b"ready\n":
            pytest.skip("the kernel lets nobody but root mount a disk")
        enter = ["nsenter", "-t", str(holder.pid), "-U", "-m", "--preserve-credentials"]
        yield enter, Path(f"/proc/{holder.pid}/root{place}")
        holder.stdin.close()
