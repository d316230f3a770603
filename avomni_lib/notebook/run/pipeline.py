"""Runs the pipeline's notebooks headless with papermill; one params file is one run."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets import Unicode
from traitlets.config import Config

from avomni_lib import files
from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.notebook.run import faults, runs
from avomni_lib.params import Params

log = logging.getLogger(__name__)
# nbclient's message for a kernel that died; `_execute` reports why it did.
logging.getLogger("papermill").addFilter(lambda record: "Kernel died" not in record.getMessage())

LOCK, BUSY = ".lock", "another `avomni run` works in this run folder"
KERNEL_LOG = "kernel.log"
KERNEL_LOST = "the kernel was killed, usually because memory ran out"
START_S = 180  # timeout for the start of a kernel, generous for a busy machine
# Python's text of an OSError.
OS_ERROR = re.compile(r"\[Errno (?P<errno>\d+)\] [^:]*(?:: '(?P<path>.*?)'.*)?", re.DOTALL)


class LoggedKernel(AsyncKernelManager):
    """A kernel with the Python and the package of the running command, whatever is installed.

    stdout and stderr of the kernel process and its workers go to a file, because they print
    internal tracebacks when interrupted. Outputs of cells are not affected.
    """

    log_path = Unicode(config=True)

    @property
    def kernel_spec(self) -> KernelSpec:
        # An installed spec named python3 may belong to another environment.
        try:
            from ipykernel.kernelspec import get_kernel_dict
        except ImportError:
            raise AvomniError(
                "ipykernel is not installed in this environment",
                where=sys.prefix,
                fix="make setup, or pip install ipykernel",
            ) from None
        return KernelSpec(**get_kernel_dict())

    async def start_kernel(self, **options: Any) -> None:
        with open(self.log_path, "wb") as log:
            await super().start_kernel(stdout=log, stderr=log, env=files.environment(), **options)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one stage: `skipped`, `ran` or `would run`, with the reason."""

    stage: str
    action: str
    reason: str
    seconds: float
    figures: dict[str, Any]


def choose(p: Params, first: str | None = None, only: Sequence[str] = ()) -> list[runs.Stage]:
    """The selected stages of a run in order; stages may be named `03_etl`, `03` or `etl`.

    Raises:
        AvomniError: a name matches no stage, or several.
    """
    stages = list(runs.stages_of(p))
    if only:
        wanted = [_find(name, stages) for name in only]
        return [stage for stage in stages if stage in wanted]
    return stages[stages.index(_find(first, stages)) if first else 0 :]


def run(
    p: Params,
    stages: Sequence[runs.Stage] = runs.STAGES,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[Outcome]:
    """Run the stages that are not done, in order; yields an outcome after each.

    Args:
        force: Run them from scratch even if they are done.
        dry_run: Only report what would run.

    Raises:
        AvomniError: a notebook failed.
        KeyboardInterrupt: its kernel was interrupted.
        OSError: the run's folder cannot be written.
    """
    ran: set[str] = set()
    remade: set[str] = set()  # in a dry run: stages whose outputs would change
    # Two commands in one run folder would overwrite each other's files.
    lock = contextlib.nullcontext() if dry_run else files.hold(p.run_dir / LOCK, BUSY)
    with lock:
        for stage in stages:
            state, started = runs.state(p, stage.name), time.monotonic()
            before = [need for need in stage.needs if need in remade]
            if state.done and not force and not before:
                action = "would skip" if dry_run else "skipped"
                yield Outcome(stage.name, action, state.reason, 0.0, state.result["figures"])
                continue
            if not force:
                _refuse_stale(p, stage, ran)
            ran.add(stage.name)
            if dry_run:
                if force or before or not state.makes_the_same:
                    remade.add(stage.name)
                reason = "forced" if force else f"{before[0]} runs before it" if before else ""
                reason = reason if state.done else state.reason
                yield Outcome(stage.name, "would run", reason, 0.0, {})
                continue
            if force:
                runs.forget(p, stage)
            else:
                runs.drop_damaged(p, stage)
            _execute(p, stage)
            result = runs.read_result(p, stage.name)
            if result is None:
                raise AvomniError(
                    "the notebook ended and left no result.json: its last cell did not run",
                    where=str(runs.executed_path(p, stage)),
                    fix="open it, look at the last cell that has an output, run it again",
                )
            seconds = time.monotonic() - started
            yield Outcome(stage.name, "ran", state.reason, seconds, result["figures"])


def _refuse_stale(p: Params, stage: runs.Stage, ran: Collection[str]) -> None:
    """Refuse to run a stage on outputs that do not match the parameters.

    Raises:
        AvomniError: a stage that it needs is neither done nor among those that ran before it.
    """
    for need in stage.needs:
        before = runs.state(p, need)
        if need not in ran and not before.done and not before.makes_the_same:
            fix = f"python -m avomni_lib run PARAMS.yaml --from {(before.cause or [need])[0]}"
            if before.result is not None:
                fix += f"; or --only {stage.name} --force, to take what is there all the same"
            raise AvomniError(
                f"{stage.name} needs what {need} makes, and {need} is not done: {before.reason}",
                where=str(runs.stage_dir(p, need)),
                fix=fix,
            )


def _find(name: str, stages: Sequence[runs.Stage]) -> runs.Stage:
    fitting = [stage for stage in stages if name in (stage.name, *stage.name.split("_"))]
    if len(fitting) != 1:
        names = ", ".join(stage.name for stage in stages)
        raise AvomniError(f"no stage is called {name!r}", fix=f"the stages are {names}")
    return fitting[0]


def _execute(p: Params, stage: runs.Stage) -> None:
    _check(stage.notebook)
    output = runs.executed_path(p, stage)
    output.parent.mkdir(parents=True, exist_ok=True)
    (output.parent / runs.RESULT).unlink(missing_ok=True)
    # ipykernel 7.3 and later warn on every start unless the connection to the kernel is encrypted.
    options = {"transport_encryption": "required", "log_path": str(output.parent / KERNEL_LOG)}
    config = Config({"LoggedKernel": options})
    try:
        papermill.execute_notebook(  # papermill formats paths, so braces are escaped
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (stage.notebook, output)),
            parameters=p.complete(),
            kernel_name="python3",
            language="python",
            cwd=str(stage.notebook.parent),
            progress_bar=False,
            stdout_file=sys.stdout,
            start_timeout=START_S,
            config=config,
            kernel_manager_class=LoggedKernel,
        )
    except PapermillExecutionError as error:
        raise _failed(stage, output, error) from None
    except DeadKernelError:
        raise _ended(stage, output) from None
    except RuntimeError as error:
        # jupyter_client reports kernels that failed to start in these words.
        if "ernel died" in str(error):
            raise _ended(stage, output, "before it could work") from None
        if "ernel didn't respond" not in str(error):
            raise
        raise AvomniError(
            f"the kernel has not answered within {START_S} s of its start",
            where=f"{stage.name}; its own words are in {output.with_name(KERNEL_LOG)}",
            fix=f"see whether the machine is busy or its disk slow; {files.GO_ON}",
        ) from None
    except OSError as error:
        if error.errno not in files.REFUSALS or isinstance(error, BrokenPipeError):
            raise
        raise files.refused(error, output) from None
    finally:
        if output.exists():
            _clean_notebook(output)


