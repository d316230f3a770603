"""`python -m avomni_lib`, also installed as `avomni`: prints the output and errors of `cli`."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avomni_lib.errors import AvomniError

STOPPED_CODE = 130
STOPPED = "stopped; run the same command again: it goes on from here"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    is_program = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _open_streams()
    try:
        code = _main(arguments, as_json="--json" in arguments)
        if code == STOPPED_CODE and is_program:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending already
        return code
    except BrokenPipeError:
        pass  # `avomni plan … | head`: the reader has closed the pipe
    except OSError as error:  # stdout or stderr is on a full disk
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
    # Otherwise Python reports an error when it flushes the streams at exit.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 1


def _main(arguments: list[str], as_json: bool) -> int:
    try:
        # Imported here because Ctrl-C may come during the imports.
        import typer

        from avomni_lib import cli
        from avomni_lib.errors import AvomniError
        from avomni_lib.notebook.pages import terminal

        if "_AVOMNI_COMPLETE" in os.environ:  # a shell asks for completions
            cli.app(prog_name="avomni")
        try:
            # With --json stdout holds one object and nothing else: progress goes to stderr.
            with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
                output = cli.call(arguments)
        except typer.Exit as done:
            return done.exit_code
        except typer.TyperException as wrong:
            name = [word for word in arguments[:1] if word in cli.EXAMPLES]
            fix = " ".join(["avomni", *name, "--help"])
            _print_error(AvomniError(" ".join(wrong.format_message().split()), fix=fix), as_json)
            return wrong.exit_code
        if as_json:
            _print_json(output.figures)
        else:
            for shown in output.shown:
                terminal.show(shown)
        return output.code
    except BrokenPipeError:
        raise
    except Exception as error:
        from avomni_lib.notebook.run import faults

        _print_error(faults.in_words(error), as_json)
        return 1
    except KeyboardInterrupt:
        # If it came inside an exec (dataclasses use one), CPython considers it uncaught and would
        # exit by the signal instead of with our code. Another exec resets that flag.
        exec("")
        # At exit asyncio would print a traceback of the interrupted notebook.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        if as_json:
            _print_json({"error": {"what": STOPPED, "where": None, "fix": None}})
        print(STOPPED, file=sys.stderr, flush=True)
        return STOPPED_CODE


def _open_streams() -> None:
    """Replace closed streams by the null device, and make unencodable characters harmless."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # the next opened file would take this number
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_error(error: AvomniError, as_json: bool) -> None:
    from avomni_lib.notebook.pages import terminal

    if as_json:
        _print_json({"error": {"what": error.what, "where": error.where, "fix": error.fix}})
    terminal.write_error(error)


def _print_json(figures: dict) -> None:
    # NaN is not JSON; characters that the stream cannot encode are written as JSON escapes.
    text = json.dumps(figures, default=str)
    plain = json.loads(text, parse_constant=lambda name: None)
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(plain, indent=2, ensure_ascii=not is_utf), flush=True)


if __name__ == "__main__":
    sys.exit(main())
