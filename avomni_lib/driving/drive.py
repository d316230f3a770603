"""Drives a run's policies through the rendered world, several episodes side by side.

Each drive is a file of its own, written when it has ended: a run that is killed goes on with those
that are missing. The worlds are none that a clip was rendered from: their seeds begin at
`FIRST_SEED`.
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

from avomni_lib import files, own_code
from avomni_lib.dataset.cameras import grid
from avomni_lib.driving import ladder
from avomni_lib.driving.episode import Episode
from avomni_lib.driving.ladder import Driven
from avomni_lib.driving.policies import HZ, ModelPolicy, Observation, Policy, check, policy, several
from avomni_lib.driving.terms import Seen, terms
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run.build import description
from avomni_lib.evaluation.scores import MODEL
from avomni_lib.live.answerer import Answerer, adapter_folder
from avomni_lib.live.subject import front_camera
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan

if TYPE_CHECKING:
    from avomni_world.driving.env import DriveEnv

FIRST_SEED = 3_000_000  # far from those of published clips and of the tiny base's drives
EPISODES = "episodes"  # the folder of the drives
OF_MODEL = (MODEL, "blind")
CLIP_SECONDS = 8.0  # of the world that a drive begins in
FORMAT = 1


@dataclass(frozen=True)
class Drive:
    """One drive as it was kept.

    Attributes:
        episode: What happened.
        event: That was called for, or `none`.
        pictures: (n, height, width, 3) uint8 of the front camera, one a second; n is 0 but for the
            model.
        note: What has to be known of how the policy drives; empty where there is nothing.
    """

    episode: Episode
    event: str
    pictures: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Drives:
    """All drives of a run, and what they are worth.

    Attributes:
        drives: Policy -> its drives, in the order of their seeds.
        scored: The ladder of policies.
        notes: Policy -> what has to be known of how it drives.
    """

    drives: Mapping[str, Sequence[Drive]]
    scored: Driven
    notes: Mapping[str, str]

    @property
    def figures(self) -> dict[str, Any]:
        """Of `result.json`: those of the ladder, and the ladder of each event where there are
        several."""
        events = {each.episode.seed: each.event for own in self.drives.values() for each in own}
        figures = {**self.scored.figures, "notes": dict(self.notes)}
        if len(names := dict.fromkeys(events.values())) > 1:
            scores = self.scored.scores
            figures["by_event"] = {
                name: ladder.figures(scores[scores["seed"].map(events) == name])["drive"]
                for name in names
            }
        return figures

    def write(self, path: Path) -> Path:
        """Write the scores of all drives, from which `ladder.figures` makes the figures again."""
        with files.write_whole(path) as file:
            self.scored.scores.to_parquet(file)
        return path

    def ends(self, name: str = MODEL) -> pd.DataFrame:
        """How each drive of a policy ended, a row a seed, the worst first.

        The columns of `over_time` are those of the failure's moment, or of the last one.
        """
        rows = []
        for each in self.drives[name]:
            worth, table = terms(each.episode), over_time(each)
            at = table[table.time_s <= (np.inf if worth.cut_s is None else worth.cut_s + 1e-9)]
            row = {"event": each.event, "scene_score": worth.scene_score, "failure": worth.failure}
            rows.append({"seed": each.episode.seed, **row, **at.iloc[-1]})
        return pd.DataFrame(rows).set_index("seed").sort_values(["scene_score", "time_s"])

    def of(self, name: str, seed: int) -> Drive:
        """One policy's drive in the world of a seed."""
        return next(each for each in self.drives[name] if each.episode.seed == seed)


def over_time(drive: Drive) -> pd.DataFrame:
    """How a drive went, a row each 0.1 s: what it left the road for.

    Columns: `time_s`; `speed_mps`, and `recorded_mps` of the recorded drive at the same time;
    `left_m` of the lane's middle, of the box's middle; `turned_deg` to the left of the lane.
    """
    episode = drive.episode
    seen = Seen(episode)
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
    """Seed of each episode -> its event, in turn."""
    num, events = p.driving.num_episodes or 0, p.driving.events
    first = FIRST_SEED + 10_000 * p.run.seed
    return {first + n: events[n % len(events)] for n in range(num)}


def plan(p: Params) -> Plan:
    """What 08 drives; nothing is loaded.

    Raises:
        AvomniError: no drive is asked for, the simulator is not installed, the model's answers are
            no paths, or there is no adapter.
    """
    _refuse(p)
    asked, world = p.driving, p.dataset.world
    num, decisions = len(seeds_of(p)), round(asked.seconds * HZ)
    model = [name for name in asked.policies if name in OF_MODEL]
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
    if MODEL in model and num < ladder.FEWEST_CLIPS:
        warnings.append(
            f"{num} episodes are too few for a claim: raise driving.num_episodes to "
            f"{ladder.FEWEST_CLIPS} or more"
        )
    figures = {"episodes": num, "policies": list(asked.policies), "seconds": asked.seconds}
    return Plan("what 08_drive will do", rows, warnings, figures)