def _check(notebook: Path) -> None:
    """Check that a notebook is valid and has one cell tagged `parameters`.

    papermill would run a notebook without such a cell with the demo's values.
    """
    fix = f"git checkout {notebook} brings it back as it was"
    try:
        content = nbformat.read(notebook, as_version=4)
        nbformat.validate(content)
        tags = [tag for cell in content.cells for tag in cell.metadata.get("tags", [])]
    except FileNotFoundError:
        raise AvomniError("the stage's notebook is missing", where=str(notebook), fix=fix) from None
    except OSError:
        raise
    except Exception as error:  # nbformat raises many kinds
        words = str(error).partition("\n")[0]
        raise AvomniError(f"this is no notebook: {words}", where=str(notebook), fix=fix) from None
    if tags.count("parameters") != 1:
        raise AvomniError(
            f"{tags.count('parameters')} cells of this notebook are tagged `parameters`, not one: "
            "the run's parameters would not arrive",
            where=str(notebook),
            fix=f"tag the cell again, or: {fix}",
        )


def _ended(stage: runs.Stage, output: Path, when: str = "") -> AvomniError:
    """The error for a kernel that died."""
    log = output.with_name(KERNEL_LOG)
    words = log.read_text("utf-8", "replace").strip() if log.exists() else ""
    if "KeyboardInterrupt" in words:
        raise KeyboardInterrupt from None  # interrupted before the kernel could handle it
    memory = psutil.virtual_memory()
    last = words.rpartition("\n")[2]
    return AvomniError(
        f"{KERNEL_LOST} ({memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free now)"
        + (f", {when}" if when else "")
        + (f"; it last said: {last}" if last else ""),
        where=f"{stage.name}, {output} (its cells say `completed`: do not believe them); "
        f"the kernel's own words are in {KERNEL_LOG} beside it",
        fix="lower training.batch_size or the tile size if it was memory; "
        "run the same command again: it goes on from what is whole",
    )


def _failed(stage: runs.Stage, output: Path, error: PapermillExecutionError) -> AvomniError:
    """The error for a cell that raised one."""
    refusal = OS_ERROR.fullmatch(error.evalue)
    if error.ename == "KeyboardInterrupt":
        raise KeyboardInterrupt from None
    if error.ename == AvomniError.__name__:
        parts = [error.traceback[0].removeprefix(f"{error.ename}: "), *error.traceback[1:]]
        words = AvomniError.from_parts(parts)
    elif refusal and int(refusal["errno"]) in files.REFUSALS:
        words = files.refused(OSError(int(refusal["errno"]), "", refusal["path"]), output.parent)
    elif error.ename == MemoryError.__name__:
        words = faults.in_words(MemoryError())
    else:
        return AvomniError(
            f"{stage.name} failed with {error.ename}: {error.evalue}",
            where=f"{output}, cell {error.exec_count}",
            fix="the traceback stands in that notebook; run the same command again once it is "
            "mended",
        )
    return AvomniError(
        f"{stage.name}: {words.what}", where=words.where or str(output), fix=words.fix
    )


def _clean_notebook(path: Path) -> None:
    """Remove this machine's paths and passwords from an executed notebook, and sign it as trusted.

    papermill records input and output paths and all parameters, and a camera's address may contain
    a password. Jupyter shows widgets only in trusted notebooks.
    """
    from nbformat.sign import NotebookNotary

    try:
        notebook = nbformat.read(path, as_version=4)
        notes = notebook.metadata.get("papermill", {})
        for key in {"input_path", "output_path"} & notes.keys():
            notes[key] = Path(notes[key]).name
        files.write_text(path, without_passwords(nbformat.writes(notebook)))
        NotebookNotary().sign(nbformat.read(path, as_version=4))
    except Exception as error:  # an incomplete notebook, or a read-only home
        log.warning("%s keeps this machine's paths, or is not trusted: %s", path, error)
