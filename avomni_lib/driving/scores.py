"""The scores of one drive: AlpaSim's scene score, and NAVSIM's terms as further columns.

Sources: NVlabs/alpasim 3032e0c (src/eval: aggregation/scene_score.py, aggregation/processing.py,
scorers/collision.py) and autonomousvision/navsim 0a380a9 (pdm_scorer.py, pdm_scorer_utils.py,
pdm_comfort_metrics.py), which follows motional/nuplan-devkit. NAVSIM's terms are computed over the
whole driven episode, where NAVSIM uses 4 s of a plan, and without traffic lights. They are
therefore not combined into a PDMS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.signal import savgol_filter

from avomni_lib.driving import geometry
from avomni_lib.driving.episode import Episode
from avomni_lib.etl.clip.trajectory import STEP_S
from avomni_lib.evaluation.trajectories import COMFORT, within_bounds

# AlpaSim: progress is full from this share of the recorded path on, and for paths shorter than 5 m.
FULL_PROGRESS, SHORT_M = 0.8, 5.0
# NAVSIM: speeds up to which a car counts as standing: the ego in a collision; an actor in a
# collision and the ego in TTC.
STANDING_EGO_MPS, STANDING_MPS = 5e-2, 5e-3
AHEAD_RAD, BEHIND_RAD = math.radians(20), math.radians(150)
TTC_STEPS = (0, 3, 6, 9)  # of 0.1 s, within 1.0 s
AGAINST_STEPS, AGAINST_HALF_M, AGAINST_NONE_M = 10, 2.0, 6.0
OFF_LANE_M, OFF_LANE_S = 0.5, 2.0
SMOOTH_STEPS = 15  # nuPlan: window of the Savitzky-Golay filter that computes derivatives
BOX = [0, 1, 2, 4, 5]  # columns of `Episode.actors` that make a box
DECIMALS = 8  # NAVSIM rounds to these before it compares
COLUMNS = ("nc", "dac", "ddc", "ttc", "ep", "lk", "comfort")  # fields of `Terms`, 0 to 1


@dataclass(frozen=True)
class Contact:
    """The first contact of the ego's box with an actor's box.

    Attributes:
        step: Index into `Episode.time_s`.
        actor: Index into `Episode.actors`.
        side: Part of the ego's box that is touched: `front` or `rear` bumper, else `side`.
    """

    step: int
    actor: int
    side: str

    @property
    def is_at_fault(self) -> bool:
        """AlpaSim's rule (processing.py): at fault unless the ego is hit at the rear."""
        return self.side != "rear"


@dataclass(frozen=True)
class Terms:
    """The scores of a drive.

    Attributes:
        scene_score: See `scene`.
        failure: `collision` or `off road`, which make the scene score 0, or None.
        cut_s: Time of the first event, after which the scene score ignores the drive, or None.
        nc, dac, ddc, ttc, ep, lk, comfort: See the functions of these names.
        progress: Share of the recorded path up to the first event, 0 to 1.
        contacts: The first contact with each touched actor, in the order of time.
        num_collisions: Number of actors whose first contact was at the ego's front or side.
        num_off_road: Number of times that the ego left the drivable surface.
    """

    scene_score: float
    failure: str | None
    cut_s: float | None
    nc: float
    dac: float
    ddc: float
    ttc: float
    ep: float
    lk: float
    comfort: float
    progress: float
    contacts: tuple[Contact, ...]
    num_collisions: int
    num_off_road: int
    km: float


def terms(episode: Episode) -> Terms:
    """All scores of a drive."""
    seen = SharedGeometry(episode)
    score, failure, cut, progress = scene(seen)
    return Terms(
        scene_score=score,
        failure=failure,
        cut_s=None if cut is None else float(episode.time_s[cut]),
        nc=nc(seen),
        dac=dac(seen),
        ddc=ddc(seen),
        ttc=ttc(seen),
        ep=ep(episode),
        lk=lk(seen),
        comfort=comfort(episode),
        progress=progress,
        contacts=seen.contacts,
        num_collisions=sum(contact.is_at_fault for contact in seen.contacts),
        num_off_road=int((np.diff(seen.is_off_road.astype(int), prepend=0) > 0).sum()),
        km=geometry.length_of(episode.ego) / 1000,
    )


