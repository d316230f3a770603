"""The drives that the tiny base is trained on: in its own town, and in random towns.

A drive is a function of its number. Its pictures are encoded as H.264 and resized like those of a
published clip. Even numbers are drives through the town `meadow`; odd ones go through a random town
generated for this drive: random colours, objects, speeds, camera heights and lenses. The town
`harbour`, which the demo adapts to, is not among them. Two of each four begin beside their lane or
turned away from it, and come back.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.etl.clip import tiling
from avomni_lib.etl.clip.trajectory import FUTURE_STEPS
from avomni_lib.etl.video import reader
from avomni_world.publish import recording
from avomni_world.scene import towns
from avomni_world.scene.drive import EGO_OFFSET_M
from avomni_world.scene.lens import PLACES, make_lens
from avomni_world.scene.render import Renderer
from avomni_world.scene.scenes import Scene, make_scene

GRID = cameras.grid("4-cam")
TILE = (48, 32)  # px, width and height of one camera in the grid
PICTURE = (128, 72)  # px of each camera's video, as params/demo.yaml publishes it
SAMPLE_HZ = 10.0
SECONDS = 8.0
HOME = "meadow"
FIRST_SEED = 1_000_000  # of the training drives; far from the small numbers used in params files
HELD_OUT_SEED = 2_000_000
LANE_AT_M = (6.0, 12.0, 24.0, 40.0)  # ahead in `HOME`, where the lane's position is taken
HARDEST_TURN = 5.4  # m/s² lateral at the highest speed, as in the named towns

THINGS_PER_100_M = {
    "house": 3.0,
    "block": 1.2,
    "warehouse": 2.0,
    "container": 5.0,
    "tree": 9.0,
    "conifer": 7.0,
    "bush": 8.0,
    "post": 5.0,
    "lamp": 4.0,
}


@dataclass(frozen=True)
class RecordedDrive:
    """One drive as the model sees it.

    Attributes:
        frames: (T, H, W, 3) uint8, the grid at `SAMPLE_HZ`.
        path_m: (T,) float64, length driven since the first frame.
        flow: (cameras,) float64. How fast the ground moves in each camera's picture relative to
            `HOME` at the same speed: 0.5 for a camera twice as high.
        zoom: float64, the focal length of the wide front camera relative to that in `HOME`.
        poses: (T + 64, 3) float64, x, y (m) and yaw (rad) at `SAMPLE_HZ` in the anchor frame; they
            continue for 6.4 s after the last picture.
        speeds: (T,) float64, m/s.
        lane: (T, 4) float64. The lane's centre to the left at `LANE_AT_M`, divided by that
            distance, as the picture in `HOME` would show it: a camera twice as high shows the lane
            at twice the distance in the same row, one with a longer lens farther out.
    """

    frames: np.ndarray
    path_m: np.ndarray
    flow: np.ndarray
    zoom: np.ndarray
    poses: np.ndarray
    speeds: np.ndarray
    lane: np.ndarray

    def speed_mps(self, first: int, last: int) -> float:
        """Mean speed between two frames."""
        return float(self.path_m[last] - self.path_m[first]) / (last - first) * SAMPLE_HZ


def random_town(seed: int) -> towns.Town:
    """A random town; no two look alike."""
    rng = np.random.default_rng([seed, 7])

    def colour(darkest: float, brightest: float, tint: float = 0.25) -> towns.Colour:
        shade = rng.uniform(darkest, brightest) * (1 + rng.uniform(-tint, tint, 3))
        red, green, blue = np.clip(shade, 0, 255).astype(int).tolist()
        return red, green, blue

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    fastest = float(rng.uniform(12.0, 30.0))
    tightest = max(40.0, fastest**2 / HARDEST_TURN)
    fov_deg = {120: between(100, 125), 30: between(25, 42), 70: between(62, 92)}
    return towns.Town(
        name=f"random {seed}",
        about="Made up for one drive.",
        speed_mps=(0.0, fastest),
        radius_m=(tightest, 3 * max(tightest, 55.0)),
        camera_rise_m=float(rng.uniform(-0.25, 1.5)),
        fov_deg={camera.name: fov_deg[camera.fov_deg] for camera in cameras.CAMERAS},
        sun=tuple(rng.uniform((-1, -1, 0.25), (1, 1, 1)).tolist()),
        ambient=float(rng.uniform(0.4, 0.7)),
        zenith=colour(50, 200, 0.4),
        horizon=colour(120, 235, 0.3),
        hills=colour(60, 150),
        asphalt=colour(55, 130, 0.12),
        shoulder=colour(80, 150),
        marks=colour(200, 250, 0.12),
        verge=colour(70, 150, 0.4),
        ground=colour(70, 150, 0.4),
        walls=tuple(colour(80, 220) for _ in range(4)),
        roofs=tuple(colour(50, 160, 0.4) for _ in range(3)),
        crowns=tuple(colour(50, 120, 0.4) for _ in range(3)),
        window=colour(60, 230),
        per_100_m={
            kind: float(most * rng.uniform(0.2, 1.0))
            for kind, most in THINGS_PER_100_M.items()
            if rng.random() < 0.5
        },
    )


def relative_flow(scene: Scene) -> np.ndarray:
    """(cameras,) how fast the ground moves in each picture relative to `HOME` at the same speed.

    A point of the ground seen y px below the horizon by a camera h above it moves v y² / (f h) px a
    second, so only the product of focal length and height matters.
    """
    home = towns.town(HOME)
    flow = []
    for camera in GRID.cameras:
        focal = make_lens(camera, scene.town, *PICTURE).fw[1]
        height = scene.mounts[camera.name].position[2]
        flow.append(
            make_lens(camera, home, *PICTURE).fw[1] * PLACES[camera.name][0][2] / (focal * height)
        )
    return np.array(flow)


def relative_zoom(scene: Scene) -> float:
    """The focal length of the wide front camera relative to that in `HOME`."""
    focal = make_lens(cameras.FRONT_WIDE, scene.town, *PICTURE).fw[1]
    return focal / make_lens(cameras.FRONT_WIDE, towns.town(HOME), *PICTURE).fw[1]


def lane_ahead(scene: Scene, times_s: np.ndarray, flow: float, zoom: float) -> np.ndarray:
    """(T, 4) position of the lane in the wide front camera's picture; see `RecordedDrive.lane`."""
    motion = scene.drive.at(times_s)
    ahead = np.array(LANE_AT_M) / flow
    along = motion["along"][:, None] + ahead
    points, _ = scene.road.place(along, np.full(along.shape, EGO_OFFSET_M))
    away = points - np.stack([motion["x"], motion["y"]], axis=-1)[:, None]
    yaw = motion["yaw"][:, None]
    left = away[..., 1] * np.cos(yaw) - away[..., 0] * np.sin(yaw)
    return np.asarray(left / ahead * zoom)


