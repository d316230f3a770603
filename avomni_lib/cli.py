"""The commands of `avomni`; each returns a `CommandOutput`, which `__main__` prints."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.main

from avomni_lib import __version__
from avomni_lib.cli_examples import EXAMPLES, EXIT_CODES
from avomni_lib.notebook.pages import terminal

if TYPE_CHECKING:
    from avomni_lib.params import Params

# Options that take several values at once: `--only 01 02`.
TAKE_SEVERAL = ("--only", "--params")

AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help='one object on stdout, progress on stderr; a mistake is {"error": …}'
    ),
]
BaseOnly = Annotated[bool, typer.Option("--base", help="the base model, without adapter")]
AdapterPlace = Annotated[
    str | None,
    typer.Option("--adapter", metavar="FOLDER", help="another one, or owner/name@commit"),
]


def _shared(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PARAMS.yaml", help="params files; later ones win", show_default=False
        ),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Option("--params", metavar="PARAMS.yaml", help="more of them")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change one parameter"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="at most this many chunks")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The arguments shared by all commands that work on a run."""


@dataclass(frozen=True)
class CommandOutput:
    """Output of a command: plain values for `--json`; tables and lines for the terminal."""

    figures: dict[str, Any]
    shown: tuple[Any, ...]
    code: int = 0


def _verbatim(text: str) -> str:
    """Help text that keeps its line breaks."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.split("\n\n"))


app = typer.Typer(
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    epilog=_verbatim(f"examples:{''.join(EXAMPLES.values())}\n\n{EXIT_CODES}"),
)


def _command(function: Callable[..., CommandOutput]) -> Callable[..., CommandOutput]:
    """Register a command whose help ends with its examples and the exit codes."""
    epilog = _verbatim(f"examples:{EXAMPLES[function.__name__]}\n\n{EXIT_CODES}")
    return app.command(epilog=epilog)(function)


def _run_command(function: Callable[..., CommandOutput]) -> Callable[..., CommandOutput]:
    """Register a command on a run: the options of `_shared` make its first argument, `Params`."""

    def command(paths: Any, more: Any, changes: Any, limit: Any, as_json: Any, **rest: Any) -> Any:
        named = [*(paths or ()), *(more or ())]
        return function(_params(function.__name__, named, changes or [], limit), **rest)

    shared, rest = (inspect.signature(f, eval_str=True).parameters for f in (_shared, function))
    parameters = [*shared.values(), *list(rest.values())[1:]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return _command(command)


def call(arguments: list[str]) -> CommandOutput:
    """Run the command that the arguments name.

    Raises:
        typer.TyperException: invalid arguments.
        typer.Exit: nothing is left to do, as after `--help`.
    """
    group = typer.main.get_command(app)
    with group.make_context("avomni", repeat_options(arguments)) as context:
        return group.invoke(context)


def repeat_options(arguments: list[str]) -> list[str]:
    """Expand `--only 01 02` to `--only 01 --only 02`, which typer reads."""
    repeated: list[str] = []
    option = None
    for word in arguments:
        if word.startswith("-"):
            option = word if word in TAKE_SEVERAL else None
        elif option and repeated[-1] != option:
            repeated.append(option)
        repeated.append(word)
    return repeated


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"avomni {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The command line: `python -m avomni_lib run|status|plan params/demo.yaml` (or `avomni`)."""
    from avomni_lib import files

    if other := files.copy_in_sight():
        note = f"this is {files.PROJECT_ROOT}'s copy of AV-Omni, the working folder is {other}'s"
        print(f"note: {note}; python -m avomni_lib takes that one", file=sys.stderr)


def _params(command: str, named: list[str], changes: list[str], limit: int | None) -> Params | None:
    """The run that the arguments name; None for `doctor` without a params file."""
    from avomni_lib.errors import AvomniError
    from avomni_lib.params import Params, left_out

    if not named and command != "doctor":
        fix = f"python -m avomni_lib {command} params/demo.yaml"
        raise AvomniError("no params file named", fix=fix)
    p = Params.from_files(named, changes)
    if named and (note := left_out(named)):
        print(f"note: {note}", file=sys.stderr)
    for key, reference, file in p.code_rows():  # before any of it runs
        print(f"note: {key} is code of your own, {reference}: {file}", file=sys.stderr)
    if not named and not changes:
        return None
    return p.limited(limit) if limit else p


