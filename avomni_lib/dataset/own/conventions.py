"""Checks that the motion of poses is consistent with the frame and axes in which they are given.

A car stands upright, drives along its heading, turns with its course, and has a plausible speed.
Contradictions are refused, and the error suggests a convention that would fit, if there is one. A
map that is mirrored together with its headings contradicts nothing: it only shows in the turn that
`summary` prints.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset.limits import MAX_SLIP_DEG, MOVES_MPS, SPAN_S
from avomni_lib.dataset.own import poses as own_poses
from avomni_lib.dataset.own.arguments import Argument, Mistakes
from avomni_lib.dataset.own.poses import FLIP, GivenPoses

# Below the first speed a car stands; above the second, the course of noisy positions shows turns.
STANDS_MPS, TURNS_MPS = 0.1, 3.0
# An antenna over the front bumper moves 25° off the heading on the tightest circle.
DOUBTFUL_SLIP_DEG, MAX_TILT_DEG = 10.0, 35.0
# The steepest streets climb by 35 %.
MAX_CLIMB = 0.4
# If the course turns by at least this angle, the heading must turn by this share of it.
MIN_TURN_DEG, MIN_TURN_SHARE = 8.0, 0.5
# Smaller turns relative to the noise of the course could be explained by noise.
TURN_TO_NOISE = 10.0
MAX_REVERSE_MPS, MAX_SPEED_MPS = 5.0, 100.0
# Speeds of the positions compared with given ones: 0.5 m/s plus 10 %.
GIVEN_SPEED_TOLERANCE = (0.5, 0.1)
# Correlation of neighbouring steps: -0.5 for noise, 0 for a random walk, 1 for a car.
SMOOTH = 0.8
METRES_PER_DEGREE = 111_195.0
# Explanation -> (ratio of the given speed to that of the positions, tolerance as a factor).
RATIOS = {
    "position_m looks like kilometres: multiply by 1000": (1000.0, 1.1),
    "position_m looks like degrees: frame='wgs84', with (latitude, longitude)": (1.1e5, 2.0),
    "position_m looks like radians: np.degrees, and frame='wgs84'": (6.4e6, 2.0),
    "{} looks like km/h: divide by 3.6": (3.6, 1.06),
    "{} looks like miles per hour: multiply by 0.44704": (2.237, 1.06),
    "{} looks like knots: multiply by 0.51444": (1.944, 1.06),
    "position_m looks like feet: multiply by 0.3048": (0.3048, 1.06),
    "position_m looks like centimetres: divide by 100": (0.01, 1.1),
    "position_m looks like millimetres: divide by 1000": (0.001, 1.1),
}
CONVENTIONS = (
    "a quaternion is x y z w and turns the car's axes (axes) into those of the positions (frame); "
    "a heading is in rad, in enu counter-clockwise from x, else clockwise from north; "
    "docs/own_clips.md has more"
)
# What to give as heading_rad instead.
HEADINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "np.pi / 2 - heading_rad": lambda angle: np.pi / 2 - angle,
    "np.radians(heading_rad)": np.radians,
    "np.pi / 2 - np.radians(heading_rad)": lambda angle: np.pi / 2 - np.radians(angle),
    "heading_rad + np.pi / 2": lambda angle: angle + np.pi / 2,
    "heading_rad - np.pi / 2": lambda angle: angle - np.pi / 2,
    "heading_rad + np.pi": lambda angle: angle + np.pi,
    "-heading_rad": lambda angle: -angle,
    "-np.radians(heading_rad)": lambda angle: -np.radians(angle),
    "np.radians(heading_rad) + np.pi / 2": lambda angle: np.radians(angle) + np.pi / 2,
}
# If the third column of positions is something else.
NO_HEIGHT = "the third coordinate is not the height"
# Conventions that fit worse than the best one by more than this are not suggested.
MUCH_WORSE_DEG = 5.0


@dataclass(frozen=True)
class Track:
    """Displacements over half-second steps.

    Attributes:
        steps_m: (M, 3) displacement of each step.
        seconds: (M,) duration of each step.
        rows: (M,) index of the pose nearest to the middle of each step.
    """

    steps_m: np.ndarray
    seconds: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, t_s: np.ndarray, position: np.ndarray) -> Track:
        """Create from positions (K, 3) m at times (K,) s."""
        count = max(int((t_s[-1] - t_s[0]) / SPAN_S), min(4, len(t_s) - 1))
        marks = np.linspace(t_s[0], t_s[-1], count + 1)
        places = np.stack([np.interp(marks, t_s, column) for column in position.T], axis=1)
        rows = np.interp((marks[1:] + marks[:-1]) / 2, t_s, np.arange(len(t_s)))
        return cls(np.diff(places, axis=0), np.diff(marks), np.rint(rows).astype(int))

    @property
    def path_m(self) -> float:
        return float(np.linalg.norm(self.steps_m, axis=1).sum())

    @property
    def mean_mps(self) -> float:
        return self.path_m / float(self.seconds.sum())

    @property
    def speeds(self) -> np.ndarray:
        """(M,) m/s."""
        return np.linalg.norm(self.steps_m, axis=1) / self.seconds

    @property
    def moves(self) -> np.ndarray:
        """(M,) bool: steps fast enough to have a meaningful direction."""
        return self.speeds > MOVES_MPS

    @property
    def is_smooth(self) -> bool:
        """Whether successive steps have similar directions, as those of a car have.

        Also true for steps of two seconds, as a receiver may hold its position for a while.
        """
        coarse = self.steps_m[: len(self.steps_m) // 4 * 4].reshape(-1, 4, 3).sum(axis=1)
        return any(
            len(steps) >= fewest
            and (steps[1:] * steps[:-1]).sum() > SMOOTH * (steps[1:] ** 2).sum()
            for steps, fewest in ((self.steps_m, 4), (coarse, 6))
        )

    def scaled(self, factor: float | tuple[float, float, float]) -> Track:
        return dataclasses.replace(self, steps_m=self.steps_m * factor)

    def headings(self, turn: Rotation) -> np.ndarray:
        """(M, 3) headings; `turn` (K,) rotates the car's axes to the frame's."""
        return turn[self.rows].apply((1, 0, 0))

    def tilt_deg(self, turn: Rotation) -> float:
        """Median angle between the car's z axis and up."""
        return _angle_deg(turn[self.rows].apply((0, 0, 1)), np.array([[0.0, 0.0, 1.0]]))

    def slip_deg(self, turn: Rotation) -> float:
        """Median angle between path and heading, either way round; 0 if the car does not move."""
        if not self.moves.any():
            return 0.0
        return _angle_deg(self.steps_m[self.moves], self.headings(turn)[self.moves], is_line=True)


