"""The training stage: its plan, and the training in a separate process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avomni_lib import files, hardware
from avomni_lib.etl import leaks
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan
from avomni_lib.training.doctor import doctor
from avomni_lib.training.fit import job, preview
from avomni_lib.training.fit.checkpoints import METRICS_FILE, Metrics
from avomni_lib.training.fit.job import Trained
from avomni_lib.training.forecast import estimate
from avomni_lib.training.model import adapter, load, model_path
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.tokens import Tokens

PLAN_FILE = "plan.json"


def plan(p: Params, probe: bool = True) -> Plan:
    """Windows, tokens, steps, memory by part, hours and cost, before the training.

    Args:
        probe: Start the training process to measure its first steps, after which it pauses until
            `train`; the measurement is stored beside the checkpoints.

    Raises:
        AvomniError: there is no cache or base model, a sample is longer than max_seq_length, a
            held-out clip is in the training split, or the first steps fail.
    """
    choices = load.choose(p)
    doctor.optimizer(p.training.optimizer, choices["device"].value)
    windows = samples.train_windows(p)
    held_out = windows.cache.held_out_ids
    leaks.check_all(p, windows.cache, held_out, locate=model_path.base_location)
    location, conversation = model_path.base_location(p.model.base_model), preview.conversation(p)
    longest = samples.longest(windows, conversation)
    steps = estimate.optimizer_steps(p, len(windows))
    num_clips = len({windows[i].clip_id for i in range(len(windows))})
    device = choices["device"].value
    scored_by = p.evaluation.protocol
    not_scored = f"none of a clip that {scored_by} scores" if scored_by else ""
    batch = f"{p.training.batch_size} × {p.training.gradient_accumulation_steps}"
    if (ranks := p.training.num_processes) > 1:
        batch += f", on {ranks} processes"
    left_out, causes = samples.left_out(windows), samples.causes_from(windows, conversation.target)
    rows = [
        *p.code_rows(),
        ("base model", p.model.base_model, location if location != p.model.base_model else ""),
        (
            "windows",
            f"{len(windows):,}",
            "; ".join(
                filter(None, [f"of {num_clips:,} clips of the split train", left_out, not_scored])
            ),
        ),
        *_causes(causes),
        (
            "tokens a sample",
            f"{len(longest):,} of {p.model.max_seq_length:,}",
            f"{conversation.num_vision_tokens:,} vision tokens for {conversation.size}",
        ),
        ("batch", batch, "windows a step"),
        ("optimizer steps", f"{steps:,}", f"{p.training.num_epochs:g} epochs"),
        ("optimizer", *hardware.optimizer(p.training.optimizer, device)),
    ]
    figures = {
        "num_windows": len(windows),
        "num_clips": num_clips,
        "causes_from": causes,
        "tokens_per_sample": len(longest),
        "vision_tokens": conversation.num_vision_tokens,
        "optimizer_steps": steps,
    }
    num_answer = len(longest) - len(conversation.prompt())
    num_text = len(longest) - conversation.num_vision_tokens
    memory = hardware.device_memory(device)
    estimated = estimate.training_rows(
        p,
        steps,
        Tokens(
            conversation.num_vision_tokens,
            num_text,
            num_answer,
            conversation.backbone.vision_work(conversation.videos),
        ),
        device=device,
        probe=_probe(p, windows.cache.digest) if probe else None,
        capacity=memory.total if memory else None,
    )
    if probe:
        files.write_json(p.checkpoints_dir / PLAN_FILE, estimated[2])
    warnings = estimate.few_steps_warning(p, steps) + estimated[1]
    return Plan("what 05_train will do", rows + estimated[0], warnings, figures | estimated[2])


def train(p: Params, progress: type[Bar] = Bar, watch: job.Watch | None = None) -> Trained:
    """Train the adapter in a separate process, or attach to a running one.

    Args:
        progress: One unit per optimizer step.
        watch: Called periodically with all lines of metrics so far.

    Raises:
        AvomniError: see `plan` and `worker.work`; a training with other parameters is running in
            the run's folder; the training was stopped or killed.
    """
    process, _ = job.start_or_attach(p)
    return _trained(p, job.follow(p, process, progress, watch))


def _trained(p: Params, outcome: dict[str, Any]) -> Trained:
    about = files.read_json(p.checkpoints_dir / job.JOB_FILE)
    metrics = Metrics(p.checkpoints_dir / about["checkpoints"] / METRICS_FILE).read()
    folder = adapter.adapter_dir(p)
    record = adapter.read_record(folder)
    planned = p.checkpoints_dir / PLAN_FILE
    predicted = files.read_json(planned).get("predicted") if planned.exists() else None
    figures = outcome["figures"] | {"estimate": predicted or {}}
    return Trained(folder, record, metrics, outcome["choices"], figures)


def train_blind(p: Params, progress: type[Bar] = Bar) -> Trained | None:
    """Train the ladder's second adapter, on black frames; None unless `training.blind_steps`.

    The process that trains the first adapter continues with this one, and is followed here. It
    trains for at most `training.blind_steps` steps, and not longer than the first one.

    Raises:
        AvomniError: see `train`.
    """
    blind = p.blinded()
    if blind is None:
        return None
    process = None if job.is_finished(blind) else job.start_or_attach(blind)[0]
    return _trained(blind, job.follow(blind, process, progress))


def made(trained: Trained, blind: Trained | None = None) -> list[Path]:
    """The files of the adapters."""
    folders = [trained.adapter] + ([blind.adapter] if blind else [])
    return [path for folder in folders for path in sorted(folder.iterdir())]


def compared(trained: Trained) -> Plan:
    """The plan's predictions compared with measurements."""
    device = trained.choices["device"].value.partition(":")[0]
    figures = trained.figures
    rows = estimate.compared(figures["estimate"], figures["measured"], device)
    return Plan("predicted against measured", rows, [], {})


def _probe(p: Params, cache_digest: str) -> estimate.Probe | None:
    """Time and memory of a few steps, measured once for these parameters on this machine.

    None if the training is past its first steps, as a second process would slow down both.
    """
    took = job.left(p, job.PROBE_FILE, cache_digest)
    if took is None:
        about = job.running(p)
        if about is not None and not about.get("waits"):
            return None
        took = job.awaited(p, job.PROBE_FILE, cache_digest, pauses=True)
    return None if took is None else estimate.Probe(**took)


def _causes(by_source: dict[str, int]) -> list[tuple[str, str, str]]:
    """A row with the numbers of causes written by people and made by templates; none without."""
    if not by_source:
        return []
    written, made = (by_source.get(name, 0) for name in ("event", "template"))
    return [("causes", f"{written:,} by people", f"{made:,} by this program's templates")]