@_run_command
def run(
    p: Any,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="start here: 03_etl, 03 or etl")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="STAGE", help="these stages alone: 01 02")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="run stages from scratch even if they are done")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="only the I-th of N shares of 03_etl; several may work at a time, and a run "
            "without it finishes",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would run, change nothing")
    ] = False,
) -> CommandOutput:
    """Run the notebooks that are not done, with papermill."""
    if shard:
        return _run_share(p, shard)
    # Importing papermill takes a second; `plan` and `status` do without it.
    from avomni_lib.notebook.run import pipeline
    from avomni_lib.notebook.run.stages import in_short

    stages = pipeline.choose(p, first, only or [])
    started, rows, cells = time.monotonic(), [], []
    for outcome in pipeline.run(p, stages, force=force, dry_run=dry_run):
        # Goes to stderr with --json, as do the stages' own messages.
        print(f"{outcome.stage}: {outcome.action} ({outcome.reason})", flush=True)
        rows.append(dataclasses.asdict(outcome))
        short = in_short(outcome.stage, outcome.figures)
        cells.append((outcome.stage, outcome.action, f"{outcome.seconds:.0f}", short))
    seconds = round(time.monotonic() - started, 1)
    lines = [f"{seconds:.0f} s in all"]
    if not dry_run:
        lines.append(f"executed notebooks: {p.run_dir}/NN_stage/NN_stage.ipynb")
        if any(stage.name == "06_evaluate" for stage in stages):
            lines.append(f"the score:          {p.run_dir}/06_evaluate/result.json")
    figures = {"run": str(p.run_dir), "dry_run": dry_run, "seconds": seconds, "stages": rows}
    table = terminal.Rows(f"run {p.run.name}", ("stage", "", "seconds", "what came out"), cells)
    return CommandOutput(figures, (table, *lines))


def _run_share(p: Params, shard: str) -> CommandOutput:
    """Build one share of the ETL, without a notebook: several may work in one run folder."""
    from avomni_lib.etl.run import slurm
    from avomni_lib.notebook.progress import LineBar

    index, count = slurm.parse(shard)
    figures = slurm.build_share(p, index, count, progress=LineBar)
    lines = (
        f"share {index} of {count}: {json.dumps(figures)}",
        "when all shares are done: the same command without --shard",
    )
    return CommandOutput({"run": str(p.run_dir), **figures}, lines)


@_run_command
def status(p: Any) -> CommandOutput:
    """Show what is done, what is stale and why."""
    from avomni_lib.notebook.run import runs

    states = runs.states(p)
    rows = [{"stage": s.stage.name, "done": s.done, "reason": s.reason} for s in states]
    lines = [(s.stage.name, s.stage.purpose, s.reason) for s in states]
    table = terminal.Rows(f"run {p.run.name} in {p.run_dir}", ("stage", "purpose", "state"), lines)
    return CommandOutput({"run": str(p.run_dir), "stages": rows}, (table,))


@_run_command
def plan(p: Any) -> CommandOutput:
    """Estimate what a run would take before anything is done; needs no GPU and no network."""
    from avomni_lib.training.forecast import estimate

    planned = estimate.plan_run(p)
    figures = {"title": planned.title, **planned.figures, "warnings": planned.warnings}
    notes = [f"! {warning}" for warning in planned.warnings]
    table = terminal.Rows(planned.title, ("", "", ""), planned.rows, notes, str(planned))
    return CommandOutput(figures, (table,))


@_run_command
def doctor(p: Any) -> CommandOutput:
    """Check on this machine what training relies on."""
    from avomni_lib.training.doctor import doctor

    report = doctor.examine(p)
    rows = [dataclasses.asdict(finding) for finding in report.findings]
    figures = {"headline": report.headline, "findings": rows}
    cells = [(finding.name, finding.state, finding.text) for finding in report.findings]
    table = terminal.Rows("doctor", ("", "", ""), cells, [report.headline])
    return CommandOutput(figures, (table,), code=1 if report.wrong else 0)


@_command
def verify(
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE", help="outputs/RUN/cache")],
    as_json: AsJson = False,
) -> CommandOutput:
    """Read a cache and compare it with its hashes and counts."""
    from avomni_lib.etl.cache import memmap
    from avomni_lib.notebook.progress import LineBar

    reports = {str(folder): memmap.verify(folder, progress=LineBar) for folder in caches}
    figures = {folder: dataclasses.asdict(report) for folder, report in reports.items()}
    lines = [f"{folder}: {report}" for folder, report in reports.items()]
    return CommandOutput(figures, tuple(lines))


