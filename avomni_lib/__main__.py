"""The command line: `python -m avomni_lib run|status|plan params/demo.yaml` (or `avomni`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes

EXAMPLES = """examples:
  python -m avomni_lib doctor params/mi300x.yaml            does this machine compute what it must
  python -m avomni_lib plan params/mi300x.yaml              what it would take; no GPU, no network
  python -m avomni_lib run params/demo.yaml                 every stage that is not done
  python -m avomni_lib run params/demo.yaml --from 05_train --set training.num_epochs=4
  python -m avomni_lib run params/mi300x.yaml --limit 1     one chunk, to see that all is well
  python -m avomni_lib run params/mi300x.yaml --shard 3/16  a share of 03_etl, for a Slurm array
  python -m avomni_lib run --params data.yaml tuning.yaml   several files, later ones win
  python -m avomni_lib status params/demo.yaml              what is done, what is stale and why
  python -m avomni_lib verify outputs/demo/cache            every hash and count of a cache
  python -m avomni_lib stop params/mi300x.yaml              save a checkpoint and end the training
  python -m avomni_lib export params/demo.yaml              the adapter folded into its base, 16 bit

exit codes: 0 done, 1 something to mend (the message says what), 2 wrong use,
130 stopped by Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "verify":
            return _verify(options)
        paths = [*options.params, *options.params_files]
        if not paths and options.command != "doctor":
            raise AvomniError(
                "no params file named", fix="python -m avomni_lib run params/demo.yaml"
            )
        p = Params.from_files(paths, options.set)
        p = p.limited(options.limit) if options.limit else p
        commands = {"run": _run, "status": _status, "plan": _plan, "export": _export}
        commands |= {"stop": _stop, "doctor": _doctor}
        return commands[options.command](p, options)
    except AvomniError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # At exit asyncio would print the traceback of the notebook that was interrupted.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        print("stopped; run the same command again: it goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avomni",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks that are not done, by papermill")
    status = commands.add_parser("status", help="say what is done, what is stale and why")
    plan = commands.add_parser("plan", help="say what a run would take, before anything is done")
    verify = commands.add_parser("verify", help="read a cache and compare it with its hashes")
    verify.add_argument("cache", nargs="+", type=Path, metavar="CACHE", help="outputs/RUN/cache")
    export = commands.add_parser("export", help="write base model and adapter as one 16-bit model")
    export.add_argument("--out", type=Path, metavar="FOLDER", help="instead of outputs/RUN/merged")
    export.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    stop = commands.add_parser("stop", help="let the run's training save a checkpoint and end")
    doctor = commands.add_parser("doctor", help="run what training relies on, on this machine")
    for command in (run, status, plan, export, stop, doctor):
        command.add_argument(
            "params", nargs="*", metavar="PARAMS.yaml", help="params files; later ones win"
        )
        command.add_argument(
            "--params", dest="params_files", nargs="+", default=[], metavar="PARAMS.yaml"
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help="change one parameter",
        )
        command.add_argument("--limit", type=_count, metavar="N", help="at most so many chunks")
    for command in (status, plan, verify, doctor):
        command.add_argument("--json", action="store_true", help="for machines")
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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of chunks")
    return int(text)


def _run(p: Params, options: argparse.Namespace) -> int:
    if options.shard:
        return _share(p, options)
    # papermill and its kin take a second to import; `plan` and `status` do without them.
    from avomni_lib.notebook import pipeline

    stages = pipeline.choose(options.first, options.only)
    started = time.monotonic()
    table = Table("stage", "", "seconds", "what came out", title=f"run {p.run.name}")
    for outcome in pipeline.run(p, stages, force=options.force, dry_run=options.dry_run):
        print(f"{outcome.stage}: {outcome.action} ({outcome.reason})", flush=True)
        table.add_row(
            outcome.stage,
            outcome.action,
            f"{outcome.seconds:.0f}",
            _in_short(outcome.stage, outcome.figures),
        )
    # Wide enough for the figures also where there is no terminal to measure.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    if not options.dry_run:
        lines = [f"executed notebooks: {p.run_dir}/NN_stage/NN_stage.ipynb"]
        if stages[-1].name == "06_evaluate":
            lines.append(f"the score:          {p.run_dir}/06_evaluate/result.json")
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
    return 0


def _share(p: Params, options: argparse.Namespace) -> int:
    """One share of the ETL, without a notebook: other shares may work in the same run folder."""
    from avomni_lib.etl import share
    from avomni_lib.notebook.progress import LineBar

    index, count = share.parse(options.shard)
    figures = share.build_share(p, index, count, progress=LineBar)
    print(f"share {index} of {count}: {json.dumps(figures)}")
    print("when all shares are done: the same command without --shard")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from avomni_lib.etl import memmap
    from avomni_lib.notebook.progress import LineBar

    reports = {str(folder): memmap.verify(folder, progress=LineBar) for folder in options.cache}
    if options.json:
        rows = {folder: dataclasses.asdict(report) for folder, report in reports.items()}
        print(json.dumps(rows, indent=2))
        return 0
    for folder, report in reports.items():
        print(f"{folder}: {report}")
    return 0


