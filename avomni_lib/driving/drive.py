"""Drives a run's policies through the rendered world, several episodes side by side.

Each drive is written to its own file when it ends, so a run that is killed resumes with the
missing ones. Seeds of the worlds start at `FIRST_SEED`: no clip was rendered from any of them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from avomni_lib import files
from avomni_lib.dataset.cameras import grid
from avomni_lib.driving import ladder
from avomni_lib.driving.episode import Episode
from avomni_lib.driving.ladder import DriveScores
from avomni_lib.driving.policies import HZ, ModelPolicy, Observation, Policy, check, policy
from avomni_lib.driving.scores import SharedGeometry, terms
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run.build import description
from avomni_lib.evaluation.claims import FEWEST_CLIPS
from avomni_lib.evaluation.scores import MODEL
from avomni_lib.live.answerer import Answerer, adapter_folder
from avomni_lib.params import Params, user_code
from avomni_lib.plan import Bar, Plan

if TYPE_CHECKING:
    from avomni_world.driving.env import DriveEnv

FIRST_SEED = 3_000_000  # far from those of published clips and of the tiny base's drives
EPISODES = "episodes"  # subfolder that holds the drives
MODEL_POLICIES = (MODEL, "blind")
CLIP_SECONDS = 8.0  # length of the scripted world in which a drive starts
FORMAT = 1


@dataclass(frozen=True)
class StoredDrive:
    """One stored drive.

    Attributes:
        event: Name of the scripted event, or `none`.
        pictures: (n, height, width, 3) uint8 RGB of the front camera, one a second; n is 0 for
            every policy but the model.
        note: A caveat about the policy for the reader of the results; may be empty.
    """

    episode: Episode
    event: str
    pictures: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class RunDrives:
    """All drives of a run and their scores.

    Attributes:
        drives: Policy -> its drives, in the order of their seeds.
        notes: Policy -> a caveat about it, for policies that have one.
    """

    drives: Mapping[str, Sequence[StoredDrive]]
    scored: DriveScores
    notes: Mapping[str, str]

    @property
    def figures(self) -> dict[str, Any]:
        """Figures for `result.json`: the ladder's, plus a ladder per event if there are several."""
        events = {
            drive.episode.seed: drive.event for drives in self.drives.values() for drive in drives
        }
        figures = {**self.scored.figures, "notes": dict(self.notes)}
        if len(names := dict.fromkeys(events.values())) > 1:
            scores = self.scored.scores
            figures["by_event"] = {
                name: ladder.figures(scores[scores["seed"].map(events) == name])["drive"]
                for name in names
            }
        return figures

    def write(self, path: Path) -> Path:
        """Write the scores of all drives, from which `ladder.figures` recomputes the figures."""
        with files.write_whole(path) as file:
            self.scored.scores.to_parquet(file)
        return path

    def ends(self, name: str = MODEL) -> pd.DataFrame:
        """How each drive of a policy ended, one row per seed, the worst first.

        The columns of `over_time` hold the values at the first event, or at the end without one.
        """
        rows = []
        for drive in self.drives[name]:
            scores, table = terms(drive.episode), over_time(drive)
            end_s = np.inf if scores.cut_s is None else scores.cut_s + 1e-9
            row = {
                "seed": drive.episode.seed,
                "event": drive.event,
                "scene_score": scores.scene_score,
                "failure": scores.failure,
            }
            rows.append(row | dict(table[table.time_s <= end_s].iloc[-1]))
        return pd.DataFrame(rows).set_index("seed").sort_values(["scene_score", "time_s"])

    def of(self, name: str, seed: int) -> StoredDrive:
        """The drive of one policy in the world of one seed."""
        return next(drive for drive in self.drives[name] if drive.episode.seed == seed)


def over_time(drive: StoredDrive) -> pd.DataFrame:
    """The course of a drive, one row per 0.1 s.

    Columns: `time_s`; `speed_mps`, and `recorded_mps` of the recorded drive at the same time;
    `left_m`, the offset of the box's centre to the left of the lane centre; `turned_deg`, the
    heading relative to the lane, positive to the left.
    """
    episode = drive.episode
    seen = SharedGeometry(episode)
    recorded = episode.reference[: len(episode.ego), 3]
    return pd.DataFrame(
        {
            "time_s": episode.time_s,
            "speed_mps": episode.ego[:, 3],
            "recorded_mps": recorded,
            "left_m": seen.middle_m,
            "turned_deg": np.degrees(seen.turned_rad),
        }
    )


