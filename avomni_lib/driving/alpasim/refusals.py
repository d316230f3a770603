"""Checks of AlpaSim's requests: rejects sessions that the model cannot drive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from avomni_lib.dataset import calibration, cameras
from avomni_lib.errors import AvomniError
from avomni_lib.live.ticks import Sliding
from avomni_lib.params import Params

CONFIG = "runtime.simulation_config"  # section of AlpaSim's wizard
POLYNOMIAL = np.polynomial.polynomial.polyval
FARTHEST = np.linspace(0, np.pi, 4001)  # angles from the optical axis, rad


class Refused(AvomniError):
    """A call that cannot be served.

    Attributes:
        code: Name of the gRPC status code.
    """

    def __init__(self, code: str, what: str, *, where: str | None = None, fix: str | None = None):
        super().__init__(what, where=where, fix=fix)
        self.code = code


@dataclass(frozen=True)
class Runtime:
    """Settings of the simulator that its requests do not contain.

    Attributes:
        warm_up_s: Time for which the car drives as recorded (`force_gt_duration_us`).
        frame_hz: Images per second and camera (`frame_interval_us`).
    """

    warm_up_s: float = 1.7
    frame_hz: float = 10.0


def refuse(p: Params, runtime: Runtime, available: Iterable[Any]) -> None:
    """Refuse a session that the run's model cannot drive, naming all reasons at once.

    Args:
        available: `AvailableCamera` messages of the request.

    Raises:
        Refused: its rates, warm-up or cameras do not fit.
    """
    named = {
        camera.logical_id or camera.intrinsics.logical_id: camera.intrinsics for camera in available
    }
    reasons = [*rate_reasons(p, runtime), *_camera_reasons(p, named)]
    if reasons:
        raise Refused("FAILED_PRECONDITION", "; ".join(reasons), where="start_session")


def rate_reasons(p: Params, runtime: Runtime) -> Iterator[str]:
    """Reasons why the simulator's rates do not suit the run's model, with the fix for each."""
    hz, rows = p.processing.sample_hz, Sliding(p, 1, now_ns=lambda: 0).rows
    span_s = float(rows[-1]) / hz  # from a window's first picture to its last
    if hz > runtime.frame_hz * (1 + 1e-9):
        yield (
            f"the model looks {hz:g} times a second and cameras show {runtime.frame_hz:g} "
            f"pictures: set frame_interval_us of {CONFIG}.cameras to {1e6 / hz:.0f}, and start "
            f"the driver with --frame-hz {hz:g}"
        )
    needed_s = math.ceil(10 * (span_s + 1 / runtime.frame_hz) - 1e-6) / 10
    if needed_s > runtime.warm_up_s + 1e-9:
        yield (
            f"the model's window spans {span_s:g} s and the car drives as recorded for "
            f"{runtime.warm_up_s:g} s: set {CONFIG}.force_gt_duration_us to "
            f"{round(needed_s * 1e6)}, and start the driver with --warm-up {needed_s:g}"
        )


def _camera_reasons(p: Params, named: dict[str, Any]) -> Iterator[str]:
    of_grid = cameras.grid(p.vision.cameras).cameras
    missing = [camera.name for camera in of_grid if camera.name not in named]
    if missing:
        others = ", ".join(sorted(filter(None, named))) or "none"
        yield (
            f"cameras are missing: {', '.join(missing)} (there are: {others}): add them to "
            f"{CONFIG}.cameras, or take an adapter that was trained with other vision.cameras"
        )
    for camera in of_grid:
        if camera.name in named and (reason := _lens_reason(camera, named[camera.name])):
            yield reason


def _lens_reason(camera: cameras.Camera, spec: Any) -> str | None:
    """Why a camera differs from the model's camera of this name; None if it does not."""
    if not spec.HasField("ftheta_param"):
        return (
            f"{camera.name} has no f-theta lens (ftheta_param), as the model's pictures have: take "
            "scenes of PhysicalAI-AV, whose cameras have one"
        )
    if not (spec.resolution_w and spec.resolution_h):
        return f"{camera.name} has no resolution: fill resolution_w and resolution_h"
    view = view_deg(spec.ftheta_param, spec.resolution_w)
    tolerance = calibration.VIEW_TOLERANCE
    if not camera.fov_deg / tolerance < view < camera.fov_deg * tolerance:
        return (
            f"{camera.name} sees {view:.0f}° across and not about {camera.fov_deg}°: pictures are "
            "not remapped, so give it the lens of the recorded car"
        )
    return None


def view_deg(lens: Any, width: float) -> float:
    """Horizontal field of view of an f-theta lens in degrees, NaN without a polynomial.

    Either polynomial may be given.

    Args:
        lens: A `FthetaCameraParam` message.
        width: Of the image, px.
    """
    sides = np.array([lens.principal_point_x, width - lens.principal_point_x])
    if len(lens.pixeldist_to_angle_poly):
        angles = POLYNOMIAL(sides, np.array(lens.pixeldist_to_angle_poly))
    elif len(lens.angle_to_pixeldist_poly):
        radii = POLYNOMIAL(FARTHEST, np.array(lens.angle_to_pixeldist_poly))
        angles = np.interp(sides, np.maximum.accumulate(radii), FARTHEST)
    else:
        return math.nan
    return float(np.degrees(angles.sum()))
