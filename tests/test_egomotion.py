"""Interpolated poses and path lengths of drives that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.egomotion import Egomotion, path_length
from tests.published_set import Drive, egomotion_times

SECONDS = 6.0


def drive(clip_number: int = 2) -> tuple[Drive, dict[str, np.ndarray]]:
    return Drive(clip_number), Drive(clip_number).egomotion(egomotion_times(clip_number, SECONDS))


def straight(position: np.ndarray, t_s: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a drive along x, facing forward."""
    zeros = np.zeros_like(position)
    names = ("y", "z", "qx", "qy", "qz", "vy", "vz")
    return {
        "timestamp": np.rint(t_s * 1e6).astype(np.int64),
        "x": position,
        "qw": zeros + 1,
        "vx": np.gradient(position, t_s),
        **dict.fromkeys(names, zeros),
    }


def path_m(ego: Egomotion, first_us: int, last_us: int) -> float:
    return float(np.diff(ego.at(np.array([first_us, last_us])).distance_m)[0])


def test_interpolated_rotations_ignore_the_quaternions_sign():
    columns = straight(np.arange(11) * 0.1, np.arange(11) * 0.1)
    turn = Rotation.from_euler("z", 5 * np.arange(11)[:, None], degrees=True).as_quat()
    turn[1::2] *= -1
    columns |= dict(zip(("qx", "qy", "qz", "qw"), turn.T, strict=True))
    quaternion = Egomotion.from_columns(columns).at(np.array([250_000, 750_000])).quaternion
    yaw = Rotation.from_quat(quaternion).as_euler("xyz", degrees=True)[:, 2]
    assert yaw == pytest.approx([12.5, 37.5])


def test_position_noise_at_rest_adds_no_distance():
    noise = np.random.default_rng(1).normal(0, 0.02, (3000, 3))
    distance = path_length(noise)
    assert distance[-1] < 0.15
    assert np.linalg.norm(np.diff(noise, axis=0), axis=1).sum() > 90, "the plain sum of steps"


def test_position_noise_in_motion_adds_little_distance():
    t_s = np.arange(0, 20, 0.01)
    clean = np.stack([8 * t_s, 0 * t_s, 0 * t_s], 1)
    noisy = clean + np.random.default_rng(2).normal(0, 0.02, clean.shape)
    assert path_length(noisy)[-1] == pytest.approx(path_length(clean)[-1], rel=0.01)
    assert np.linalg.norm(np.diff(noisy, axis=0), axis=1).sum() > 1.05 * 8 * t_s[-1]


def test_driving_backwards_adds_to_the_path_length():
    t_s = np.arange(0, 4.01, 0.01)
    ego = Egomotion.from_columns(straight(2 * np.sin(np.pi * t_s / 2), t_s))
    assert path_m(ego, 0, 4_000_000) == pytest.approx(8, rel=0.02)
    first, last = ego.at(np.array([0, 4_000_000])).position
    assert first == pytest.approx(last, abs=1e-6)


@given(
    radius=st.floats(5, 500),
    speed=st.floats(0, 35),
    rate_hz=st.sampled_from([20, 100]),
    start=st.floats(0, 3),
    length=st.floats(0.5, 6),
)
def test_path_length_on_a_circle_is_the_arc_length(radius, speed, rate_hz, start, length):
    t_s = np.arange(0, 10, 1 / rate_hz)
    angle = speed * t_s / radius
    position = radius * np.stack([np.sin(angle), 1 - np.cos(angle), 0 * angle], 1)
    distance = path_length(position)
    assert (np.diff(distance) >= 0).all()
    way = np.interp([start, start + length], t_s, distance)
    assert way[1] - way[0] == pytest.approx(speed * length, rel=0.006, abs=0.02)


def test_only_poses_needed_for_the_span_are_kept():
    columns = drive()[1]
    ego, whole = Egomotion.from_columns(columns, (0, 7_000_000)), Egomotion.from_columns(columns)
    assert ego.t_us[0] <= 0 and 7_000_000 <= ego.t_us[-1] < 8_000_000
    assert path_m(ego, 0, 7_000_000) == pytest.approx(path_m(whole, 0, 7_000_000), rel=1e-3)


def test_time_outside_the_egomotion_is_refused():
    ego = Egomotion.from_columns(drive()[1])
    with pytest.raises(AvomniError, match="no ego motion at 99000000 µs: it lasts from"):
        ego.at(np.array([0, 99_000_000]))
