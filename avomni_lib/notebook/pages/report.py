"""The report of a run: one self-contained page, with the command that reproduces each claim."""

from __future__ import annotations

import base64
import contextlib
import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import yaml

from avomni_lib import files, hardware
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.claims import FEWEST_CLIPS
from avomni_lib.evaluation.scores import FALLBACK, MODEL, metric
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.plots.ladder import SLICES, ladder_finding
from avomni_lib.notebook.plots.paths import Shown, describe, shown
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from avomni_lib.plan import minutes
from avomni_lib.training.model import adapter
from avomni_lib.training.targets import target

STAGE = "06_evaluate"  # still running while its report is written
FILE, PARAMS_FILE, TEMPLATE = "report.html", "params.yaml", "report.html.jinja"
NUM_ANSWERS = 2  # number of worst and of typical windows whose answers are shown
PICTURES = {
    "ladder": "Each row of the ladder with its interval, and its difference to the model.",
    "predicted": "Calibration: predicted speed against driven speed.",
    "horizon": "Distance of the predicted paths from the driven one, 1 to 6.4 s ahead.",
    "manoeuvres": "Confusion matrix of the manoeuvres.",
    "slices": "The same figure for slices of the windows.",
    "worst": "The windows with the largest errors: frames, driven and predicted path, answers.",
    "typical": "Windows with errors near the median.",
}
# Section of each picture; others go to the end of `truth`.
SECTIONS = {"ladder": "ladder", "slices": "slices", "worst": "windows", "typical": "windows"}
SECTIONS |= dict.fromkeys(("predicted", "horizon", "manoeuvres"), "truth")
VERDICTS = {
    wording.BEATEN: "the model is better",
    wording.EVEN: "no difference shown",
    wording.AHEAD: "the row is better",
}
# Prints a claim from the answers alone, without a model or GPU.
RECOMPUTE = (
    "from pathlib import Path; from avomni_lib.evaluation import metrics; "
    "print(metrics.figures(metrics.read(Path({path!r})))['claims'][{number}]['text'])"
)


def write(
    p: Params,
    figures: Mapping[str, Any],
    table: pa.Table,
    pictures: Mapping[str, Path],
    cost: Mapping[str, Any],
    folder: Path,
) -> Path:
    """Write `report.html`, and beside it `params.yaml` with all of the run's parameters.

    Args:
        figures: As in 06's `result.json`, computed from the answers in `table`.
        pictures: Name -> PNG file, to be embedded.
        cost: As returned by `cost_of`.

    Returns:
        Path of the page.

    Raises:
        AvomniError: a picture is missing.
    """
    files.write_text(folder / PARAMS_FILE, yaml.safe_dump(p.complete(), sort_keys=False))
    answers = shlex.split(_named(folder / "answers.parquet"))[0]
    rows = sorted(figures["metrics"], key=lambda name: name != MODEL)
    page = template(TEMPLATE).render(
        title=f"{p.run.name}: the score",
        notice=p.notice,
        finding=ladder_finding(figures),
        facts=facts(p, figures),
        commands=[
            f"python -c {_quoted(RECOMPUTE.format(path=answers, number=number))}"
            for number in range(len(figures["claims"]))
        ],
        again=f"python -m avomni_lib run {_named(folder / PARAMS_FILE)} --only {STAGE} --force",
        compare=f"python -m avomni_lib compare {_named(p.run_dir)} outputs/ANOTHER",
        figures=figures,
        rows=rows,
        names=dict.fromkeys(name for row in rows for name in figures["metrics"][row]),
        unread=wording.row(FALLBACK),
        fewest_clips=FEWEST_CLIPS,
        pictures=_pictures(pictures),
        answers=_answers(table),
        cost=cost,
        made=files.now(),
    )
    files.write_text(folder / FILE, page)
    return folder / FILE


def cost_of(p: Params, running_s: float | None = None) -> dict[str, Any]:
    """Time, memory and price of the run so far, from the `result.json` of each stage.

    Args:
        running_s: Seconds for which 06 has been running, as its `result.json` is written after the
            report.

    Returns:
        `stages`: a list of {stage, seconds, memory_gb, device_gb, machine} of the stages that are
        done or running; `seconds`, their sum; `price_per_hour` and `price`, None without a price.
        A skipped stage counts with the time of its last run, a resumed one with the time since it
        was resumed.
    """
    rows = []
    for stage in runs.STAGES:
        result = runs.read_result(p, stage.name)
        if stage.name == STAGE and running_s is not None:
            result = {"seconds": running_s, "peak_memory_gb": hardware.peak_host_gb()}
            result |= {"figures": {}, "provenance": hardware.provenance()}
        if result is not None:
            # A notebook that attached to a running training measured only a part of it.
            trained_s = result["figures"].get("measured", {}).get("seconds", 0.0)
            rows.append(
                {
                    "stage": stage.name,
                    "seconds": max(float(result["seconds"]), trained_s),
                    "memory_gb": float(result["peak_memory_gb"]),
                    "device_gb": result["figures"].get("peak_memory", {}).get("device_gb"),
                    "machine": machine_of(result["provenance"]),
                }
            )
    seconds, per_hour = sum(row["seconds"] for row in rows), p.run.price_per_hour
    price = None if per_hour is None else per_hour * seconds / 3600
    return {"stages": rows, "seconds": seconds, "price_per_hour": per_hour, "price": price}


