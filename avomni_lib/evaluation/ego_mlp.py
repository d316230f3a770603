"""What a small network makes of the car's own motion alone: a model with eyes should do better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import HISTORY_STEPS, STEP_S, Trajectory
from avomni_lib.training.targets import Said

NUMBERS = ("speed_mps", "displacement_m", "waypoints_m")
WORDS = ("along", "across")
NUM_FEATURES = 4 * HISTORY_STEPS + 1

WIDTH = 64
BATCH, STEPS, STEPS_UNWATCHED = 2048, 1500, 300
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2
LOOK_EVERY, PATIENCE = 20, 300  # steps
HELD_SHARE = 0.15
RIDGE = 1.0
LEAST_SPREAD = 1e-3  # m, rad or m/s: what varies less over the training windows tells nothing
FURTHEST = 6.0  # spreads from the mean: nothing farther out is believed


@dataclass(frozen=True)
class EgoMlp:
    """A linear part in closed form and, for what it leaves, two hidden layers; made by `fit`.

    Attributes:
        centre, scale: (65,) float64 of the features; scale 0 drops one.
        linear: (65, D) float64, standardised features -> the D numbers of an answer.
        middle, spread: (D,) float64 of the numbers, and of what the linear part leaves of them.
        layers: (in, out) weights and (out,) biases, float64; the last gives D numbers and the
            scores of the words.
        numbers: Fields of `Said` that are said in numbers.
        words: Field of `Said` -> the words it knows.
    """

    centre: np.ndarray
    scale: np.ndarray
    linear: np.ndarray
    middle: np.ndarray
    spread: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    numbers: tuple[str, ...]
    words: dict[str, tuple[str, ...]]

    @classmethod
    def fit(
        cls,
        pasts: Sequence[Trajectory],
        saids: Sequence[Said],
        seed: int,
        clip_ids: Sequence[str] | None = None,
    ) -> EgoMlp:
        """Learn what follows from a past; the same arguments give the same network.

        Args:
            pasts: Of the training windows, each up to where the target's history ends.
            saids: What is true of them. What all of them have is learnt: speed and displacement,
                waypoints, the two words of the manoeuvre; a cause never is.
            clip_ids: Of the windows. With two clips or more, training stops where the error on a
                seventh of the clips is least; those are not learnt from.

        Raises:
            AvomniError: there are no training windows, or nothing in them that motion could tell.
        """
        if not saids:
            raise AvomniError(
                "no training window for the network on past motion to learn from",
                where="split train of the cache",
                fix="take more clips (download.target_chunks)",
            )
        numbers, words = _known(saids)
        if not numbers and not words:
            raise AvomniError(
                "the training windows say nothing that a network could tell from past motion",
                where="training.target",
                fix="leave this baseline out for targets that only name a cause",
            )
        features = np.array([_features(past) for past in pasts])
        true = np.array([_flat(said, numbers) for said in saids])
        classes = {
            name: np.array([known.index(getattr(said, name)) for said in saids])
            for name, known in words.items()
        }
        held = _held(len(saids), clip_ids, seed)
        centre = features[~held].mean(axis=0)
        spread = features[~held].std(axis=0)
        scale = np.where(spread > LEAST_SPREAD, 1 / np.maximum(spread, LEAST_SPREAD), 0.0)
        inputs = _standard(features, centre, scale)
        middle = true[~held].mean(axis=0)
        linear = _ridge(inputs[~held], true[~held] - middle)
        left = true - middle - inputs @ linear
        spread = np.maximum(left[~held].std(axis=0), 1e-9)
        layers = _train(inputs, left / spread, classes, words, held, seed)
        return cls(centre, scale, linear, middle, spread, layers, numbers, words)

    def says(self, past: Trajectory) -> Said:
        """What `Target.write` takes for the fields that were learnt; the others are None."""
        inputs = _standard(_features(past), self.centre, self.scale)
        hidden = inputs
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        out = hidden @ self.layers[-1][0] + self.layers[-1][1]
        num = len(self.middle)
        values = self.middle + inputs @ self.linear + out[:num] * self.spread
        said: dict = {}
        for name in self.numbers:
            if name == "waypoints_m":
                said[name] = tuple(map(tuple, values.reshape(-1, 2).tolist()))
            else:
                said[name], values = max(float(values[0]), 0.0), values[1:]
        if "displacement_m" in said:
            said["action_m"] = said["displacement_m"]
        scores = out[num:]
        for name, known in self.words.items():
            said[name] = known[int(scores[: len(known)].argmax())]
            scores = scores[len(known) :]
        return Said(**said)


def _known(saids: Sequence[Said]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The fields that all have: those of numbers, and those of words with the words."""

    def all_have(name: str) -> bool:
        return all(getattr(said, name) is not None for said in saids)

    words = {name: {getattr(said, name) for said in saids} for name in WORDS if all_have(name)}
    return tuple(filter(all_have, NUMBERS)), {key: tuple(sorted(of)) for key, of in words.items()}


