"""How long a training takes: by arithmetic before anything ran, and from two steps that were timed.

A multiplication with its addition is two operations. A window of L tokens takes, forward,

    language linears   2 · weights · L
    attention          2 · layers · L² · Q      causal: half of the square, for both of its products
    LoRA               2 · weights · L
    logits             2 · hidden · vocabulary · answer tokens
    vision tower       2 · weights · patches + 4 · depth · hidden · (patches of two frames)² · L_t

and backward as much again for what is frozen and twice that for what learns or attends. The vision
tower is before everything that learns and has no backward pass; gradient checkpointing takes the
language model's layers forward once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avomni_lib.params import Params
from avomni_lib.plan import gigabytes
from avomni_lib.training.forecast.model_size import Anatomy
from avomni_lib.training.prompt.tokens import Tokens

if TYPE_CHECKING:
    from avomni_lib.training.fit.outcome import Trained

# AMD's data sheet of the MI300X: bytes of memory, dense bfloat16 operations a second.
CARD, CARD_BYTES, CARD_FLOPS = "MI300X", 192e9, 1307e12
# Of the peak: what well-tuned training of models of this size reaches on such cards.
UTILISATION = 0.35


@dataclass(frozen=True)
class Operations:
    """Operations of one window, forward."""

    linears: float
    attention: float
    lora: float
    logits: float
    vision: float

    def step(self, recomputed: bool) -> float:
        """Operations of one window's part of a training step.

        Args:
            recomputed: Gradient checkpointing runs the layers once more.
        """
        layers = self.linears + self.attention + self.lora
        once = 2 * self.linears + 3 * (self.attention + self.lora) + 2 * self.logits + self.vision
        return once + (layers if recomputed else 0)


@dataclass(frozen=True)
class Probe:
    """What a few steps of this training took on this machine.

    Attributes:
        seconds_per_step: Of an optimizer step, by the clock.
        cpu_seconds_per_step: Of the process: cores may be shared with others.
        peak_bytes: The most it held, on the device where there is one.
    """

    seconds_per_step: float
    cpu_seconds_per_step: float
    peak_bytes: int

    def seconds(self, device: str) -> float:
        """What is compared after the training: on a CPU the process's own seconds."""
        return self.cpu_seconds_per_step if device == "cpu" else self.seconds_per_step


def operations(
    anatomy: Anatomy,
    tokens: Tokens,
    num_frames: int,
    rank: int,
    targets: Sequence[str] | None = None,
) -> Operations:
    """Operations of one window, forward.

    Args:
        num_frames: Of the window.
        rank, targets: LoRA's, as `model.lora_rank` and `model.lora_targets`.
    """
    of, tower, length = anatomy.language, anatomy.vision, tokens.total
    patches = tokens.vision * tower.patches_per_token
    times = -(-num_frames // tower.temporal)
    embedding = tower.values_per_patch * tower.hidden
    block = 4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate
    # A patch attends to those of its own two frames.
    attended = 4 * tower.depth * tower.hidden * times * (patches / times) ** 2
    vision = 2 * (tower.depth * block + embedding) * patches + attended
    return Operations(
        linears=2 * of.num_linears * length,
        attention=2 * of.layers * length**2 * of.query,
        lora=2 * anatomy.num_adapter(rank, targets) * length,
        logits=2 * of.num_embeddings * tokens.answer,
        vision=vision + 2 * tower.num_mergers * tokens.vision,
    )


def windows_per_step(p: Params) -> int:
    """Windows that an optimizer step learns from, over all processes."""
    return p.training.batch_size * p.training.gradient_accumulation_steps


def expected_seconds(p: Params, anatomy: Anatomy, tokens: Tokens) -> float:
    """Seconds of an optimizer step on `training.num_processes` cards, by arithmetic alone."""
    of_window = operations(
        anatomy, tokens, p.processing.sequence_length, p.model.lora_rank, p.model.lora_targets
    )
    work = windows_per_step(p) * of_window.step(p.training.gradient_checkpointing)
    return work / (CARD_FLOPS * UTILISATION * p.training.num_processes)


def probe_of(trained: Trained) -> dict[str, Any]:
    """What a training of a few steps found, as values of a `Probe`; its first step warmed up."""
    timed = trained.metrics[1:] or trained.metrics
    return {
        "seconds_per_step": sum(line["seconds"] for line in timed) / len(timed),
        "cpu_seconds_per_step": sum(line["cpu_seconds"] for line in timed) / len(timed),
        "peak_bytes": round(1e9 * trained.figures["measured"]["memory_gb"]),
    }


def after(p: Params, probe: Probe, steps: int, device: str = "cuda") -> dict[str, float]:
    """Figures of the whole training, from its first steps."""
    hours = steps * probe.seconds_per_step / 3600
    figures = {
        "memory_gb": round(probe.peak_bytes / 1e9, 3),
        "seconds": round(steps * probe.seconds(device), 1),
        "train_hours": round(hours, 3),
    }
    return figures | cost(p, hours)


def cost(p: Params, hours: float) -> dict[str, float]:
    """What so many hours cost, where `run.price_per_hour` is set."""
    price = p.run.price_per_hour
    return {} if price is None else {"train_cost": round(price * hours, 2)}


def compared(
    predicted: Mapping[str, float], measured: Mapping[str, float], device: str = "cuda"
) -> list[tuple[str, str, str]]:
    """Rows of predicted against measured, for those of memory and time that both have.

    The error is predicted less measured, as a share of what was measured.
    """
    time_label = "CPU time of training" if device == "cpu" else "time to train"
    shown = {
        "memory_gb": ("peak memory", lambda value: gigabytes(1e9 * value)),
        "seconds": (time_label, lambda value: f"{value:,.0f} s"),
    }
    rows = []
    for name, (label, in_words) in shown.items():
        if name in predicted and measured.get(name):
            told, found = predicted[name], measured[name]
            both = f"{in_words(told)} predicted, {in_words(found)} measured"
            rows.append((label, f"{100 * (told / found - 1):+.0f} %", both))
    return rows