@_command
def compare(
    runs: Annotated[tuple[Path, Path], typer.Argument(metavar="RUN RUN", help="outputs/RUN")],
    as_json: AsJson = False,
) -> CommandOutput:
    """Put two runs side by side on the windows of both, with paired intervals."""
    from avomni_lib.evaluation import comparison

    compared = comparison.compare(*runs)
    title, notes = "\n".join(compared.title()), compared.figures["warnings"]
    table = terminal.Rows(title, comparison.HEAD, compared.lines(), notes, str(compared))
    return CommandOutput(compared.figures, (table,))


@_run_command
def stop(p: Any) -> CommandOutput:
    """Let the run's training save a checkpoint and end."""
    from avomni_lib.training.fit import job

    at_work, about = job.at_work(p) or (p, {})
    is_stopped = job.stop(at_work)
    message = f"stopped and saved; {job.GO_ON}"
    if not is_stopped:
        message = "no training works in this run folder"
    elif about.get("waits"):
        message = "stopped before the training began"
    return CommandOutput({"run": str(p.run_dir), "stopped": bool(is_stopped)}, (message,))


@_run_command
def export(
    p: Any,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="instead of outputs/RUN/merged")
    ] = None,
    dtype: Annotated[Literal["bfloat16", "float16"], typer.Option("--dtype")] = "bfloat16",
    lerobot: Annotated[
        bool, typer.Option("--lerobot", help="the run's clips instead, as a LeRobot v3 data set")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="OWNER/NAME", help="the adapter and its card to the hub"),
    ] = None,
    share_confidential: Annotated[
        bool,
        typer.Option("--share-confidential", help="--push even if trained on real clips"),
    ] = False,
) -> CommandOutput:
    """Write base and adapter as one 16-bit model, or clips for LeRobot; or push the adapter."""
    from avomni_lib.notebook.progress import LineBar

    if lerobot:
        from avomni_lib.training.export.lerobot import export as export_clips

        exported = export_clips(p, out, LineBar)
        return CommandOutput(exported.figures, (str(exported),))
    from avomni_lib.notebook.run import runs
    from avomni_lib.notebook.run.stages import in_short
    from avomni_lib.plan import gigabytes
    from avomni_lib.training.export import card, merge
    from avomni_lib.training.model import adapter

    if push is not None:
        from avomni_lib.training.export.push import push as push_to

        trained = runs.state(p, "05_train", look=False)
        learned = trained.result["figures"] if trained.done else None
        pushed = push_to(p, push, learned, share_confidential=share_confidential)
        return CommandOutput(pushed, (f"pushed to {pushed['url']}, commit {pushed['commit']}",))
    # The card shows the figures of stages that still match the adapter; they stay valid if the
    # cache has been removed since.
    states = [runs.state(p, name, look=False) for name in ("05_train", "06_evaluate")]
    made, score = (state.result["figures"] if state.done else None for state in states)
    folder = merge.merge(p, out, LineBar, dtype, made, score)
    record = adapter.read_record(folder)
    notice = record["notice"] or p.notice
    size = sum(path.stat().st_size for path in folder.iterdir())
    commands = card.commands(record, "merged", str(folder))
    figures = {"folder": str(folder), "bytes": size, "dtype": dtype}
    figures |= {"notice": notice, "commands": commands}
    lines = [notice] if notice else []
    lines.append(f"merged model: {folder} ({gigabytes(size)}, {dtype})")
    if score:
        figures["score"] = score
        lines.append(f"the adapter's score: {in_short('06_evaluate', score)}")
    lines.append("to serve or convert it (not run here; README.md in the folder says more):")
    lines += [f"  {line}" for shell_lines in commands.values() for line in shell_lines]
    return CommandOutput(figures, ("\n".join(lines),))


