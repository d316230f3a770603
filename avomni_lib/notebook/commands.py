"""What each command of the command line does and finds; parsing and printing are `__main__`'s."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avomni_lib.notebook.pages import terminal
from avomni_lib.notebook.pages.terminal import Rows
from avomni_lib.notebook.run.headlines import in_short
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes


@dataclass(frozen=True)
class Told:
    """What a command found.

    Attributes:
        figures: As plain values, for `--json`.
        shown: For people: each a table, or something that prints itself.
        framed: Makes a table of the first of `shown`, for a terminal.
        code: The exit code.
    """

    figures: dict[str, Any]
    shown: tuple[Any, ...]
    framed: Callable[[Any], Any] | None = None
    code: int = 0


def run(p: Params, options: argparse.Namespace) -> Told:
    if options.shard:
        return _share(p, options)
    # papermill and its kin take a second to import; `plan` and `status` do without them.
    from avomni_lib.notebook.run import pipeline

    stages = pipeline.choose(options.first, options.only)
    started, rows = time.monotonic(), []
    table = Rows(f"run {p.run.name}", ("stage", "", "seconds", "what came out"))
    for outcome in pipeline.run(p, stages, force=options.force, dry_run=options.dry_run):
        # To stderr with --json, as all that stages say while they work.
        print(f"{outcome.stage}: {outcome.action} ({outcome.reason})", flush=True)
        rows.append(dataclasses.asdict(outcome))
        short = in_short(outcome.stage, outcome.figures)
        table.rows.append((outcome.stage, outcome.action, f"{outcome.seconds:.0f}", short))
    seconds = round(time.monotonic() - started, 1)
    lines = [f"{seconds:.0f} s in all"]
    if not options.dry_run:
        lines.append(f"executed notebooks: {p.run_dir}/NN_stage/NN_stage.ipynb")
        if stages[-1].name == "06_evaluate":
            lines.append(f"the score:          {p.run_dir}/06_evaluate/result.json")
    figures = {"run": str(p.run_dir), "dry_run": options.dry_run, "seconds": seconds}
    return Told(figures | {"stages": rows}, (table, *lines), terminal.rows)


def _share(p: Params, options: argparse.Namespace) -> Told:
    """One share of the ETL, without a notebook: other shares may work in the same run folder."""
    from avomni_lib.etl.run import slurm
    from avomni_lib.notebook.progress import LineBar

    index, count = slurm.parse(options.shard)
    figures = slurm.build_share(p, index, count, progress=LineBar)
    lines = (
        f"share {index} of {count}: {json.dumps(figures)}",
        "when all shares are done: the same command without --shard",
    )
    return Told({"run": str(p.run_dir), **figures}, lines)


def verify(options: argparse.Namespace) -> Told:
    from avomni_lib.etl.cache import memmap
    from avomni_lib.notebook.progress import LineBar

    reports = {str(folder): memmap.verify(folder, progress=LineBar) for folder in options.cache}
    figures = {folder: dataclasses.asdict(report) for folder, report in reports.items()}
    lines = [f"{folder}: {report}" for folder, report in reports.items()]
    return Told(figures, ("\n".join(lines),), lambda _: terminal.verified(reports))


def status(p: Params, options: argparse.Namespace) -> Told:
    from avomni_lib.notebook.run import runs

    states = runs.states(p)
    rows = [{"stage": s.stage.name, "done": s.done, "reason": s.reason} for s in states]
    table = Rows(f"run {p.run.name} in {p.run_dir}", ("stage", "purpose", "state"))
    table.rows.extend((s.stage.name, s.stage.purpose, s.reason) for s in states)
    return Told({"run": str(p.run_dir), "stages": rows}, (table,), terminal.rows)


def plan(p: Params, options: argparse.Namespace) -> Told:
    from avomni_lib.training.forecast import estimate

    told = estimate.plan_run(p)
    figures = {"title": told.title, **told.figures, "warnings": told.warnings}
    return Told(figures, (told,), terminal.plan)


def doctor(p: Params, options: argparse.Namespace) -> Told:
    """Without a params file it looks at the machine alone."""
    from avomni_lib.training.doctor import doctor

    is_named = options.params or options.params_files or options.set
    report = doctor.examine(p if is_named else None)
    rows = [dataclasses.asdict(finding) for finding in report.findings]
    figures = {"headline": report.headline, "findings": rows}
    return Told(figures, (report,), terminal.report, code=1 if report.wrong else 0)


def stop(p: Params, options: argparse.Namespace) -> Told:
    from avomni_lib.training.fit import job

    at_work = job.at_work(p)
    is_stopped = job.stop(at_work[0] if at_work else p)
    words = f"stopped and saved; {job.GO_ON}"
    words = words if is_stopped else "no training works in this run folder"
    return Told({"run": str(p.run_dir), "stopped": bool(is_stopped)}, (words,))


def compare(options: argparse.Namespace) -> Told:
    from avomni_lib.evaluation import comparison

    told = comparison.compare(*options.runs)
    return Told(told.figures, (told,), terminal.compared)


def export(p: Params, options: argparse.Namespace) -> Told:
    """The merged model, with the figures of the stages that still fit the adapter on its card."""
    from avomni_lib.notebook.progress import LineBar
    from avomni_lib.notebook.run import runs
    from avomni_lib.training.export import card, merge
    from avomni_lib.training.model import adapter

    # A cache that has been removed since makes neither of them wrong.
    states = [runs.state(p, name, look=False) for name in ("05_train", "06_evaluate")]
    made, score = (state.result["figures"] if state.done else None for state in states)
    folder = merge.merge(p, options.out, LineBar, options.dtype, made, score)
    record = adapter.read_record(folder)
    is_confidential = bool(record["notice"]) or not p.is_ours_to_show
    size = sum(path.stat().st_size for path in folder.iterdir())
    commands = card.commands(record, "merged", str(folder))
    figures = {"folder": str(folder), "bytes": size, "dtype": options.dtype}
    figures |= {"notice": adapter.CONFIDENTIAL if is_confidential else None, "commands": commands}
    lines = [adapter.CONFIDENTIAL] * is_confidential
    lines.append(f"merged model: {folder} ({gigabytes(size)}, {options.dtype})")
    if score:
        figures["score"] = score
        lines.append(f"the adapter's score: {in_short('06_evaluate', score)}")
    lines.append("to serve or convert it (not run here; README.md in the folder says more):")
    lines += [f"  {line}" for of in commands.values() for line in of]
    return Told(figures, ("\n".join(lines),))