def _angle_deg(vectors: np.ndarray, others: np.ndarray, is_line: bool = False) -> float:
    """Median angle between (M, 3) vectors; with `is_line`, regardless of their sign."""
    size = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    cosine = (vectors * others).sum(axis=1) / np.maximum(size, 1e-9)
    median = np.median(np.abs(cosine) if is_line else cosine)
    return float(np.degrees(np.arccos(np.clip(median, -1, 1))))


def contradictions(track: Track, turn: Rotation) -> Iterator[str]:
    """Ways in which the motion is impossible for a car.

    Args:
        track: In a level, stationary frame.
        turn: (K,) rotations from the car's axes to the frame's.
    """
    if (tilt := track.tilt_deg(turn)) > MAX_TILT_DEG:
        yield f"the car's z axis points {tilt:.0f}° away from up: it lies on its side or roof"
    if not track.moves.any():
        return
    if (slip := track.slip_deg(turn)) > MAX_SLIP_DEG:
        yield f"the car moves {slip:.0f}° beside where it points"
        return
    heading = track.headings(turn)
    ahead = (track.steps_m * heading).sum(axis=1)
    speed = float(np.median(track.speeds[track.moves]))
    if ahead.sum() < 0 and speed > MAX_REVERSE_MPS:
        yield f"the car drives backwards at {speed:.1f} m/s: x points to its rear"
    climb = np.abs(track.steps_m[:, 2]).sum() / track.path_m
    if climb > MAX_CLIMB and np.median(track.speeds) > TURNS_MPS:
        yield f"{climb:.0%} of the path goes up or down: {NO_HEIGHT}"
    # Compare the turns of heading and course over each stretch driven without a stop.
    steps = track.steps_m * np.sign(ahead)[:, None]
    moves = (track.speeds > TURNS_MPS) & (ahead != 0)
    course, yaw, bends = np.zeros(0), np.zeros(0), np.zeros(1)
    for stretch in np.ma.clump_unmasked(np.ma.array(moves, mask=~moves)):
        east, north = steps[stretch, 0], steps[stretch, 1]
        way = np.unwrap(np.arctan2(north, east))
        points = np.unwrap(np.arctan2(heading[stretch, 1], heading[stretch, 0]))
        bends = np.append(bends, np.diff(way, n=2))
        course, yaw = np.append(course, way - way.mean()), np.append(yaw, points - points.mean())
    if not len(course):
        return
    turned = np.degrees(np.ptp(course))
    # The second differences of independent errors have six times their variance.
    noise = np.degrees(np.sqrt(np.mean(bends**2) / 6))
    share = (course * yaw).sum() / max((course**2).sum(), 1e-12)
    if turned > MIN_TURN_DEG + TURN_TO_NOISE * noise and share < MIN_TURN_SHARE:
        how = "the other way" if share < -MIN_TURN_SHARE else f"by {share * turned:.0f}°"
        yield f"the course turns by {turned:.0f}° and the heading {how}: one of them is mirrored"