def record(scene: Scene, renderer: Renderer) -> RecordedDrive:
    """Record a drive through a scene: rendered, encoded, decoded and tiled as in the pipeline."""
    renderer.open(scene)
    count = round(scene.seconds * SAMPLE_HZ)
    videos = recording.encode(
        renderer.frames(np.arange(count) / SAMPLE_HZ), len(GRID.cameras), *PICTURE
    )
    placement = tiling.fit_tile(PICTURE, TILE, "stretch")
    # The frames are 1/10 s apart, which the file does not know, so they are requested by the file's
    # clock.
    times_us = np.rint(np.arange(count) * 1e6 / recording.FPS).astype(np.int64)
    tiles = {
        camera.name: placement.place(
            reader.read_frames(
                data, times_us, timestamps_us=times_us, size=placement.resized
            ).images
        )
        for camera, data in zip(GRID.cameras, videos, strict=True)
    }
    fine = np.arange(0, count * 10) / (10 * SAMPLE_HZ)
    speed = scene.drive.at(fine)["speed"]
    path = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(fine))])
    flow, zoom = relative_flow(scene), relative_zoom(scene)
    times_s = np.arange(count + FUTURE_STEPS) / SAMPLE_HZ
    motion = scene.drive.at(times_s)
    front = [camera.name for camera in GRID.cameras].index(cameras.FRONT_WIDE.name)
    return RecordedDrive(
        frames=tiling.compose(tiles, GRID),
        path_m=path[::10][:count],
        flow=flow,
        zoom=np.array(zoom),
        poses=np.stack([motion["x"], motion["y"], motion["yaw"]], axis=-1),
        speeds=motion["speed"][:count],
        lane=lane_ahead(scene, times_s[:count], flow[front], zoom),
    )


class RecordedDrives:
    """Drives by number, rendered when first requested and kept in a folder.

    Args:
        folder: Their folder; another run with the same folder reuses them.
        num_drives: Numbers 0 to num_drives - 1.
        seed: Of number 0.
        town: All in this town; None: even numbers in `HOME`, odd ones in random towns.
    """

    def __init__(
        self, folder: Path, num_drives: int, seed: int = FIRST_SEED, town: str | None = None
    ):
        self.folder, self.num_drives, self.seed, self.town = folder, num_drives, seed, town
        self._drives: dict[int, RecordedDrive] = {}

    def __len__(self) -> int:
        return self.num_drives

    def __getitem__(self, number: int) -> RecordedDrive:
        if not 0 <= number < self.num_drives:
            raise IndexError(number)
        if number not in self._drives:
            path = self.folder / f"{self.town or 'mixed'}_{self.seed + number}.npz"
            if not path.exists():
                drive = self._record(number)
                with files.write_whole(path) as file:
                    np.savez(file, **vars(drive))
            with np.load(path, allow_pickle=False) as stored:
                self._drives[number] = RecordedDrive(**stored)
        return self._drives[number]

    def _record(self, number: int) -> RecordedDrive:
        seed = self.seed + number
        town = self.town or (HOME if number % 2 == 0 else random_town(seed))
        strays = number % 4 >= 2
        return record(make_scene(seed, town, SECONDS, strays=strays), self._renderer)

    @functools.cached_property
    def _renderer(self) -> Renderer:
        return Renderer(*PICTURE, cameras=GRID.cameras)