@_run_command
def predict(
    p: Any,
    window: Annotated[
        int | None, typer.Option("--window", metavar="N", help="a window of evaluation.split")
    ] = None,
    clip: Annotated[str | None, typer.Option("--clip", metavar="CLIP_ID")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="FOLDER", help="one mp4 per camera, named after it"),
    ] = None,
    at: Annotated[
        float | None, typer.Option("--at", metavar="SECONDS", help="when the window ends")
    ] = None,
    base: BaseOnly = False,
    adapter: AdapterPlace = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PICTURE.png", help="draw the answer")
    ] = None,
) -> CommandOutput:
    """Ask the trained model about one window, a clip or a folder of videos."""
    from avomni_lib import files
    from avomni_lib.live import answerer
    from avomni_lib.notebook.plots import live as plots

    asked = answerer.chosen(p, window, clip, folder, at)
    made = answerer.predict(asked, answerer.Answerer(p, adapter, base))
    lines = [f"{made.model} model, {asked.name}, {made.answer.seconds:.1f} s:", made.answer.text]
    if asked.truth is not None:
        off = "nothing could be read" if made.off is None else f"{made.figure} {made.off:g}"
        lines += ["", f"ground truth ({off}):", asked.truth]
    if out is not None:
        files.write_bytes(out, plots.picture(p, made).png())
        lines += ["", f"drawn: {out}"]
    return CommandOutput(made.values(), ("\n".join(lines),))


@_run_command
def live(
    p: Any,
    base: BaseOnly = False,
    adapter: AdapterPlace = None,
) -> CommandOutput:
    """Answer live cameras, and show them on a page of this machine."""
    from avomni_lib.live import answering

    with answering.opened(p, adapter, base) as (session, page):
        print(f"page: {page.url}  record: {session.record.folder}", flush=True)
        session.run(p.live.seconds)
    figures = {"record": str(session.record.folder), **session.counts()}
    figures["latency_s"] = answering.latency(session.answers)
    return CommandOutput(figures, (answering.summary(figures),))


@_run_command
def serve(
    p: Any,
    alpasim: Annotated[
        int,
        typer.Option("--alpasim", min=0, max=65535, metavar="PORT", help="0 takes a free one"),
    ] = ...,  # required
    base: BaseOnly = False,
    adapter: AdapterPlace = None,
    host: Annotated[
        str, typer.Option("--host", help="0.0.0.0 where the simulator is another machine")
    ] = "127.0.0.1",
    warm_up: Annotated[
        float,
        typer.Option(
            "--warm-up", min=0, metavar="SECONDS", help="the simulator's force_gt_duration_us"
        ),
    ] = 1.7,
    frame_hz: Annotated[
        float,
        typer.Option("--frame-hz", min=0.1, help="frames per second of its cameras"),
    ] = 10.0,
) -> CommandOutput:
    """Serve the trained model as a driver of NVIDIA's simulator AlpaSim, over gRPC."""
    from avomni_lib.driving import policies
    from avomni_lib.driving.alpasim import refusals, service
    from avomni_lib.live import answering

    policies.check(p)
    runtime = refusals.Runtime(warm_up, frame_hz)
    for reason in refusals.rate_reasons(p, runtime):
        print(f"note: every session will be refused: {reason}", file=sys.stderr)
    driver = service.Driver(p, answering.asker(p, adapter, base), runtime)

    def announce(port: int) -> None:
        print(f"cameras: {service.camera_names(p)}")
        print(f"note: {service.delay_note()}")
        print(f"driver: {host}:{port}, until Ctrl-C", flush=True)

    service.serve(driver, alpasim, host, announce)
    figures = {"sessions": driver.num_sessions, "drives": len(driver.seconds)}
    figures |= {"num_unread": driver.num_unread, "latency_s": driver.latency()}
    return CommandOutput(figures, (service.summary(driver),))


@_run_command
def drive(p: Any) -> CommandOutput:
    """Let policies drive the rendered world, the trained model among them."""
    from avomni_lib import files
    from avomni_lib.driving import drive as driving
    from avomni_lib.notebook.progress import LineBar
    from avomni_lib.notebook.run import runs

    folder = runs.stage_dir(p, "08_drive")
    with files.hold(folder / ".lock", "another process drives in this run folder"):
        driven = driving.drive(p, folder, LineBar)
    table = driven.scored.table()
    notes = [claim["text"] for claim in driven.figures["claims"]]
    notes += [f"{name}: {note}" for name, note in driven.notes.items()]
    rows = table.astype(str).to_numpy().tolist()
    shown = terminal.Rows(f"run {p.run.name}", list(table), rows, notes, str(driven.scored))
    figures = {"run": str(p.run_dir), "episodes": str(folder / driving.EPISODES)}
    return CommandOutput({**figures, **driven.figures}, (shown,))
