"""The command line: `python -m avomni_lib run|status|plan params/demo.yaml` (or `avomni`)."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from avomni_lib import __version__

if TYPE_CHECKING:
    from avomni_lib.notebook.commands import Told

# Command -> what it does, and examples of it.
COMMANDS = {
    "run": (
        "run the notebooks that are not done, by papermill",
        """
  python -m avomni_lib run params/demo.yaml                 every stage that is not done
  python -m avomni_lib run params/demo.yaml --from 05_train --set training.num_epochs=4
  python -m avomni_lib run params/demo.yaml --dry-run       what would run, and why
  python -m avomni_lib run params/mi300x.yaml --limit 1     one chunk, to see that all is well
  python -m avomni_lib run params/mi300x.yaml --shard 3/16  a share of 03_etl, for a Slurm array
  python -m avomni_lib run params/mi300x.yaml own.yaml      several files, later ones win""",
    ),
    "status": (
        "say what is done, what is stale and why",
        """
  python -m avomni_lib status params/demo.yaml              a row a stage
  python -m avomni_lib status params/demo.yaml --json       the same for a script""",
    ),
    "plan": (
        "say what a run would take, before anything is done; no GPU, no network",
        """
  python -m avomni_lib plan params/mi300x.yaml              bytes, windows, steps, warnings
  python -m avomni_lib plan params/mi300x.yaml --set run.price_per_hour=2.5""",
    ),
    "doctor": (
        "run what training relies on, on this machine",
        """
  python -m avomni_lib doctor params/mi300x.yaml            does it compute what it must
  python -m avomni_lib doctor                               the machine alone""",
    ),
    "verify": (
        "read a cache and compare it with its hashes and counts",
        """
  python -m avomni_lib verify outputs/demo/cache            needs no params file""",
    ),
    "compare": (
        "put two runs side by side on the windows of both, with paired intervals",
        """
  python -m avomni_lib compare outputs/a outputs/b          every figure, and who is better""",
    ),
    "stop": (
        "let the run's training save a checkpoint and end",
        """
  python -m avomni_lib stop params/mi300x.yaml              `run` goes on from there""",
    ),
    "export": (
        "write base model and adapter as one 16-bit model",
        """
  python -m avomni_lib export params/demo.yaml              into outputs/RUN/merged
  python -m avomni_lib export params/demo.yaml --out outputs/model --dtype float16""",
    ),
}
EXIT_CODES = """exit codes: 0 done, 1 something to mend (the message says what), 2 wrong use,
130 stopped by Ctrl-C"""
EXAMPLES = "examples:" + "".join(examples for _, examples in COMMANDS.values())
COMPLETION = """
completion of commands, options and files, for the shell that is named:
  avomni --print-completion bash > ~/.local/share/bash-completion/completions/avomni"""


STOPPED_CODE = 130
STOPPED = "stopped; run the same command again: it goes on from here"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; returns the exit code."""
    is_program = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = any("--json".startswith(word) for word in arguments if len(word) > 2)
    _settle_streams()
    try:
        code = _main(arguments, as_json)
        if code == STOPPED_CODE and is_program:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        return code
    except BrokenPipeError:
        pass  # `avomni plan … | head`: who reads has seen enough
    except OSError as error:  # stdout or stderr lies on a disk that is full, and can tell nobody
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
    # Python would complain at its exit.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 1


def _main(arguments: Sequence[str], as_json: bool) -> int:
    try:
        # Imported within reach of the words below: Ctrl-C may come while they are.
        from avomni_lib.notebook.pages import terminal

        try:
            options = _parser().parse_args(arguments)
        except _WrongUse as wrong:
            if as_json:
                fix = f"{wrong.parser.prog} --help"
                _print_json({"error": {"what": str(wrong), "where": None, "fix": fix}})
            wrong.parser.print_usage(sys.stderr)
            wrong.parser.exit(2, f"{wrong.parser.prog}: error: {wrong}\n")
        # With --json one object stands on stdout and nothing else: progress goes to stderr.
        aside = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
        with aside:
            told = _do(options)
        if options.json:
            _print_json(told.figures)
        else:
            for place, shown in enumerate(told.shown):
                terminal.show(shown, None if place else told.framed)
        return told.code
    except BrokenPipeError:
        raise
    except Exception as error:
        from avomni_lib.notebook.pages import terminal
        from avomni_lib.notebook.run import faults

        fault = faults.in_words(error)
        if as_json:
            _print_json({"error": {"what": fault.what, "where": fault.where, "fix": fault.fix}})
        terminal.write_error(fault)
        return 1
    except KeyboardInterrupt:
        # Where it came inside an exec, as when a dataclass is made, CPython holds it for uncaught
        # and would end by the signal instead of with our code. Another exec resets that.
        exec("")
        # At exit asyncio would print the traceback of the notebook that was interrupted.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        if as_json:
            _print_json({"error": {"what": STOPPED, "where": None, "fix": None}})
        print(STOPPED, file=sys.stderr, flush=True)
        return STOPPED_CODE