class SharedGeometry:
    """Geometry that several terms share: the ego's box relative to the actors and the lane.

    Attributes:
        box: (T, 5) the ego's box.
        others: (T, N, 5) the actors' boxes.
        touches: (T, N) bool.
        contacts: The first contact with each touched actor, in the order of time.
        middle_m: (T,) offset of the box's centre to the left of the lane centre.
        turned_rad: (T,) heading relative to the lane, positive to the left.
        along_m: (T,) position of the box's centre along the lane.
        is_off_road: (T,) bool: a corner is outside the drivable surface.
        is_in_lanes: (T,) bool: corners are in two lanes or more.
    """

    def __init__(self, episode: Episode):
        self.episode = episode
        self.box = geometry.boxes(episode.ego, episode.size)
        self.others = episode.actors[..., BOX]
        self.touches = geometry.touch(self.box[:, None], self.others)
        self.contacts = self._contacts()
        points = np.concatenate([self.box[:, None, :2], geometry.corners(self.box)], axis=1)
        along_m, left_m, yaw = geometry.beside(episode.road, points)  # (T, 5)
        self.along_m, self.middle_m, left_m = along_m[:, 0], left_m[:, 0], left_m[:, 1:]
        turned = episode.ego[:, 2] - yaw[:, 0]
        self.turned_rad = np.arctan2(np.sin(turned), np.cos(turned))
        left_edge, right_edge = episode.drivable
        is_off = (left_m > left_edge + geometry.TOUCH_M) | (left_m < -right_edge - geometry.TOUCH_M)
        self.is_off_road = is_off.any(axis=1)
        # Adjacent lanes of equal width, as many as fit on the drivable surface as a whole.
        width = episode.lane_width
        lane = np.floor(left_m / width + 0.5)
        is_lane = ((lane + 0.5) * width <= left_edge + geometry.TOUCH_M) & (
            (lane - 0.5) * width >= -right_edge - geometry.TOUCH_M
        )
        most = np.where(is_lane, lane, -np.inf).max(axis=1)
        least = np.where(is_lane, lane, np.inf).min(axis=1)
        self.is_in_lanes = most > least

    def _contacts(self) -> tuple[Contact, ...]:
        """The first contact with each actor; later ones are ignored, as in NAVSIM.

        An actor that replays a recording does not brake: after it hits the ego from behind it
        drives through it, and would count as a front hit two steps later.
        """
        firsts = [
            (int(self.touches[:, actor].argmax()), int(actor))
            for actor in np.flatnonzero(self.touches.any(axis=0))
        ]
        return tuple(Contact(step, actor, self.side(step, actor)) for step, actor in sorted(firsts))

    def side(self, step: int, actor: int) -> str:
        """The part of the ego that an actor touches: its front, else its rear, else its side.

        Source: alpasim scorers/collision.py, which tests the lines of the bumpers.
        """
        for side, sign in (("front", 1), ("rear", -1)):
            bumper = geometry.bumper(self.box[step], sign)
            if geometry.touch(bumper, self.others[step, actor]):
                return side
        return "side"


def scene(seen: SharedGeometry) -> tuple[float, str | None, int | None, float]:
    """AlpaSim's scene score, 0 to 1.

    0 if the first event is a collision at fault or the ego leaving the road; otherwise the
    progress divided by 0.8, at most 1, and 1 if the recorded path is shorter than 5 m. An event is
    any contact, or a corner of the ego off the drivable surface; everything after the first event
    is ignored, so a drive that is rear-ended keeps its progress up to that point.

    Source: alpasim scene_score.py and processing.py at 3032e0c. Their later gate
    `left_corridor_laterally` (4 m beside the recorded path) is not included.

    Returns:
        Score; `collision`, `off road` or None; step of the first event or None; progress.
    """
    episode, events = seen.episode, seen.touches.any(axis=1) | seen.is_off_road
    cut = int(events.argmax()) if events.any() else None
    progress = _progress(episode, len(events) - 1 if cut is None else cut)
    failure = None
    if cut is not None:
        touched = np.flatnonzero(seen.touches[cut])
        if any(seen.side(cut, int(actor)) != "rear" for actor in touched):
            failure = "collision"
        elif seen.is_off_road[cut]:
            failure = "off road"
    full = 1.0
    if geometry.length_of(episode.reference) >= SHORT_M:
        full = min(progress / FULL_PROGRESS, 1.0)
    return (0.0 if failure else full), failure, cut, progress