def seeds_of(p: Params) -> dict[int, str]:
    """Seed -> event of each episode; events are assigned in turn."""
    num, events = p.driving.num_episodes or 0, p.driving.events
    first = FIRST_SEED + 10_000 * p.run.seed
    return {first + n: events[n % len(events)] for n in range(num)}


def plan(p: Params) -> Plan:
    """The plan of 08_drive; nothing is loaded.

    Raises:
        AvomniError: no drive is asked for, the simulator is not installed, the model's target
            contains no path, or there is no adapter.
    """
    _refuse(p)
    asked, world = p.driving, p.dataset.world
    num, decisions = len(seeds_of(p)), round(asked.seconds * HZ)
    model = [name for name in asked.policies if name in MODEL_POLICIES]
    hop_s = (asked.hop or p.live.hop) / p.processing.sample_hz
    rows = [
        ("policies", str(len(asked.policies)), ", ".join(asked.policies)),
        ("episodes", f"{num} each", f"{asked.seconds:g} s, {decisions} decisions; {world.town}"),
        ("traffic", asked.traffic, f"events in turn: {', '.join(asked.events)}"),
    ]
    if model:
        answers = int(num * asked.seconds / hop_s) * (MODEL in model)
        note = f"one every {hop_s:g} s of a drive, {asked.batch_size} drives side by side"
        rows.append(("answers", f"{answers:,} at most", note))
    warnings = []
    if MODEL in model and num < FEWEST_CLIPS:
        warnings.append(
            f"{num} episodes are too few for a claim: raise driving.num_episodes to "
            f"{FEWEST_CLIPS} or more"
        )
    figures = {"episodes": num, "policies": list(asked.policies), "seconds": asked.seconds}
    return Plan("what 08_drive will do", rows, warnings, figures)


def drive(p: Params, folder: Path, progress: type[Bar] = Bar) -> RunDrives:
    """Drive every episode with every policy; drives that are already stored are reused.

    Args:
        folder: The stage's folder; drives are stored in its subfolder `episodes`.

    Raises:
        AvomniError: as `plan`; a user's policy fails.
    """
    _refuse(p)
    kept, seeds = folder / EPISODES, seeds_of(p)
    kept.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def answerer() -> Answerer:
        return Answerer(p)

    drives: dict[str, list[StoredDrive]] = {}
    notes = {}
    with progress(total=len(p.driving.policies) * len(seeds), unit="drive", label="driving") as bar:
        for name in p.driving.policies:
            recipe = _recipe(p, name)
            stored = {
                seed: _read(_file(kept, name, seed), recipe | {"seed": seed}) for seed in seeds
            }
            missing = [seed for seed, drive in stored.items() if drive is None]
            bar.update(len(seeds) - len(missing), name)
            if missing:
                driver = None if name == "expert" else policy(name, p, answerer)
            for first in range(0, len(missing), p.driving.batch_size):
                batch = missing[first : first + p.driving.batch_size]
                for made in _drive_batch(p, driver, {seed: seeds[seed] for seed in batch}, name):
                    seed = made.episode.seed
                    stored[seed] = made
                    _write(_file(kept, name, seed), made, recipe | {"seed": seed})
                    bar.update(1, name)
            drives[name] = [drive for drive in stored.values() if drive is not None]
            if note := drives[name][0].note:
                notes[name] = note
    episodes = {name: [drive.episode for drive in driven] for name, driven in drives.items()}
    return RunDrives(drives, ladder.driven(episodes, p.run.seed), notes)


class Expert(Policy):
    """A policy with access to the road and all actors of its environments."""

    name = "expert"

    def __init__(self, envs: Mapping[int, DriveEnv]) -> None:
        self._envs = envs

    @property
    def note(self) -> str:
        return "knows the road and the positions of all actors"

    def __call__(self, observation: Observation, number: int = 0) -> np.ndarray:
        from avomni_world.driving import expert

        return np.asarray(expert.waypoints(self._envs[number]), np.float64)