def machine_of(made_with: Mapping[str, Any]) -> str:
    """Description of a machine, from the `provenance` of a result."""
    words = f"{made_with['cores']} cores, {made_with['host_memory_gb']:.0f} GB of memory"
    device = made_with.get("device")
    return f"{words}; {device['reason']}" if device and device["value"] != "cpu" else words


def facts(p: Params, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the run's main settings."""
    record: dict[str, Any] = {}
    with contextlib.suppress(AvomniError):
        record = adapter.read_record(adapter.adapter_dir(p))
    made_with = hardware.provenance()
    packages = {name: version for name, version in made_with["packages"].items() if version}
    run_target = target(figures["ladder"][0]["target"])
    trained = "not recorded"
    if record:
        clips = len(record["training_clip_ids"])
        trained = f"{record['num_windows']:,} windows of {clips:,} clips, none of them scored on"
    return [
        ("run", p.run.name),
        ("base model", p.model.base_model),
        ("adapter", f"LoRA rank {p.model.lora_rank}, alpha {p.model.lora_alpha}"),
        ("trained on", trained),
        ("target", f"{run_target.name}: {p.prompt.question or run_target.question}"),
        ("past motion in the prompt", "yes" if p.prompt.ego_history else "no"),
        ("answers held to the form", "yes" if p.evaluation.constrained else "no"),
        (
            "scored on",
            f"{figures['num_windows']:,} windows of {figures['num_clips']:,} clips of the split "
            + p.evaluation.split,
        ),
        ("split, sha256", figures.get("split_sha256") or "not frozen"),
        ("source", f"{p.dataset.source}: {record.get('repo_id') or p.dataset.repo_id}"),
        ("revision", record.get("revision") or p.dataset.revision or "not recorded"),
        (
            "cameras",
            f"{cameras.grid(p.vision.cameras)}, {p.processing.sequence_length} frames a window",
        ),
        ("code", made_with["git_commit"] or "not in git"),
        ("machine", machine_of(made_with)),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    ]


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of this folder."""
    # Answers are arbitrary text: escape everything, and fail on undefined names.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"three": _three, "row": wording.row, "minutes": minutes}
    environment.filters["axis"] = lambda name: wording.axis(metric(name))
    environment.filters["verdict"] = lambda entry: VERDICTS[wording.standing(entry)]
    environment.filters["slice"] = lambda by: SLICES.get(by, by)
    environment.globals |= {"between": _between, "model": MODEL}
    return environment.get_template(name)


def _named(path: Path) -> str:
    """A path for a shell's command."""
    return shlex.quote(files.from_root(path.resolve()))


def _quoted(code: str) -> str:
    """Quote code that contains single quotes for a shell, in double quotes if possible."""
    return shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'


def _three(value: float | None, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.3f}" if wording.is_number(value) else "–"


def _between(low: float | None, high: float | None, sign: bool = False) -> str:
    return f"{_three(low, sign)} to {_three(high, sign)}" if wording.is_number(low) else "–"


def _pictures(pictures: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    """Section -> its pictures: name, caption, and the file as a data URL."""
    shown_in: dict[str, list[dict[str, str]]] = {section: [] for section in SECTIONS.values()}
    for name in sorted(pictures, key=[*PICTURES, *pictures].index):
        try:
            data = base64.b64encode(Path(pictures[name]).read_bytes()).decode()
        except OSError:
            raise AvomniError(
                "a picture of the report is missing",
                where=str(pictures[name]),
                fix="run 06_evaluate again: it draws them",
            ) from None
        entry = {"name": name, "words": PICTURES.get(name, name)}
        shown_in[SECTIONS.get(name, "truth")].append(
            entry | {"data": f"data:image/png;base64,{data}"}
        )
    return shown_in


def _answers(table: pa.Table) -> list[dict[str, Any]]:
    """The worst and the typical windows with ground truth and answers."""
    kinds = {"worst": metrics.worst, "typical": metrics.typical}
    return [
        {
            "kind": kind,
            "clip_id": window.clip_id,
            "window": window.window,
            "true": _true_text(window, table["target"][0].as_py()),
            "texts": [
                {
                    "who": wording.row(name),
                    "text": window.answers[name] or "",
                    "read": f"read as: {describe(prediction)}" if prediction else describe(None),
                }
                for name, prediction in window.predictions.items()
            ],
        }
        for kind, pick in kinds.items()
        for window in shown(table, pick(table, MODEL, NUM_ANSWERS))
    ]


def _true_text(window: Shown, name: str) -> str:
    try:
        return target(name).write(window.true)
    except (AvomniError, TypeError, ValueError):
        return describe(window.true)  # a part is unknown for this window