def _status(p: Params, options: argparse.Namespace) -> int:
    from avomni_lib.notebook import runs

    states = runs.states(p)
    if options.json:
        rows = [{"stage": s.stage.name, "done": s.done, "reason": s.reason} for s in states]
        print(json.dumps({"run": str(p.run_dir), "stages": rows}, indent=2))
        return 0
    table = Table("stage", "purpose", "state", title=f"run {p.run.name} in {p.run_dir}")
    for state in states:
        table.add_row(state.stage.name, state.stage.purpose, state.reason)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0


def _plan(p: Params, options: argparse.Namespace) -> int:
    from avomni_lib.training import estimate

    plan = estimate.plan_run(p)
    print(
        json.dumps({"title": plan.title, **plan.figures, "warnings": plan.warnings}, indent=2)
        if options.json
        else plan
    )
    return 0


def _doctor(p: Params, options: argparse.Namespace) -> int:
    """Without a params file it looks at the machine alone."""
    from avomni_lib.training import doctor

    is_named = options.params or options.params_files or options.set
    report = doctor.examine(p if is_named else None)
    rows = [dataclasses.asdict(finding) for finding in report.findings]
    told = {"headline": report.headline, "findings": rows}
    print(json.dumps(told, indent=2, ensure_ascii=False) if options.json else report)
    return 1 if report.wrong else 0


def _stop(p: Params, options: argparse.Namespace) -> int:
    from avomni_lib.training import job

    stopped = job.stop(p)
    print(f"stopped and saved; {job.GO_ON}" if stopped else "no training works in this run folder")
    return 0


def _export(p: Params, options: argparse.Namespace) -> int:
    """The merged model, with the figures of the stages that still fit the adapter on its card."""
    from avomni_lib.notebook import runs
    from avomni_lib.notebook.progress import LineBar
    from avomni_lib.training import adapter, merging, usage

    states = [runs.state(p, name) for name in ("05_train", "06_evaluate")]
    figures, score = (state.result["figures"] if state.done else None for state in states)
    folder = merging.merge(p, options.out, LineBar, options.dtype, figures, score)
    record = adapter.read_record(folder)
    if record["notice"] or p.dataset.source != "world":
        print(adapter.CONFIDENTIAL)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"merged model: {folder} ({gigabytes(size)}, {options.dtype})")
    if score:
        print(f"the adapter's score: {_score(score)}")
    print("to serve or convert it (not run here; README.md in the folder says more):")
    for lines in usage.commands(record, "merged", str(folder)).values():
        print(*(f"  {line}" for line in lines), sep="\n")
    return 0


def _in_short(stage: str, figures: dict) -> str:
    """What came out of a stage, on one line."""
    if not figures:
        return ""
    return HEADLINES[stage](figures)


def _score(figures: dict) -> str:
    mae, valid = figures["speed_mae_mps"], figures["valid_share"]
    return (
        f"speed error {mae['adapted']:.2f} m/s; base {mae['base']:.2f}, blind {mae['blind']:.2f}, "
        f"best constant {min(mae['mean'], mae['median']):.2f}; {valid:.0%} of answers parse "
        f"({figures['num_windows']} windows, {figures['num_clips']} clips)"
    )


HEADLINES = {
    "01_audit": lambda f: f"{f['num_clips']} clips in {f['num_files']} files, {_states(f)}",
    "02_download": lambda f: (
        f"{gigabytes(f['bytes'])}, {gigabytes(f['bytes_fetched'])} fetched{_by_03(f)}"
    ),
    "03_etl": lambda f: (
        f"{f['num_clips']} clips, {f['num_damaged']} left out, {f['num_windows']} windows, "
        f"{gigabytes(f['cache_bytes'])}"
    ),
    "04_tiles": lambda f: f"{f['vision_tokens']} vision tokens, {f['tokens_per_sample']} in all",
    "05_train": lambda f: f["headline"],
    "06_evaluate": _score,
}


def _by_03(figures: dict) -> str:
    num_bytes = figures.get("bytes_to_fetch", 0)
    return f", {gigabytes(num_bytes)} to be fetched by 03" if num_bytes else ""


def _states(figures: dict) -> str:
    words = {"missing": "not on the disk yet"}
    states = {state: n for state, n in figures["clips_by_state"].items() if n}
    return ", ".join(f"{n} {words.get(state, state)}" for state, n in states.items())


if __name__ == "__main__":
    sys.exit(main())
