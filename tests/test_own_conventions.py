"""Poses in every frame and axes that `pack` knows give the same motion; others are refused.

A drive of known speed and turn is given in the conventions of other loggers, with and without
mistakes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import EGOMOTION_COLUMNS, Clip
from avomni_lib.dataset.own.pack import OwnClip, check, pack
from avomni_lib.errors import AvomniError
from tests.published_set import encode_video, frame_bits

CAMERAS = [camera.name for camera in cameras.GRIDS["4-cam"].cameras]
NUM_FRAMES, FPS = 60, 30
T_S = np.arange(-1.0, 12.0, 0.05)
PLACE = 52.52, 13.405, 35.0  # latitude, longitude, altitude
# WGS 84: semi-major axis and the square of the first eccentricity.
A_M, E2 = 6378137.0, 0.00669437999014


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    pictures = [frame_bits(0, 0, i, 96, 64) for i in range(NUM_FRAMES)]
    path.write_bytes(encode_video(pictures))
    return path


class Turn:
    """A left or right bend driven at a steady speed, from a given heading, on a level road.

    `side` is 1 for left. Everything is in the level map: x east, y north, z up.
    """

    def __init__(self, side: int = 1, heading: float = 0.4, speed: float = 9.0, bend: float = 0.09):
        self.side, self.speed = side, speed
        rate = side * bend
        self.heading = heading + rate * T_S
        x = speed / rate * (np.sin(self.heading) - np.sin(heading))
        y = -speed / rate * (np.cos(self.heading) - np.cos(heading))
        self.enu = np.stack([x, y, 0.02 * speed * T_S], axis=1)
        flat = np.stack([np.cos(self.heading), np.sin(self.heading)], axis=1)
        self.velocity = np.column_stack([speed * flat, np.full(len(T_S), 0.02 * speed)])
        # The car pitches up with the road.
        pitch = -np.arctan(0.02)
        self.turn = Rotation.from_euler(
            "ZY", np.stack([self.heading, np.full(len(T_S), pitch)], axis=1)
        )

    @property
    def compass(self) -> np.ndarray:
        return np.pi / 2 - self.heading


def geodetic(enu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 3) latitude, longitude, altitude and (K, 3) geocentric m of places around `PLACE`.

    In closed form, with Newton's method for the latitude; independent of PROJ.
    """
    lat, lon = np.radians(PLACE[:2])
    n = A_M / np.sqrt(1 - E2 * np.sin(lat) ** 2)
    zero = np.array(
        [
            (n + PLACE[2]) * np.cos(lat) * np.cos(lon),
            (n + PLACE[2]) * np.cos(lat) * np.sin(lon),
            (n * (1 - E2) + PLACE[2]) * np.sin(lat),
        ]
    )
    ecef = zero + enu @ east_north_up()
    lons = np.arctan2(ecef[:, 1], ecef[:, 0])
    flat = np.hypot(ecef[:, 0], ecef[:, 1])
    lats = np.arctan2(ecef[:, 2], flat * (1 - E2))
    for _ in range(6):
        n = A_M / np.sqrt(1 - E2 * np.sin(lats) ** 2)
        lats = np.arctan2(ecef[:, 2] + E2 * n * np.sin(lats), flat)
    height = flat / np.cos(lats) - A_M / np.sqrt(1 - E2 * np.sin(lats) ** 2)
    return np.stack([np.degrees(lats), np.degrees(lons), height], axis=1), ecef


def east_north_up() -> np.ndarray:
    """Rows east, north, up at `PLACE` in geocentric axes."""
    lat, lon = np.radians(PLACE[:2])
    east = -np.sin(lon), np.cos(lon), 0.0
    north = -np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)
    up = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    return np.array([east, north, up])


def ned(vectors: np.ndarray) -> np.ndarray:
    return np.stack([vectors[:, 1], vectors[:, 0], -vectors[:, 2]], axis=1)


def into_axes(turn: Rotation, columns: list[list[float]]) -> Rotation:
    """The rotation from axes of the car whose forward, left and up are these columns."""
    return turn * Rotation.from_matrix(np.array(columns, float).T).inv()


