"""What a command prints where it cannot go on: a message in place of a traceback."""

from __future__ import annotations

import os
import tempfile
import traceback

from avomni_lib import files
from avomni_lib.errors import AvomniError

SHORT_OF_MEMORY = "lower training.batch_size, processing.num_workers or the tile size"


def in_words(error: Exception) -> AvomniError:
    """What any error means to the person who runs the command.

    Of one that nobody has foreseen the traceback is kept in a file, which is named.
    """
    if isinstance(error, AvomniError):
        return error
    if isinstance(error, OSError) and error.errno in files.REFUSALS:
        return files.refused(error)
    if isinstance(error, MemoryError):
        return AvomniError("the memory ran out", fix=f"{SHORT_OF_MEMORY}; {files.GO_ON}")
    if isinstance(error, UnicodeEncodeError):
        return AvomniError(
            f"this locale's encoding, {error.encoding}, has no {error.object[error.start]!r}",
            where=repr(error.object),
            fix="export PYTHONUTF8=1, or a locale like LANG=C.UTF-8, and run the command again",
        )
    return AvomniError(
        f"unexpected {type(error).__name__}: {' '.join(str(error).split()) or 'it says no more'}",
        where=_kept(error),
        fix="run the same command again: it goes on from what is whole; if the error comes back, "
        "report it with that traceback",
    )


def _kept(error: Exception) -> str:
    """Where the traceback is kept, or itself where there is no room for it."""
    lines = "".join(traceback.format_exception(error))
    try:
        descriptor, path = tempfile.mkstemp(prefix="avomni-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(lines)
    except OSError:
        return lines
    return f"the traceback is in {path}"