def notes(track: Track, turn: Rotation) -> list[str]:
    """Remarks on motion that is possible but unusual."""
    remarks = []
    ahead = (track.steps_m * track.headings(turn)).sum(axis=1)
    moved_back = -ahead[(ahead < 0) & (track.speeds > MOVES_MPS)].sum()
    if moved_back > 1:
        remarks.append(f"drives backwards for {moved_back:.0f} m")
    if track.mean_mps < STANDS_MPS:
        east, north, _ = turn.apply((1, 0, 0)).T
        turned = np.degrees(np.ptp(np.unwrap(np.arctan2(north, east))))
        turns = f", and the heading turns by {turned:.0f}°" if turned > MIN_TURN_DEG else ""
        remarks.append(f"stands still throughout{turns}: is it parked, or the unit no metre?")
    if (slip := track.slip_deg(turn)) > DOUBTFUL_SLIP_DEG:
        remarks.append(f"moves {slip:.0f}° beside where it points")
    return remarks


def check(poses: GivenPoses, where: str, mistakes: Mistakes) -> None:
    """Check speeds, units and directions of the poses; adds to `mistakes`."""
    before = len(mistakes)
    position, into = own_poses.level(poses)
    track, turn = Track.of(poses.t_s, position), own_poses.turns(poses, into)
    with mistakes.kept():
        _check_speeds(poses, track, turn, where)
    if len(mistakes) > before:
        return
    if wrong := list(contradictions(track, turn)):
        argument = "heading_rad" if poses.quaternion is None else "quaternion"
        argument = "position_m" if all(NO_HEIGHT in reason for reason in wrong) else argument
        fits = _fits(poses)
        fix = f"what fits is {'; or '.join(fits)} (docs/own_clips.md)" if fits else CONVENTIONS
        mistakes.append(Argument(argument, where).error("; ".join(wrong), fix=fix))
    elif poses.velocity_mps is not None:
        with mistakes.kept():
            _check_velocity(poses, track, into, where)


def _check_speeds(poses: GivenPoses, track: Track, turn: Rotation, where: str) -> None:
    """Compare the positions' speeds with given ones and with a car's; suggests a unit that fits."""
    mean, (slack, share) = track.mean_mps, GIVEN_SPEED_TOLERANCE
    name, given, is_off = "", 0.0, False
    if poses.speed_mps is not None:
        name, speeds = "speed_m_s", np.abs(poses.speed_mps)
        given = float(np.trapezoid(speeds, poses.t_s) / np.ptp(poses.t_s))
        is_off = abs(given - mean) > slack + share * max(given, mean)
    elif poses.velocity_mps is not None:
        name, given = "velocity_mps", float(np.linalg.norm(poses.velocity_mps, axis=1).mean())
    fix = _unit(given, mean, name)
    if is_off or fix and poses.speed_mps is None:
        what = f"positions move at {mean:.3g} m/s on average, {name} says {given:.3g} m/s"
        fix = fix or "give both in metres, and speed_m_s at the times t_s (np.interp)"
        raise Argument(name, where).error(what, fix=fix)
    if poses.speed_mps is not None:
        return
    at, high = Argument("position_m", where), float(np.percentile(track.speeds, 95))
    if high > MAX_SPEED_MPS:
        row = int(track.rows[np.argmax(track.speeds)])
        what = f"positions move at {high:,.0f} m/s, which no car does; fastest at row {row}"
        fix = "give position_m in metres (not centimetres, millimetres or feet) and t_s in seconds;"
        raise at.error(what, row, f"{fix} leave out rows whose positions are placeholders")
    level = track.scaled((1, 1, 0))  # the height may be in another unit
    if poses.velocity_mps is None and level.is_smooth:
        _check_drift(poses, level, turn, at)


def _unit(given: float, mean: float, argument: str) -> str | None:
    """The unit that explains the ratio of two speeds, if any."""
    if max(given, mean) < GIVEN_SPEED_TOLERANCE[0] or mean <= 0:
        return None
    for fix, (ratio, width) in RATIOS.items():
        if ratio / width < given / mean < ratio * width:
            return fix.format(argument)
    return None