NED = Rotation.from_matrix([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
FRD = [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
RFU = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
RDF = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]


def clip_of(video: Path, drive: Turn, name: str = "drive", **values) -> OwnClip:
    arguments = {"t_s": T_S, "position_m": drive.enu}
    if "quaternion" not in values:
        arguments["heading_rad"] = drive.heading
    return OwnClip(name, dict.fromkeys(CAMERAS, video), **(arguments | values))


def written(drive: Turn) -> dict[str, dict]:
    """The arguments of the drive in each frame and axes, by name."""
    lat_lon, ecef = geodetic(drive.enu)
    to_ecef = Rotation.from_matrix(east_north_up().T)
    quaternion, north = drive.turn.as_quat(), ned(drive.enu)
    frd, rfu, rdf = (into_axes(drive.turn, axes) for axes in (FRD, RFU, RDF))
    signs = np.where(np.arange(len(T_S)) % 2, 1, -1)[:, None]
    of_wgs84 = {"frame": "wgs84", "position_m": lat_lon}
    of_ned = {"frame": "ned", "position_m": north}
    return {
        "enu heading": {},
        "enu heading, flat": {"position_m": drive.enu[:, :2]},
        "enu far away": {"position_m": drive.enu + (4.5e5, 5.8e6, 40)},
        "enu, sign of q": {"quaternion": quaternion * signs},
        "enu frd": {"quaternion": frd.as_quat(), "axes": "frd"},
        "enu rfu": {"quaternion": rfu.as_quat(), "axes": "rfu"},
        "enu camera": {"quaternion": rdf.as_quat(), "axes": "rdf"},
        "enu velocity": {"velocity_mps": drive.velocity},
        "ned": of_ned | {"heading_rad": drive.compass, "velocity_mps": ned(drive.velocity)},
        "ned, positive compass, flat": of_ned
        | {"position_m": north[:, :2], "heading_rad": drive.compass % (2 * np.pi)},
        "ned frd": of_ned | {"axes": "frd", "quaternion": (NED * frd).as_quat()},
        "wgs84": of_wgs84 | {"heading_rad": drive.compass, "velocity_mps": drive.velocity},
        "wgs84 flat": of_wgs84 | {"position_m": lat_lon[:, :2], "heading_rad": drive.compass},
        "wgs84 quaternion": of_wgs84 | {"quaternion": quaternion},
        "ecef frd": {
            "frame": "ecef",
            "axes": "frd",
            "position_m": ecef,
            "quaternion": (to_ecef * frd).as_quat(),
            "velocity_mps": to_ecef.apply(drive.velocity),
        },
        "given speed": {"speed_m_s": np.full(len(T_S), 9.1)},
    }


KINDS = list(written(Turn()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", (1, -1), ids=("left", "right"))
def test_every_frame_and_axes_give_the_same_motion(kind, side, video, tmp_path):
    drive = Turn(side)
    values = written(drive)[kind]
    is_flat = "quaternion" not in values
    packed = pack(tmp_path / "data", [clip_of(video, drive, **values)])
    [clip] = packed.clips
    # 59 frames of 1/30 s at 9 m/s; without pitch up to 0.2 m of height are not counted.
    assert clip.path_m == pytest.approx(9.0 * 59 / 30, rel=1e-3)
    assert clip.mean_mps == pytest.approx(9.0, rel=1e-3) == clip.max_mps
    assert clip.turn_deg == pytest.approx(side * np.degrees(0.09 * 59 / 30), abs=0.2)
    assert (clip.left_m > 0) == (side > 0) and clip.ahead_m == pytest.approx(17.5, abs=0.2)
    columns = Clip(packed.folder, Catalog.open(packed.folder), clip.clip_id).egomotion()
    at = int(np.argmin(np.abs(columns["timestamp"])))
    ahead = drive.enu - drive.enu[np.argmin(np.abs(T_S))]
    flat = np.array([ahead[:, 0], ahead[:, 1]]).T
    angle = drive.heading[np.argmin(np.abs(T_S))]
    seen = Rotation.from_euler("z", -angle).apply(np.column_stack([flat, ahead[:, 2]]))
    assert columns["x"][at] == 0
    assert columns["y"] == pytest.approx(seen[:, 1], abs=0.01)
    assert columns["x"] == pytest.approx(seen[:, 0], abs=0.01 if is_flat else 0.1)
    assert set(columns) == set(EGOMOTION_COLUMNS)


def wrong(drive: Turn) -> dict[str, tuple[str, str, dict]]:
    """Mistake -> (argument in the error, part of its fix, values of the clip)."""
    lat_lon, ecef = geodetic(drive.enu)
    q, enu, compass, heading = drive.turn.as_quat(), drive.enu, drive.compass, drive.heading
    frd, rfu, rdf = (into_axes(drive.turn, axes) for axes in (FRD, RFU, RDF))
    to_ecef = Rotation.from_matrix(east_north_up().T)
    wxyz, nine = [3, 0, 1, 2], np.full(len(T_S), 9.0)
    along = np.column_stack([nine, 0 * nine, 0 * nine])
    one_way = np.full(len(T_S), heading[len(T_S) // 2])
    repeated = lat_lon[np.arange(len(T_S)) // 20 * 20]
    north_down = (NED * frd).as_quat()
    in_ned = "yours turns into north, east, down"
    of_ned = {"frame": "ned", "position_m": ned(enu)}
    wgs84, by_compass = {"frame": "wgs84"}, {"frame": "wgs84", "heading_rad": compass}
    quaternion = {
        "right and down": ("axes='frd'", {"quaternion": frd.as_quat()}),
        "a camera's axes": ("axes='rdf'", {"quaternion": rdf.as_quat()}),
        "right, forward, up": ("axes='rfu'", {"quaternion": rfu.as_quat()}),
        "w first": ("yours is w, x, y, z", {"quaternion": q[:, wxyz]}),
        "w first, right and down": (
            "axes='frd', quaternion=quaternion[:, [1, 2, 3, 0]]",
            {"quaternion": frd.as_quat()[:, wxyz]},
        ),
        "the inverse": ("inverse", {"quaternion": drive.turn.inv().as_quat()}),
        "flu in a north-east-down map": (
            "frame='ned'",
            {"position_m": ned(enu), "quaternion": (NED * drive.turn).as_quat()},
        ),
        "flu given as frd": ("axes='flu'", {"quaternion": q, "axes": "frd"}),
        "latitudes and an attitude in north, east, down": (
            in_ned,
            wgs84 | {"axes": "frd", "position_m": lat_lon, "quaternion": north_down},
        ),
        "a map and an attitude in north, east, down": (in_ned, {"quaternion": north_down}),
    }
    heading_rad = {
        "compass": ("np.pi / 2 - heading_rad", {"heading_rad": compass}),
        "compass, positive": ("np.pi / 2 - heading_rad", {"heading_rad": compass % (2 * np.pi)}),
        "north, east as x, y": ("[:, [1, 0]]", {"position_m": enu[:, [1, 0, 2]]}),
        "degrees": ("np.radians(heading_rad)", {"heading_rad": np.degrees(compass) % 360}),
        "counter-clockwise in ned": (
            "np.pi / 2 - heading_rad",
            of_ned | {"heading_rad": heading},
        ),
        "counter-clockwise in wgs84": (
            "np.pi / 2 - heading_rad",
            wgs84 | {"position_m": lat_lon, "heading_rad": heading},
        ),
        "zero at north": ("heading_rad + np.pi / 2", {"heading_rad": heading - np.pi / 2}),
        "to the rear": ("heading_rad + np.pi", {"heading_rad": heading + np.pi}),
        "mirrored": ("-heading_rad", {"heading_rad": -heading}),
        "y to the right": ("-y for y", {"position_m": enu * (1, -1, 1)}),
        "constant": ("counter-clockwise", {"heading_rad": one_way}),
        "longitude, latitude": (
            "the first two columns the other way round",
            by_compass | {"position_m": lat_lon[:, [1, 0, 2]]},
        ),
    }
    position_m = {
        "geocentric as a map": (
            "frame='ecef'",
            {"position_m": ecef, "quaternion": (to_ecef * drive.turn).as_quat()},
        ),
        "geocentric as a map, headings": ("frame='ecef'", {"position_m": ecef}),
        "geocentric as degrees": ("frame='ecef'", wgs84 | {"position_m": ecef}),
        "a map as geocentric": ("another frame", {"frame": "ecef"}),
        "longitude beyond 90": (
            "latitude, longitude",
            wgs84 | {"position_m": lat_lon[:, [1, 0]] + (100, 0)},
        ),
        "degrees times 1e7": ("1e7", wgs84 | {"position_m": np.rint(lat_lon[:, :2] * 1e7)}),
        "metres as degrees": ("frame='enu'", wgs84 | {"position_m": enu + (4.5e5, 5.8e6, 0)}),
        "radians": ("np.degrees", by_compass | {"position_m": np.radians(lat_lon[:, :2])}),
        "latitude, longitude as metres": ("frame='wgs84'", {"position_m": lat_lon}),
        "longitude, latitude as metres": ("frame='wgs84'", {"position_m": lat_lon[:, [1, 0]]}),
        "degrees repeated for a second": ("frame='wgs84'", {"position_m": repeated}),
        "degrees in ned": (
            "frame='wgs84'",
            {"position_m": lat_lon, "frame": "ned", "heading_rad": compass},
        ),
        "kilometres": ("1000", {"position_m": enu / 1000}),
        "kilometres, but the height": ("1000", {"position_m": enu * (1e-3, 1e-3, 1)}),
        "centimetres": ("centimetres", {"position_m": enu * 100}),
        "y is the height": (
            "",
            {"position_m": enu[:, [0, 2, 1]] * (1, 1, -1), "heading_rad": 0 * T_S},
        ),
    }
    speed_m_s = {
        "degrees": ("frame='wgs84'", {"position_m": lat_lon[:, :2], "speed_m_s": nine}),
        "kilometres": ("kilometres", {"position_m": enu / 1000, "speed_m_s": nine}),
        "feet": ("feet", {"position_m": enu / 0.3048, "speed_m_s": nine}),
        "km/h": ("km/h", {"speed_m_s": nine * 3.6}),
        "miles per hour": ("miles per hour", {"speed_m_s": nine * 2.237}),
        "another speed": ("np.interp", {"speed_m_s": nine * 1.4}),
        "zero": ("np.interp", {"speed_m_s": nine * 0}),
    }
    velocity_mps = {
        "km/h": ("km/h", {"velocity_mps": drive.velocity * 3.6}),
        "along the car": ("along the car's axes", {"velocity_mps": along}),
        "north, east, down": ("north, east, down", {"velocity_mps": ned(drive.velocity)}),
    }
    return {
        f"{argument}: {kind}": ("" if kind == "y is the height" else argument, *expectation)
        for argument, kinds in {
            "quaternion": quaternion,
            "heading_rad": heading_rad,
            "position_m": position_m,
            "speed_m_s": speed_m_s,
            "velocity_mps": velocity_mps,
        }.items()
        for kind, expectation in kinds.items()
    }


@pytest.mark.parametrize("kind", list(wrong(Turn())))
@pytest.mark.parametrize("side", (1, -1), ids=("left", "right"))
def test_wrong_convention_is_refused_with_argument_and_fix(kind, side, video):
    drive = Turn(side, heading=1.2 if side > 0 else 1.9)
    argument, fix, values = wrong(drive)[kind]
    with pytest.raises(AvomniError) as refused:
        check([clip_of(video, drive, **values)])
    error = str(refused.value)
    assert argument in refused.value.where and "clip 'drive'" in refused.value.where
    assert fix in error, error


@pytest.mark.parametrize("heading", np.arange(0.0, 6.2, 0.35))
@pytest.mark.parametrize("side", (1, -1), ids=("left", "right"))
def test_conventions_are_distinguished_at_every_heading(heading, side, video):
    """At 45° compass and map headings are equal, and only the turn distinguishes them."""
    drive = Turn(side, heading=heading)
    assert check([clip_of(video, drive)])
    frd, rdf = (into_axes(drive.turn, axes).as_quat() for axes in (FRD, RDF))
    wxyz = drive.turn.as_quat()[:, [3, 0, 1, 2]]
    for values in ({"heading_rad": drive.compass}, *({"quaternion": q} for q in (frd, rdf, wxyz))):
        with pytest.raises(AvomniError):
            check([clip_of(video, drive, **values)])


def parked() -> dict[str, dict]:
    """Arguments of parked cars, some with jitter or drift of the position."""
    noise = np.random.default_rng(0)
    still = np.tile([12.0, 34.0, 5.0], (len(T_S), 1))
    lat_lon = np.tile(PLACE, (len(T_S), 1))
    walk = np.cumsum(noise.normal(0, 2e-4, (len(T_S), 3)), axis=0)
    values = {
        "one place": still,
        "2 cm of noise": still + noise.normal(0, 0.02, still.shape),
        "1 mm of noise": still + noise.normal(0, 0.001, still.shape),
        "a drift without direction": still + walk,
        "far away": still + (4.5e5, 5.8e6, 0),
    }
    heading = np.full(len(T_S), 0.7)
    clips = {kind: {"position_m": at, "heading_rad": heading} for kind, at in values.items()}
    steady = still + np.outer(T_S, (3e-3, 4e-3, 0))
    clips["a steady drift at zero wheel speed"] = {
        "position_m": steady,
        "heading_rad": heading,
        "speed_m_s": 0 * T_S,
    }
    clips["degrees"] = {"frame": "wgs84", "position_m": lat_lon, "heading_rad": heading}
    return clips


@pytest.mark.parametrize("kind", list(parked()))
def test_parked_car_is_not_taken_for_another_unit(kind, video):
    [clip] = check([clip_of(video, Turn(), **parked()[kind])]).clips
    assert clip.mean_mps < 0.2 and clip.turn == "straight"
    if clip.mean_mps < 0.09:
        assert any(note.startswith("stands still throughout") for note in clip.notes)


def test_turning_heading_of_a_parked_car_is_noted(video):
    drive = Turn()
    [clip] = check([clip_of(video, drive, position_m=0 * drive.enu)]).clips
    assert "stands still throughout, and the heading turns by" in clip.notes[0]


def test_slow_and_reversing_cars_are_accepted(video):
    creeping = Turn(speed=0.7, bend=0.02)
    assert check([clip_of(video, creeping)]).clips[0].mean_mps == pytest.approx(0.7, abs=0.01)
    backwards = Turn(speed=2.0, bend=0.02)
    clip = clip_of(video, backwards, heading_rad=backwards.heading + np.pi)
    [summary] = check([clip]).clips
    assert summary.notes == ("drives backwards for 4 m",) and summary.ahead_m < -3


@pytest.mark.parametrize("speed", (2.0, 14.0, 45.0))
def test_receiver_noise_is_accepted(speed, video):
    noise = np.random.default_rng(1)
    drive = Turn(-1, speed=speed, bend=0.03)
    position = drive.enu + noise.normal(0, 0.02, drive.enu.shape)
    heading = drive.heading + noise.normal(0, 0.01, len(T_S))
    values = {"heading_rad": heading, "velocity_mps": drive.velocity}
    [summary] = check([clip_of(video, drive, position_m=position, **values)]).clips
    assert summary.mean_mps == pytest.approx(speed, rel=0.03)
    assert summary.turn_deg < 0


@pytest.mark.parametrize("speed", (5.0, 8.0, 25.0))
def test_noise_on_a_straight_road_is_not_taken_for_a_mirrored_turn(speed, video):
    drive = Turn(1, speed=speed, bend=1e-5)
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(0, min(0.016 * speed, 0.15), drive.enu.shape)
        values = {"position_m": drive.enu + noise, "velocity_mps": drive.velocity}
        assert check([clip_of(video, drive, **values)]).clips[0].turn == "straight"


def test_summary_describes_every_clip(video, tmp_path):
    unix = {camera: 1.7e9 + np.arange(NUM_FRAMES) / FPS for camera in CAMERAS}
    clips = [
        clip_of(video, Turn(1), "left"),
        clip_of(video, Turn(-1), "right", t_s=T_S + 1.7e9, frame_times_s=unix),
        clip_of(video, Turn(1, bend=0.001), "ahead <b>"),
    ]
    checked = check(clips)
    assert list(tmp_path.iterdir()) == []
    assert checked.folder is None and "not packed yet" in str(checked)
    packed = pack(tmp_path / "data", clips)
    assert checked.clips == packed.clips
    left, right, ahead = map(str, packed.clips)
    for part in (left, right, ahead):
        assert "4 cameras, 60 frames each, 1.97 s" in part
        assert "mean 9.00 m/s (32.4 km/h), at most 9.00 m/s (32.4 km/h)" in part
        assert "path   17.7 m" in part
    assert "a left turn of 10°" in left and "m to its left" in left and "0.00 s to 1.97 s" in left
    assert "a right turn of 10°" in right and "2023-11-14 22:13:20.00 UTC" in right
    assert "straight" in ahead
    title, *rest = repr(packed).split("\n")
    assert f"3 clips in {tmp_path / 'data'}" in title
    assert "\n".join(rest) == f"{left}\n{right}\n{ahead}"
    page = packed._repr_html_()
    assert "a right turn of 10°" in page and "ahead &lt;b&gt;" in page and "..." not in page
    assert Path(packed) == packed.folder == tmp_path / "data"


def test_crossing_the_date_line_is_not_a_jump(video):
    drive = Turn()
    place, _ = geodetic(drive.enu)
    east = (place[:, 1] - place[len(T_S) // 8, 1] + 360) % 360 - 180
    place[:, 1] = east
    assert np.ptp(east) > 350
    clip = clip_of(video, drive, position_m=place, frame="wgs84", heading_rad=drive.compass)
    assert check([clip]).clips[0].mean_mps == pytest.approx(9.0, rel=1e-3)
