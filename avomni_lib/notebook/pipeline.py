"""The chain: the same notebooks that people open, run headless by papermill, one YAML a run."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets import Unicode
from traitlets.config import Config

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.notebook import progress, runs
from avomni_lib.params import Params

log = logging.getLogger(__name__)
# nbclient cannot tell a kernel that was stopped from one that was killed: `_execute` can, and says.
logging.getLogger("papermill").addFilter(lambda record: "Kernel died" not in record.getMessage())

LOCK, BUSY = ".lock", "another `avomni run` works in this run folder"
KERNEL_LOG = "kernel.log"
KERNEL_LOST = "the kernel was killed, usually because memory ran out"


class LoggedKernel(AsyncKernelManager):
    """A kernel whose own log goes to a file, with that of its worker processes.

    Interrupted, they print tracebacks of their insides between two messages; what a notebook shows
    does not come this way.
    """

    log_path = Unicode(config=True)

    async def start_kernel(self, **options: Any) -> None:
        with open(self.log_path, "wb") as log:
            await super().start_kernel(stderr=log, **options)


@dataclass(frozen=True)
class Outcome:
    """What became of one stage: `skipped`, `ran` or `would run`, and why."""

    stage: str
    action: str
    reason: str
    seconds: float
    figures: dict[str, Any]


def choose(first: str | None = None, only: Sequence[str] = ()) -> list[runs.Stage]:
    """The stages asked for, in the order of the chain; `03` and `etl` name one too.

    Raises:
        AvomniError: a name fits no stage, or several.
    """
    if only:
        wanted = {_find(name).name for name in only}
        return [stage for stage in runs.STAGES if stage.name in wanted]
    start = runs.STAGES.index(_find(first)) if first else 0
    return list(runs.STAGES[start:])


def run(
    p: Params,
    stages: Sequence[runs.Stage] = runs.STAGES,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[Outcome]:
    """Run what is not done, stage by stage; yields an outcome after each.

    Args:
        stages: In the order of the chain.
        force: Run them though they are done, and from the start.
        dry_run: Say what would run, touch nothing.

    Raises:
        AvomniError: a notebook failed; what it said, and where it is kept.
    """
    if dry_run:
        yield from _would_run(p, stages, force)
        return
    # Two chains in one run folder would write over each other.
    ran: set[str] = set()
    with files.hold(p.run_dir / LOCK, BUSY):
        for stage in stages:
            state = runs.state(p, stage.name)
            if state.done and not force:
                yield Outcome(stage.name, "skipped", state.reason, 0.0, state.result["figures"])
                continue
            if force:
                runs.forget(p, stage)
            else:
                _refuse_stale(p, stage, ran)
                runs.drop_damaged(p, stage)
            started = time.monotonic()
            _execute(p, stage)
            ran.add(stage.name)
            result = runs.read_result(p, stage.name)
            if result is None:
                raise AvomniError(
                    "the notebook ended and left no result.json: its last cell did not run",
                    where=str(executed_path(p, stage)),
                    fix="open it, look at the last cell that has an output, run it again",
                )
            seconds = time.monotonic() - started
            yield Outcome(stage.name, "ran", state.reason, seconds, result["figures"])


def _refuse_stale(p: Params, stage: runs.Stage, ran: Collection[str]) -> None:
    """What a stage would make from a stale one would be taken for the parameters' own.

    Args:
        ran: Stages that this command runs before it.

    Raises:
        AvomniError: a stage that it needs is not done, and why.
    """
    for need in stage.needs:
        before = runs.state(p, need)
        if need not in ran and not before.done and not before.makes_the_same:
            first = before.cause[0] if before.cause else need
            forced = (
                ""
                if before.result is None
                else (f"; or --only {stage.name} --force, to take what is there all the same")
            )
            raise AvomniError(
                f"{stage.name} needs what {need} makes, and {need} is not done: {before.reason}",
                where=str(runs.stage_dir(p, need)),
                fix=f"python -m avomni_lib run PARAMS.yaml --from {first}{forced}",
            )


def executed_path(p: Params, stage: runs.Stage) -> Path:
    return runs.stage_dir(p, stage.name) / f"{stage.name}.ipynb"


def _find(name: str) -> runs.Stage:
    fitting = [stage for stage in runs.STAGES if name in (stage.name, *stage.name.split("_"))]
    if len(fitting) != 1:
        names = ", ".join(stage.name for stage in runs.STAGES)
        raise AvomniError(f"no stage is called {name!r}", fix=f"the stages are {names}")
    return fitting[0]


def _would_run(p: Params, stages: Sequence[runs.Stage], force: bool) -> Iterator[Outcome]:
    would: set[str] = set()  # run
    rerun: set[str] = set()  # and make something else
    for stage in stages:
        state = runs.state(p, stage.name)
        before = [need for need in stage.needs if need in rerun]
        if state.done and not force and not before:
            yield Outcome(stage.name, "would skip", state.reason, 0.0, state.result["figures"])
            continue
        if not force:
            _refuse_stale(p, stage, would)
        would.add(stage.name)
        if force or before or not state.makes_the_same:
            rerun.add(stage.name)
        reason = (
            state.reason if not state.done else "forced" if force else f"{before[0]} runs before it"
        )
        yield Outcome(stage.name, "would run", reason, 0.0, {})


def _execute(p: Params, stage: runs.Stage) -> None:
    output = executed_path(p, stage)
    output.parent.mkdir(parents=True, exist_ok=True)
    (output.parent / runs.RESULT).unlink(missing_ok=True)
    os.environ[progress.HEADLESS_VARIABLE] = "1"
    # ipykernel 7.3 and later warn on every start unless the connection to the kernel is encrypted.
    options = {"transport_encryption": "required", "log_path": str(output.parent / KERNEL_LOG)}
    config = Config({"LoggedKernel": options})
    try:
        papermill.execute_notebook(
            str(stage.notebook),
            str(output),
            parameters=p.values(),
            kernel_name="python3",
            cwd=str(stage.notebook.parent),
            progress_bar=False,
            stdout_file=sys.stdout,
            config=config,
            kernel_manager_class=LoggedKernel,
        )
    except PapermillExecutionError as error:
        raise _failed(stage, output, error) from None
    except DeadKernelError:
        if "KeyboardInterrupt" in (output.parent / KERNEL_LOG).read_text(errors="replace"):
            raise KeyboardInterrupt from None  # it came before the kernel could take it
        memory = psutil.virtual_memory()
        raise AvomniError(
            f"{KERNEL_LOST} ({memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free now)",
            where=f"{stage.name}, {output} (its cells say `completed`: do not believe them); "
            f"the kernel's own words are in {KERNEL_LOG} beside it",
            fix="lower training.batch_size or the tile size if it was memory; "
            "run the same command again: it goes on from what is whole",
        ) from None
    except CellTimeoutError as error:
        raise AvomniError(f"a cell took too long: {error}", where=str(output)) from None
    except NoSuchKernel:
        raise AvomniError(
            "no kernel called python3 in this environment",
            where=sys.prefix,
            fix="make setup, or pip install ipykernel",
        ) from None
    finally:
        _name_no_machine(output)
        _sign(output)


def _failed(stage: runs.Stage, output: Path, error: PapermillExecutionError) -> AvomniError:
    if error.ename == "KeyboardInterrupt":
        return AvomniError(
            "stopped by hand",
            where=stage.name,
            fix="run the same command again: it goes on from here",
        )
    if error.ename == "AvomniError":
        # The message already says what, where and what to do.
        return AvomniError(f"{stage.name}: {error.evalue}")
    return AvomniError(
        f"{stage.name} failed with {error.ename}: {error.evalue}",
        where=f"{output}, cell {error.exec_count}",
        fix="the traceback stands in that notebook; run the same command again once it is mended",
    )


def _name_no_machine(path: Path) -> None:
    """papermill notes where it read and wrote: absolute paths, which mean nothing after a move."""
    if not path.exists():
        return
    try:
        notebook = nbformat.read(path, as_version=4)
        notes = notebook.metadata.get("papermill", {})
        for key in {"input_path", "output_path"} & notes.keys():
            notes[key] = Path(notes[key]).name
        files.write_text(path, nbformat.writes(notebook))
    except Exception as error:  # nbformat raises whatever it stumbles on in half a notebook
        log.warning("%s keeps the paths of this machine: %s", path, error)


def _sign(path: Path) -> None:
    """Jupyter shows an executed notebook's widgets only where it trusts it; we made it.

    Where its record cannot be written, as in a home that is read only, the run goes on without.
    """
    if not path.exists():
        return
    from nbformat.sign import NotebookNotary

    try:
        NotebookNotary().sign(nbformat.read(path, as_version=4))
    except (OSError, ValueError, sqlite3.Error) as error:
        log.warning("%s is not signed as trusted: %s", path, error)