def _check_drift(poses: GivenPoses, track: Track, turn: Rotation, at: Argument) -> None:
    """Detect a unit much larger than a metre: positions that move slowly but as smoothly as a car.

    Positions of a parked car are constant or jitter; these continue in one direction.
    """
    mean, fix = track.mean_mps, ""
    high_x, high_y = np.abs(poses.position[:, :2]).max(axis=0)
    if poses.frame == "wgs84":
        if high_x <= np.pi / 2 and high_y <= np.pi and 0.02 < mean < 1.2:
            fix = "they look like radians: np.degrees"
    elif poses.frame != "ecef":
        in_km = track.scaled(1000)
        low, high = sorted((high_x, high_y))
        if 0.5 < mean * METRES_PER_DEGREE < 70 and low <= 90 and high <= 180:
            fix = "they look like degrees: frame='wgs84', with (latitude, longitude[, altitude])"
        elif 0.5 < mean * 1000 < 70 and in_km.moves.any() and in_km.slip_deg(turn) < MAX_SLIP_DEG:
            fix = "they look like kilometres: multiply by 1000"
    if fix:
        raise at.error(
            f"position_m moves steadily, but only at {mean:.2g} m/s",
            fix=f"{fix}. If the car did move so little, give speed_m_s too, or one position "
            "throughout for a parked car",
        )


def _check_velocity(poses: GivenPoses, track: Track, into: Rotation, where: str) -> None:
    """Check that given velocities point along the displacements."""
    moves, given = track.moves, into.apply(poses.velocity_mps)[track.rows]
    if moves.any() and (off := _angle_deg(given[moves], track.steps_m[moves])) > MAX_SLIP_DEG:
        raise Argument("velocity_mps", where).error(
            f"velocity_mps points {off:.0f}° beside the way that the positions take",
            fix="give it along the frame's axes (east, north, up for wgs84): not along the car's "
            "axes (Rotation.apply takes it to the frame's), not as north, east, down on a map with "
            "z up, and not backwards; or leave it out",
        )


def _fits(poses: GivenPoses) -> list[str]:
    """The conventions without contradictions that need the fewest changes."""
    fits: list[tuple[float, str]] = []
    fewest = None
    # A conversion from degrees counts twice: headings in degrees are rarely all near zero.
    ways = [
        (len(texts) + sum("np.radians" in text for text in texts), texts, other)
        for texts, other in _ways(poses)
    ]
    for number, texts, other in sorted(ways, key=lambda way: way[0]):
        if fewest is not None and number > fewest:
            break
        position, into = own_poses.level(other)
        track, turn = Track.of(other.t_s, position), own_poses.turns(other, into)
        if not list(contradictions(track, turn)):
            fewest = number
            fits.append((track.tilt_deg(turn) + track.slip_deg(turn), ", ".join(texts)))
    best = min(fits, default=(0.0, ""))[0]
    return [text for off, text in fits if off <= best + MUCH_WORSE_DEG]


def _ways(poses: GivenPoses) -> Iterator[tuple[list[str], GivenPoses]]:
    """(changes to the arguments, the resulting poses) for all other conventions."""
    replace, is_map = dataclasses.replace, poses.frame in ("enu", "ned")
    if poses.quaternion is None:
        for text, convert in HEADINGS.items():
            yield [f"heading_rad={text}"], replace(poses, heading=convert(poses.heading))
        if is_map:
            text = "position_m with -y for y (yours may point to the other side)"
            yield [text], replace(poses, position=poses.position * (1, -1, 1))
        if is_map or np.abs(poses.position[:, :2]).max() <= 90:
            text = "position_m[:, [1, 0]] (the first two columns the other way round)"
            yield [text], replace(poses, position=poses.position[:, [1, 0, 2]])
        return
    both = (False, True)
    for frame, axes, is_wxyz, is_inverse, is_flipped in itertools.product(
        ("enu", "ned") if is_map else (poses.frame,),
        own_poses.AXES,
        *(both, both, both if poses.frame != "ecef" else (False,)),
    ):
        turn = Rotation.from_quat(poses.quaternion[:, [1, 2, 3, 0] if is_wxyz else [0, 1, 2, 3]])
        turn = turn.inv() if is_inverse else turn
        turn = FLIP * turn if is_flipped else turn
        kind = "east, north, up" if poses.frame == "ned" else "north, east, down"
        changes = {
            f"frame={frame!r} ({own_poses.FRAMES[frame]})": frame != poses.frame,
            f"axes={axes!r}": axes != poses.axes,
            "quaternion=quaternion[:, [1, 2, 3, 0]] (yours is w, x, y, z)": is_wxyz,
            "the inverse rotation (yours turns the frame into the car)": is_inverse,
            "quaternion=(Rotation.from_matrix([[0, 1, 0], [1, 0, 0], [0, 0, -1]]) * "
            f"Rotation.from_quat(quaternion)).as_quat() (yours turns into {kind})": is_flipped,
        }
        texts = [text for text, is_made in changes.items() if is_made]
        yield texts, replace(poses, frame=frame, axes=axes, quaternion=turn.as_quat())