def _drive_batch(
    p: Params, driver: Policy | None, events: Mapping[int, str], name: str
) -> Iterator[StoredDrive]:
    """Drive the episodes of some seeds side by side; yields each drive when it ends.

    Args:
        driver: None is the expert.
    """
    world, layout = p.dataset.world, grid(p.vision.cameras)
    front = layout.cameras.index(layout.front)
    envs = {seed: _environment(p, driver is not None and driver.sees) for seed in events}
    driver = Expert(envs) if driver is None else driver
    seen: dict[int, Any] = {}
    pictures: dict[int, list[np.ndarray]] = {seed: [] for seed in envs}
    try:
        for seed, env in envs.items():
            event = None if events[seed] == "none" else events[seed]
            seen[seed], info = env.reset(seed=seed, options={"event": event, "policy": name})
            driver.start(seed, env.recorded(np.arange(env.num_steps + 1) / HZ))
            if isinstance(driver, ModelPolicy):
                ego = seen[seed]["ego"]
                past = info["past_cameras"] if driver.sees else [None] * (len(ego) - 1)
                driver.look_back(seed, past, ego)
        while seen:
            for seed, action in driver.several(seen).items():
                env = envs[seed]
                if name == MODEL and env.step_idx % HZ == 0:
                    pictures[seed].append(seen[seed]["cameras"][front].copy())
                seen[seed], _, is_lost, is_over, _ = env.step(action)
                if is_lost or is_over:
                    del seen[seed]
                    shown = np.array(pictures[seed], np.uint8)
                    shown = shown.reshape(-1, world.height, world.width, 3)
                    yield StoredDrive(env.episode(), events[seed], shown, driver.note)
    finally:
        for env in envs.values():
            env.close()


def _refuse(p: Params) -> None:
    if not p.driving.num_episodes:
        raise AvomniError(
            "no drive is asked for",
            where="driving.num_episodes",
            fix="set it to the drives of each policy, 30 say",
        )
    for package in ("gymnasium", "panda3d"):
        if importlib.util.find_spec(package) is None:
            raise AvomniError(
                f"the simulator needs {package}, which is not installed",
                where="driving",
                fix="pip install -e '.[world]'",
            )
    if any(name in MODEL_POLICIES for name in p.driving.policies):
        check(p)
        adapter_folder(p)


def _environment(p: Params, sees: bool) -> DriveEnv:
    from avomni_world.driving.env import DriveEnv

    world = p.dataset.world
    return DriveEnv(
        town=world.town,
        cameras=p.vision.cameras if sees else None,
        width=world.width,
        height=world.height,
        traffic=p.driving.traffic,
        seconds=p.driving.seconds,
        clip_seconds=CLIP_SECONDS,
    )


def _recipe(p: Params, name: str) -> dict[str, Any]:
    """Everything that a policy's drives depend on; a stored drive with another recipe is redone."""
    world, asked = p.dataset.world, p.driving
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "policy": name,
        "world": [world.town, world.width, world.height, CLIP_SECONDS],
        "driving": [asked.seconds, asked.traffic, list(asked.events), p.run.seed],
    }
    if user_code.is_reference(name):
        recipe["code"] = user_code.find(name, "driving.policies").sha256
    if name in MODEL_POLICIES:
        weights = sorted(adapter_folder(p).glob("*.safetensors"))
        recipe["adapter"] = [files.sha256_once(path) for path in weights]
        recipe["hop"] = [asked.hop or p.live.hop, asked.smoothing]
        recipe["answer"] = p.values(
            "vision.cameras", "processing", "prompt", "model", "training.target", "evaluation"
        )
    if name == "ego_motion":
        recipe["cache"] = files.hash_json(description(p))
    return json.loads(json.dumps(recipe))


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(':', '..')}_{seed}.npz"


def _write(path: Path, made: StoredDrive, recipe: Mapping[str, Any]) -> None:
    fields = dataclasses.asdict(made.episode)
    scalars = {name: fields.pop(name) for name in ("seed", "policy", "lane_width")}
    about = {"recipe": recipe, "note": made.note, "event": made.event}
    text = json.dumps(about | scalars)
    with files.write_whole(path) as file:
        np.savez_compressed(file, about=np.array(text), pictures=made.pictures, **fields)


def _read(path: Path, recipe: Mapping[str, Any]) -> StoredDrive | None:
    """A stored drive; None if there is none, it has another recipe, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["recipe"] != recipe:
                return None
            arrays = {name: stored[name] for name in stored.files if name != "about"}
        pictures = arrays.pop("pictures")
        sizes = {name: tuple(arrays.pop(name).tolist()) for name in ("size", "drivable")}
        scalars = {name: about[name] for name in ("seed", "policy", "lane_width")}
        return StoredDrive(
            Episode(**arrays, **sizes, **scalars), about["event"], pictures, about["note"]
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
