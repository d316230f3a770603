"""*Interrupt* in a notebook, and what the system refuses: a sentence in place of our insides."""

from __future__ import annotations

import sys
from typing import Any

from avomni_lib import files

WORDS = "Stopped by hand. What is whole is kept: run this cell again, and it goes on from there."


def speak() -> None:
    """Let this kernel answer an interrupt with `WORDS`, and a full or read-only disk in words too.

    The error itself stays what it is, which papermill and `Run All` stop at. Nothing is done where
    there is no kernel.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if hasattr(shell, "kernel"):
        shell.set_custom_exc((KeyboardInterrupt, OSError), _tell)


def _tell(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    traceback: Any,
    tb_offset: int | None = None,
) -> list[str]:
    # As for AvomniError: IPython asks an exception how it wants to be shown.
    if isinstance(error, KeyboardInterrupt):
        error._render_traceback_ = lambda: [WORDS]  # type: ignore[attr-defined]
    elif isinstance(error, OSError) and error.errno in files.REFUSALS:
        shown = files.refused(error)._render_traceback_
        error._render_traceback_ = shown  # type: ignore[attr-defined]
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
    return []
