"""Messages that replace tracebacks on the command line and in notebooks."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError

WORDS = "Stopped by hand. What is whole is kept: run this cell again, and it goes on from there."


def in_words(error: Exception) -> AvomniError:
    """Convert any error to an `AvomniError` with advice.

    The traceback of an unexpected error is written to a file, which the message names.
    """
    if isinstance(error, AvomniError):
        return error
    if isinstance(error, OSError) and error.errno in files.REFUSALS:
        return files.refused(error)
    if isinstance(error, MemoryError):
        smaller = "lower training.batch_size, processing.num_workers or the tile size"
        return AvomniError("the memory ran out", fix=f"{smaller}; {files.GO_ON}")
    if isinstance(error, UnicodeEncodeError):
        return AvomniError(
            f"this locale's encoding, {error.encoding}, has no {error.object[error.start]!r}",
            where=repr(error.object),
            fix="export PYTHONUTF8=1, or a locale like LANG=C.UTF-8, and run the command again",
        )
    where = "".join(traceback.format_exception(error))
    try:
        descriptor, path = tempfile.mkstemp(prefix="avomni-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(where)
        where = f"the traceback is in {path}"
    except OSError:
        pass  # no space for a file: show the traceback
    return AvomniError(
        f"unexpected {type(error).__name__}: {' '.join(str(error).split()) or 'it says no more'}",
        where=where,
        fix="run the same command again: it goes on from what is whole; if the error comes back, "
        "report it with that traceback",
    )


def show_messages() -> None:
    """Make this kernel show messages instead of tracebacks for interrupts and full disks.

    The exceptions themselves are unchanged, so that papermill and `Run All` stop. Without a kernel
    this does nothing.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if hasattr(shell, "kernel"):
        shell.set_custom_exc((KeyboardInterrupt, OSError), _show)


def _show(
    shell: Any, kind: Any, error: Any, traceback: Any, tb_offset: int | None = None
) -> list[str]:
    # IPython calls this method to render an exception, as for AvomniError.
    if isinstance(error, KeyboardInterrupt):
        error._render_traceback_ = lambda: [WORDS]  # type: ignore[attr-defined]
    elif error.errno in files.REFUSALS:
        error._render_traceback_ = files.refused(error)._render_traceback_
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
    return []