def _progress(episode: Episode, step: int) -> float:
    """Share of the recorded path that the ego has covered at a step, 0 to 1.

    The rear axle is projected onto the recorded path of the rear axle. The share of a path of zero
    length is 1.
    """
    length = geometry.length_of(episode.reference)
    along, _, _ = geometry.beside(episode.reference, episode.ego[step])
    return min(float(along) / length, 1.0) if length else 1.0


def nc(seen: SharedGeometry) -> float:
    """No at-fault collision: 1 without one, 0 with one, 0.5 if only static objects were hit.

    Only the first contact with each actor counts. The ego is at fault if it hits an actor that
    stands (up to 0.005 m/s), hits one with its front bumper, or touches one with its side while it
    is in several lanes or off the road. It is not at fault while it stands (up to 0.05 m/s), nor
    if the actor is more than 150° off its heading, seen from the rear axle.

    Source: navsim pdm_scorer.py `_calculate_no_at_fault_collision`, pdm_scorer_utils.py.
    """
    episode, score = seen.episode, 1.0
    for contact in seen.contacts:
        step, actor = contact.step, contact.actor
        if abs(episode.ego[step, 3]) <= STANDING_EGO_MPS:
            continue
        is_static = bool(episode.is_static[actor])
        stands = is_static or abs(episode.actors[step, actor, 3]) <= STANDING_MPS
        if not stands:
            if _bearing(episode.ego[step], episode.actors[step, actor]) > BEHIND_RAD:
                continue
            if contact.side != "front" and not (seen.is_in_lanes | seen.is_off_road)[step]:
                continue
        score = min(score, 0.5 if is_static else 0.0)
    return score


def _bearing(ego: np.ndarray, actor: np.ndarray) -> float:
    """Angle (rad, 0 to pi) between the ego's heading and the direction from its rear axle."""
    angle = math.atan2(actor[1] - ego[1], actor[0] - ego[0]) - ego[2]
    return abs(math.remainder(angle, 2 * math.pi))


def dac(seen: SharedGeometry) -> float:
    """Drivable area compliance: 1 if all four corners stay on the drivable surface, else 0.

    Source: navsim pdm_scorer.py `_calculate_drivable_area_compliance`.
    """
    return float(not seen.is_off_road.any())


def ddc(seen: SharedGeometry) -> float:
    """Driving direction compliance: 1; 0.5 from 2 m of wrong-way driving within 1.0 s; 0 from 6 m.

    Wrong-way driving is the distance covered by the box's centre outside the lane, as in NAVSIM,
    or backwards along the lane, as in nuPlan.

    Source: navsim pdm_scorer.py `_calculate_driving_direction_compliance`.
    """
    hops = np.linalg.norm(np.diff(seen.box[:, :2], axis=0), axis=1)
    is_outside = np.abs(seen.middle_m[1:]) > seen.episode.lane_width / 2
    is_back = np.diff(seen.along_m) < -geometry.TOUCH_M
    against = np.cumsum(np.concatenate([[0.0, 0.0], np.where(is_outside | is_back, hops, 0.0)]))
    # 11 hops, because NAVSIM's window includes both of its ends.
    within = against[1:] - against[np.maximum(np.arange(len(hops) + 1) - AGAINST_STEPS, 0)]
    most = round(float(within.max()), DECIMALS)
    return 1.0 if most < AGAINST_HALF_M else 0.5 if most < AGAINST_NONE_M else 0.0