def drive(p: Params, folder: Path, progress: type[Bar] = Bar) -> Drives:
    """Let every policy drive every episode, or take the drives that are there.

    Args:
        folder: Drives are kept in its `episodes`.

    Raises:
        AvomniError: as `plan`; a policy of the user's own fails.
    """
    _refuse(p)
    kept, seeds = folder / EPISODES, seeds_of(p)
    kept.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def answerer() -> Answerer:
        return Answerer(p)

    drives: dict[str, list[Drive]] = {}
    notes = {}
    with progress(total=len(p.driving.policies) * len(seeds), unit="drive", label="driving") as bar:
        for name in p.driving.policies:
            recipe = _recipe(p, name)
            own = {seed: _read(_file(kept, name, seed), recipe | {"seed": seed}) for seed in seeds}
            missing = [seed for seed, each in own.items() if each is None]
            bar.update(len(seeds) - len(missing), name)
            if missing:
                driver = Expert() if name == "expert" else policy(name, p, answerer)
            for first in range(0, len(missing), p.driving.batch_size):
                batch = missing[first : first + p.driving.batch_size]
                for made in _drive_batch(p, driver, {seed: seeds[seed] for seed in batch}, name):
                    seed = made.episode.seed
                    own[seed] = made
                    _write(_file(kept, name, seed), made, recipe | {"seed": seed})
                    bar.update(1, name)
            drives[name] = [each for each in own.values() if each is not None]
            if note := drives[name][0].note:
                notes[name] = note
    episodes = {name: [each.episode for each in own] for name, own in drives.items()}
    return Drives(drives, ladder.driven(episodes, p.run.seed), notes)


class Expert:
    """The driver who knows the road, from the world itself."""

    name, sees = "expert", False
    note = "is told the road and where everybody is"

    def __init__(self) -> None:
        self.envs: Mapping[int, DriveEnv] = {}

    def start(self, number: int, reference: np.ndarray) -> None:
        pass

    def __call__(self, observation: Observation, number: int = 0) -> np.ndarray:
        from avomni_world.driving import expert

        return np.asarray(expert.waypoints(self.envs[number]), np.float64)


def _drive_batch(
    p: Params, driver: Policy, events: Mapping[int, str], name: str
) -> Iterator[Drive]:
    """Drive the episodes of some seeds side by side; yields each when it has ended."""
    world, front = p.dataset.world, grid(p.vision.cameras).cameras.index(front_camera(p))
    envs = {seed: _environment(p, driver.sees) for seed in events}
    if isinstance(driver, Expert):
        driver.envs = envs
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
            for seed, action in several(driver, seen).items():
                env = envs[seed]
                if name == MODEL and env.step_idx % HZ == 0:
                    pictures[seed].append(seen[seed]["cameras"][front].copy())
                seen[seed], _, is_lost, is_over, _ = env.step(action)
                if is_lost or is_over:
                    del seen[seed]
                    shown = np.array(pictures[seed], np.uint8)
                    shown = shown.reshape(-1, world.height, world.width, 3)
                    yield Drive(env.episode(), events[seed], shown, driver.note)
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
    if any(name in OF_MODEL for name in p.driving.policies):
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
    """What a policy's drives follow from; a kept drive of another recipe is driven again."""
    world, asked = p.dataset.world, p.driving
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "policy": name,
        "world": [world.town, world.width, world.height, CLIP_SECONDS],
        "driving": [asked.seconds, asked.traffic, list(asked.events), p.run.seed],
    }
    if own_code.is_reference(name):
        recipe["code"] = own_code.find(name, "driving.policies").sha256
    if name in OF_MODEL:
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


def _write(path: Path, made: Drive, recipe: Mapping[str, Any]) -> None:
    fields = dataclasses.asdict(made.episode)
    scalars = {name: fields.pop(name) for name in ("seed", "policy", "lane_width")}
    about = {"recipe": recipe, "note": made.note, "event": made.event}
    text = json.dumps(about | scalars)
    with files.write_whole(path) as file:
        np.savez_compressed(file, about=np.array(text), pictures=made.pictures, **fields)


def _read(path: Path, recipe: Mapping[str, Any]) -> Drive | None:
    """A kept drive; None where there is none of this recipe, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["recipe"] != recipe:
                return None
            arrays = {name: stored[name] for name in stored.files if name != "about"}
        pictures = arrays.pop("pictures")
        sizes = {name: tuple(arrays.pop(name).tolist()) for name in ("size", "drivable")}
        scalars = {name: about[name] for name in ("seed", "policy", "lane_width")}
        return Drive(Episode(**arrays, **sizes, **scalars), about["event"], pictures, about["note"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
