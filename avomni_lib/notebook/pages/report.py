"""The report of a run: one page that needs no network, every figure with how to get it again."""

from __future__ import annotations

import base64
import contextlib
import datetime
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
from avomni_lib.notebook.run.cost import STAGE, cost_of, in_words, machine_of
from avomni_lib.params import Params
from avomni_lib.training.model import adapter
from avomni_lib.training.targets import target

__all__ = ["cost_of", "facts", "write"]

FILE, PARAMS_FILE, TEMPLATE = "report.html", "params.yaml", "report.html.jinja"
NUM_ANSWERS = 2  # windows whose answers stand side by side: of the worst and of the typical, each
PICTURES = {
    "ladder": "Each row of the ladder with its interval, and its difference to the model.",
    "predicted": "Calibration: the speed that is said against the speed that was driven.",
    "horizon": "How far the said paths are from the driven one, 1 to 6.4 s ahead.",
    "manoeuvres": "Which manoeuvre is taken for which.",
    "slices": "The same figure where it matters.",
    "worst": "The windows with the largest errors: frames, true and said path, answers.",
    "typical": "Windows with errors about the median.",
}
# Pictures by the section that shows them; what is in none comes at the end of the second.
SECTIONS = {"ladder": ("ladder",), "truth": ("predicted", "horizon", "manoeuvres")}
SECTIONS |= {"slices": ("slices",), "windows": ("worst", "typical")}
VERDICTS = {
    wording.BEATEN: "the model is better",
    wording.EVEN: "no difference shown",
    wording.AHEAD: "the row is better",
}
# Prints a claim from the answers alone; no model is loaded and no GPU is needed.
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
    """Write `report.html`, and beside it `params.yaml`, the run's parameters in full.

    Args:
        figures: As in 06's `result.json`.
        table: The answers that they follow from (`evaluation.metrics.SCHEMA`).
        pictures: Name -> PNG file; they are put into the page.
        cost: As `cost_of` returns it.
        folder: The stage's.

    Returns:
        The page.

    Raises:
        AvomniError: a picture is missing.
    """
    files.write_text(folder / PARAMS_FILE, yaml.safe_dump(p.complete(), sort_keys=False))
    page = _template().render(
        title=f"{p.run.name}: the score",
        notice=None if p.is_ours_to_show else adapter.CONFIDENTIAL,
        finding=ladder_finding(figures),
        facts=facts(p, figures),
        claims=_claims(figures, folder),
        again=f"python -m avomni_lib run {_named(folder / PARAMS_FILE)} --only {STAGE} --force",
        compare=f"python -m avomni_lib compare {_named(p.run_dir)} outputs/ANOTHER",
        ladder=_ladder(figures),
        unread=wording.row(FALLBACK),
        figures=_figures(figures),
        slices=_slices(figures),
        fewest_clips=FEWEST_CLIPS,
        pictures=_pictures(pictures),
        answers=_answers(table),
        cost=in_words(cost),
        made=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    )
    files.write_text(folder / FILE, page)
    return folder / FILE