def ttc(seen: SharedGeometry) -> float:
    """Time to collision: 0 if the ego, going straight on at its speed, hits an actor within 1.0 s.

    The ego's box is compared with the actors' boxes as recorded 0, 0.3, 0.6 and 0.9 s ahead. An
    actor counts up to 20° off the heading, seen from the rear axle, and up to 150° while the ego
    is in several lanes or off the road. Only an actor's first hit is judged. An ego slower than
    0.005 m/s has no time to collision.

    Source: navsim pdm_scorer.py `_calculate_ttc`. NAVSIM measures the angle from the ego's current
    pose, which can put a fast car from behind ahead of it; here it is measured from the
    extrapolated pose.
    """
    ego, actors = seen.episode.ego, seen.episode.actors
    num = len(ego)
    hits = np.zeros((num, len(TTC_STEPS), actors.shape[1]), bool)
    later = geometry.moved(ego[:, None], ego[:, 3:] * np.array(TTC_STEPS) * STEP_S)  # (T, 4, 3)
    for place, ahead in enumerate(TTC_STEPS):
        box = seen.box[: max(num - ahead, 0)].copy()
        box[:, :3] = geometry.moved(box, ego[: len(box), 3] * ahead * STEP_S)
        hits[: len(box), place] = geometry.touch(box[:, None], seen.others[ahead:])
    hits[np.abs(ego[:, 3]) < STANDING_MPS] = False
    for actor in np.flatnonzero(hits.any(axis=(0, 1))):
        step, place = divmod(int(hits[..., actor].ravel().argmax()), len(TTC_STEPS))
        bearing = _bearing(later[step, place], actors[step + TTC_STEPS[place], actor])
        is_wide = bool((seen.is_in_lanes | seen.is_off_road)[step])
        if bearing < AHEAD_RAD or (is_wide and bearing <= BEHIND_RAD):
            return 0.0
    return 1.0


def ep(episode: Episode) -> float:
    """Ego progress: distance along the lane divided by that of the recorded drive, at most 1.

    Measured from the first step to the last. 1 if neither drive covered more than 5 m.

    Source: navsim pdm_scorer.py `_calculate_progress` and `_aggregate_scores`, which divide by the
    best plan's progress and multiply by the collision terms.
    """
    ends = np.concatenate([episode.ego[[0, -1], :3], episode.reference[[0, -1], :3]])
    along, _, _ = geometry.beside(episode.road, geometry.boxes(ends, episode.size))
    driven, recorded = max(along[1] - along[0], 0.0), max(along[3] - along[2], 0.0)
    most = max(driven, recorded)
    return float(driven / most) if most > SHORT_M else 1.0


def lk(seen: SharedGeometry) -> float:
    """Lane keeping: 0 if the box's centre is more than 0.5 m off the lane centre for 2.0 s, else 1.

    Source: navsim pdm_scorer.py `_calculate_lane_keeping`.
    """
    is_off, needed = np.abs(seen.middle_m).round(DECIMALS) > OFF_LANE_M, round(OFF_LANE_S / STEP_S)
    return float((np.convolve(is_off, np.ones(needed)) < needed).all())


def comfort_quantities(episode: Episode) -> dict[str, np.ndarray]:
    """Comfort quantities of a drive, (T,) each, by the names of `evaluation.trajectories.COMFORT`.

    Accelerations and yaw rate are first derivatives of speed and yaw, from polynomials fitted to
    15 steps; `jerk` is the derivative of the acceleration's magnitude. The arrays are empty for a
    drive of fewer than 5 steps.

    Source: motional/nuplan-devkit, nuplan/planning/metrics/utils/state_extractors.py, which reads
    the vehicle's accelerations; here they are derived from the speed.
    """
    num = len(episode.ego)
    window = min(SMOOTH_STEPS, num - 1 + num % 2)
    if window < 5:
        return {name: np.zeros(0) for name in COMFORT}

    def slope(values: np.ndarray, times: int = 1) -> np.ndarray:
        return savgol_filter(values, window, times + 1, deriv=times, delta=STEP_S)

    speed, yaw = episode.ego[:, 3], np.unwrap(episode.ego[:, 2])
    lon_accel, yaw_rate = slope(speed), slope(yaw)
    lat_accel = speed * yaw_rate
    return {
        "lon_accel": lon_accel,
        "lat_accel": lat_accel,
        "jerk": slope(np.hypot(lon_accel, lat_accel)),
        "lon_jerk": slope(lon_accel),
        "yaw_rate": yaw_rate,
        "yaw_accel": slope(yaw, 2),
    }


def comfort(episode: Episode) -> float:
    """1 if everything in `comfort_quantities` stays within its bounds for the whole drive, else 0.

    Bounds (inclusive): longitudinal acceleration -4.05 to 2.40 and lateral 4.89 m/s², jerk 8.37
    and longitudinal jerk 4.13 m/s³, yaw rate 0.95 rad/s, yaw acceleration 1.93 rad/s².

    Source: navsim pdm_comfort_metrics.py; the bounds are nuPlan's and Bench2Drive's too.
    """
    values = comfort_quantities(episode)
    return float(within_bounds({name: each.round(DECIMALS) for name, each in values.items()}))