def _features(past: Trajectory) -> np.ndarray:
    """(65,) float64: how far the last 16 poses are from constant velocity, which there are, speed.

    What constant velocity would have been fills in for poses that are missing, so they are 0.
    """
    poses = np.zeros((HISTORY_STEPS, 4))
    steps = np.rint(past.t_s / STEP_S).astype(int)
    kept = (steps < 0) & (steps >= -HISTORY_STEPS)
    straight = past.speed_mps * past.t_s[kept]
    poses[steps[kept], :2] = past.xy_m[kept] - np.stack([straight, 0 * straight], axis=1)
    poses[steps[kept], 2] = past.yaw_rad[kept]
    poses[steps[kept], 3] = 1.0
    return np.append(poses.ravel(), past.speed_mps)


def _flat(said: Said, numbers: Sequence[str]) -> np.ndarray:
    # Speed and displacement before the waypoints, as `EgoMlp.says` takes them apart.
    parts = [np.ravel(getattr(said, name)) for name in numbers]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def _standard(features: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((features - centre) * scale, -FURTHEST, FURTHEST)


def _ridge(inputs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(F, D) weights of least squares, held small: (XᵀX + λ)⁻¹ Xᵀ Y."""
    square = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
    return np.linalg.solve(square, inputs.T @ values)


def _held(num: int, clip_ids: Sequence[str] | None, seed: int) -> np.ndarray:
    """(num,) bool: the windows of the clips that only tell when to stop."""
    clips = sorted(set(() if clip_ids is None else clip_ids))
    if len(clips) < 2:
        return np.zeros(num, dtype=bool)
    count = max(1, round(HELD_SHARE * len(clips)))
    held = np.random.default_rng(seed).choice(clips, count, replace=False)
    return np.isin(np.array(clip_ids), held)


def _train(
    inputs: np.ndarray,
    left: np.ndarray,
    classes: dict[str, np.ndarray],
    words: dict[str, tuple[str, ...]],
    held: np.ndarray,
    seed: int,
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The layers, trained by AdamW on the CPU; see `EgoMlp` for shapes."""
    import torch
    from torch import nn

    num = left.shape[1]
    heads = [num, *map(len, words.values())]
    rows = np.flatnonzero(~held)
    x, numbers = (torch.tensor(each, dtype=torch.float32) for each in (inputs, left))
    labels = [torch.tensor(each) for each in classes.values()]

    def loss_of(chosen: torch.Tensor) -> torch.Tensor:
        said, *scores = net(x[chosen]).split(heads, dim=1)
        loss = nn.functional.smooth_l1_loss(said, numbers[chosen], beta=0.1) if num else 0.0
        for score, label in zip(scores, labels, strict=True):
            loss = loss + nn.functional.cross_entropy(score, label[chosen])
        return loss

    def weights() -> list[torch.Tensor]:
        return [each.detach().clone() for each in net.parameters()]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(WIDTH, sum(heads))
        # It starts as the linear part alone.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first, second = nn.Linear(inputs.shape[1], WIDTH), nn.Linear(WIDTH, WIDTH)
        net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        steps = STEPS if held.any() else STEPS_UNWATCHED
        optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, best_loss, best_step = weights(), np.inf, 0
        for step in range(steps):
            if held.any() and step % LOOK_EVERY == 0:
                with torch.no_grad():
                    loss = float(loss_of(torch.from_numpy(np.flatnonzero(held))))
                if loss < best_loss:
                    best, best_loss, best_step = weights(), loss, step
                elif step - best_step >= PATIENCE:
                    break
            chosen = torch.from_numpy(rows)
            if len(rows) > BATCH:
                chosen = chosen[torch.randint(len(rows), (BATCH,))]
            optimizer.zero_grad()
            loss_of(chosen).backward()
            optimizer.step()
            schedule.step()
        best = best if held.any() else weights()
    arrays = [each.numpy().astype(np.float64) for each in best]
    return tuple((arrays[i].T, arrays[i + 1]) for i in range(0, len(arrays), 2))