def facts(p: Params, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run: (name, value) each."""
    record: dict[str, Any] = {}
    with contextlib.suppress(AvomniError):
        record = adapter.read_record(adapter.adapter_dir(p))
    made_with = hardware.provenance()
    packages = {name: version for name, version in made_with["packages"].items() if version}
    of = target(figures["ladder"][0]["target"])
    trained = "not recorded"
    if record:
        clips = len(record["training_clip_ids"])
        trained = f"{record['num_windows']:,} windows of {clips:,} clips, none of them scored on"
    return [
        ("run", p.run.name),
        ("base model", p.model.base_model),
        ("adapter", f"LoRA rank {p.model.lora_rank}, alpha {p.model.lora_alpha}"),
        ("trained on", trained),
        ("target", f"{of.name}: {p.prompt.question or of.question}"),
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
def _template() -> jinja2.Template:
    # Answers are whatever a model wrote: every text is escaped, and nothing may be left out.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def _named(path: Path) -> str:
    """A path as a command names it: from the project's root where it lies below it."""
    path = path.resolve()
    root = files.PROJECT_ROOT
    return shlex.quote(str(path.relative_to(root) if path.is_relative_to(root) else path))


def _claims(figures: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    path = shlex.split(_named(folder / "answers.parquet"))[0]
    return [
        claim | {"command": f"python -c {_quoted(RECOMPUTE.format(path=path, number=number))}"}
        for number, claim in enumerate(figures["claims"])
    ]


def _quoted(code: str) -> str:
    """Code with single quotes in it as one word of a shell; in double quotes where they will do."""
    return shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'


def _three(value: float | None, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.3f}" if wording.is_number(value) else "–"


def _between(low: float | None, high: float | None, sign: bool = False) -> str:
    return f"{_three(low, sign)} to {_three(high, sign)}" if wording.is_number(low) else "–"


def _ladder(figures: Mapping[str, Any]) -> dict[str, Any]:
    exact = figures["exact_share_by_row"]
    told = metric(figures["ladder"][0]["metric"])
    rows = []
    for entry in figures["ladder"]:
        is_model = entry["name"] == MODEL
        difference = entry["difference_low"], entry["difference_high"]
        rows.append(
            {
                "name": wording.row(entry["name"]),
                "is_model": is_model,
                "windows": f"{entry['num_windows']:,}",
                "clips": f"{entry['num_clips']:,}",
                "valid": f"{entry['valid_share']:.1%}",
                "exact": f"{exact[entry['name']]:.1%}",
                "value": _three(entry["value"]),
                "interval": _between(entry["low"], entry["high"]),
                "difference": "" if is_model else _three(entry["difference_to_model"], sign=True),
                "apart": "" if is_model else _between(*difference, sign=True),
                "standing": "" if is_model else VERDICTS[wording.standing(entry)],
            }
        )
    return {"metric": wording.axis(told), "rows": rows}


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure of every row, a line a figure, the model's first."""
    of_rows = figures["metrics"]
    rows = sorted(of_rows, key=lambda name: name != MODEL)
    lines = []
    for name in dict.fromkeys(name for row in rows for name in of_rows[row]):
        known = [of_rows[row].get(name, {}) for row in rows]
        cells = [(_three(of.get("value")), _between(of.get("low"), of.get("high"))) for of in known]
        lines.append({"name": wording.axis(metric(name)), "cells": cells})
    return {"rows": [wording.row(name) for name in rows], "lines": lines}


def _slices(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "by": SLICES.get(row["by"], row["by"]),
            "value": row["value"],
            "windows": f"{row['num_windows']:,}",
            "clips": f"{row['num_clips']:,}",
            "is_small": row["num_clips"] < FEWEST_CLIPS,
            "model": _three(row["model"]),
            "interval": _between(row["low"], row["high"]),
            "mean": _three(row["mean"]),
        }
        for row in figures["slices"]
    ]


def _pictures(pictures: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    shown_in = {
        section: [name for name in names if name in pictures] for section, names in SECTIONS.items()
    }
    known = {name for names in SECTIONS.values() for name in names}
    shown_in["truth"] += [name for name in pictures if name not in known]
    return {
        section: [
            {"name": name, "words": PICTURES.get(name, name), "data": _inline(pictures[name])}
            for name in names
        ]
        for section, names in shown_in.items()
    }


def _inline(path: Path) -> str:
    try:
        return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    except OSError:
        raise AvomniError(
            "a picture of the report is missing",
            where=str(path),
            fix="run 06_evaluate again: it draws them",
        ) from None


def _answers(table: pa.Table) -> list[dict[str, Any]]:
    """Windows with what is true and what was said before and after: bad ones, then usual ones."""
    kinds = {"worst": metrics.worst, "typical": metrics.typical}
    return [
        {
            "kind": kind,
            "clip_id": each.clip_id,
            "window": each.window,
            "true": _true_text(each, table["target"][0].as_py()),
            "texts": [
                {
                    "who": wording.row(name),
                    "text": each.answers[name] or "",
                    "read": f"read as: {describe(said)}" if said else describe(None),
                }
                for name, said in each.said.items()
            ],
        }
        for kind, pick in kinds.items()
        for each in shown(table, pick(table, MODEL, NUM_ANSWERS))
    ]


def _true_text(each: Shown, name: str) -> str:
    try:
        return target(name).write(each.true)
    except (AvomniError, TypeError, ValueError):
        return describe(each.true)  # a part of it is not known of this window
