"""The command line: `python -m avomni_lib run|status|plan params/demo.yaml` (or `avomni`)."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import shtab

from avomni_lib import __version__
from avomni_lib.errors import AvomniError
from avomni_lib.notebook import commands, terminal
from avomni_lib.params import Params, left_out

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; returns the exit code."""
    try:
        return _main(arguments)
    except BrokenPipeError:
        # `avomni plan … | head`: who reads has seen enough. Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
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
    except AvomniError as error:
        if options.json:
            what = {"what": error.what, "where": error.where, "fix": error.fix}
            _print_json({"error": what})
        terminal.write_error(error)
        return 1
    except KeyboardInterrupt:
        # At exit asyncio would print the traceback of the notebook that was interrupted.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        words = "stopped; run the same command again: it goes on from here"
        if options.json:
            _print_json({"error": {"what": words, "where": None, "fix": None}})
        print(words, file=sys.stderr)
        return 130


def _do(options: argparse.Namespace) -> commands.Told:
    command = getattr(commands, options.command)
    if options.command in ("verify", "compare"):
        return command(options)
    paths = [*options.params, *options.params_files]
    if not paths and options.command != "doctor":
        fix = f"python -m avomni_lib {options.command} params/demo.yaml"
        raise AvomniError("no params file named", fix=fix)
    p = Params.from_files(paths, options.set)
    if paths and (note := left_out(paths)):
        print(f"note: {note}", file=sys.stderr)
    return command(p.limited(options.limit) if options.limit else p, options)


def _print_json(figures: dict) -> None:
    print(json.dumps(figures, indent=2, ensure_ascii=False, default=str), flush=True)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
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
