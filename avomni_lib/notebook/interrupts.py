"""*Interrupt* in a notebook: one sentence that says how to go on, in place of our insides."""

from __future__ import annotations

import sys
from typing import Any

WORDS = "Stopped by hand. What is whole is kept: run this cell again, and it goes on from there."


def speak() -> None:
    """Let this kernel answer an interrupt with `WORDS`; nothing where there is no kernel.

    The error itself stays a KeyboardInterrupt, which papermill and `Run All` stop at.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if hasattr(shell, "kernel"):
        shell.set_custom_exc((KeyboardInterrupt,), _tell)


def _tell(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    traceback: Any,
    tb_offset: int | None = None,
) -> list[str]:
    # As for AvomniError: IPython asks an exception how it wants to be shown.
    error._render_traceback_ = lambda: [WORDS]
    shell.showtraceback((kind, error, traceback))
    return [WORDS]