def _do(options: argparse.Namespace) -> Told:
    from avomni_lib import files
    from avomni_lib.errors import AvomniError
    from avomni_lib.notebook import commands

    if other := files.copy_in_sight():
        note = f"this is {files.PROJECT_ROOT}'s copy of AV-Omni, the working folder is {other}'s"
        print(f"note: {note}; python -m avomni_lib takes that one", file=sys.stderr)
    command = getattr(commands, options.command)
    if options.command in ("verify", "compare"):
        return command(options)
    from avomni_lib.params import Params, left_out

    paths = [*options.params, *options.params_files]
    if not paths and options.command != "doctor":
        fix = f"python -m avomni_lib {options.command} params/demo.yaml"
        raise AvomniError("no params file named", fix=fix)
    p = Params.from_files(paths, options.set)
    if paths and (note := left_out(paths)):
        print(f"note: {note}", file=sys.stderr)
    for key, reference, file in p.code_rows():  # before any of it runs
        print(f"note: {key} is code of your own, {reference}: {file}", file=sys.stderr)
    return command(p.limited(options.limit) if options.limit else p, options)


def _settle_streams() -> None:
    """Streams that are closed lead nowhere, and no text ends the command for its letters."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would take the number
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_json(figures: dict) -> None:
    # NaN is no JSON; letters that the stream cannot hold are written as JSON writes them.
    text = json.dumps(figures, default=str)
    plain = json.loads(text, parse_constant=lambda name: None)
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(plain, indent=2, ensure_ascii=not is_utf), flush=True)


class _WrongUse(Exception):
    """What argparse has to say of the arguments."""

    def __init__(self, message: str, parser: argparse.ArgumentParser):
        super().__init__(message)
        self.parser = parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _WrongUse(message, self)


def _parser() -> argparse.ArgumentParser:
    import shtab

    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="avomni",
        description=__doc__,
        epilog="\n".join([EXAMPLES, "", EXIT_CODES, COMPLETION]),
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shtab.add_argument_to(parser, help="print the script that completes commands in this shell")
    added = parser.add_subparsers(dest="command", required=True)
    of = {
        name: added.add_parser(
            name,
            help=words,
            description=f"{words[0].upper()}{words[1:]}.",
            epilog=f"examples:{examples}\n\n{EXIT_CODES}",
            formatter_class=raw,
        )
        for name, (words, examples) in COMMANDS.items()
    }
    for name in ("run", "status", "plan", "doctor", "stop", "export"):
        _add_params(of[name])
    for command in of.values():
        command.add_argument(
            "--json",
            action="store_true",
            help='one object on stdout, progress on stderr; a mistake is {"error": …}',
        )
    _complete(
        of["verify"].add_argument(
            "cache", nargs="+", type=Path, metavar="CACHE", help="outputs/RUN/cache"
        ),
        shtab.DIRECTORY,
    )
    _complete(
        of["compare"].add_argument("runs", nargs=2, type=Path, metavar="RUN", help="outputs/RUN"),
        shtab.DIRECTORY,
    )
    export = of["export"]
    _complete(
        export.add_argument(
            "--out", type=Path, metavar="FOLDER", help="instead of outputs/RUN/merged"
        ),
        shtab.DIRECTORY,
    )
    export.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    run = of["run"]
    run.add_argument("--from", dest="first", metavar="STAGE", help="start here: 03_etl, 03 or etl")
    run.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="these stages alone")
    run.add_argument("--force", action="store_true", help="run them though they are done, and anew")
    run.add_argument(
        "--shard",
        metavar="I/N",
        help="only the I-th of N shares of 03_etl; several may work at a time, and a run without "
        "it finishes",
    )
    run.add_argument("--dry-run", action="store_true", help="say what would run, touch nothing")
    return parser


def _add_params(command: argparse.ArgumentParser) -> None:
    """What names the run."""
    import shtab

    params = command.add_argument(
        "params", nargs="*", metavar="PARAMS.yaml", help="params files; later ones win"
    )
    also = command.add_argument(
        "--params", dest="params_files", nargs="+", default=[], metavar="PARAMS.yaml"
    )
    for argument in (params, also):
        _complete(argument, shtab.FILE)
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one parameter",
    )
    command.add_argument("--limit", type=_count, metavar="N", help="at most so many chunks")


def _complete(argument: argparse.Action, files: dict[str, str]) -> None:
    """What shtab is to offer in an argument's place."""
    argument.complete = files


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of chunks")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
