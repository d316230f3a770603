"""The towns: looks, camera mounts and speeds of a rendered world."""

from __future__ import annotations

from dataclasses import dataclass, field

from avomni_lib.errors import pick

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Town:
    """One domain of the rendered world.

    Attributes:
        about: One sentence.
        speed_mps: Slowest and fastest target speed of a clip; all clips also stop occasionally.
        radius_m: Tightest and widest curve. The tightest can be driven at the highest speed (about
            5.4 m/s² lateral), so the road alone does not reveal the speed.
        camera_rise_m: How much higher the cameras sit than on the passenger car.
        fov_deg: Horizontal fields of view that differ from the rig's names.
        per_100_m: Number of each kind of object along 100 m of road.
        landmarks: Show only bright balls at known positions in the dark.
    """

    name: str
    about: str
    speed_mps: tuple[float, float]
    radius_m: tuple[float, float]
    camera_rise_m: float = 0.0
    fov_deg: dict[str, float] = field(default_factory=dict)
    sun: tuple[float, float, float] = (0.4, -0.5, 0.75)
    ambient: float = 0.55
    zenith: Colour = (96, 148, 214)
    horizon: Colour = (196, 216, 232)
    hills: Colour = (112, 138, 140)
    asphalt: Colour = (92, 92, 96)
    shoulder: Colour = (128, 120, 104)
    marks: Colour = (236, 236, 230)
    verge: Colour = (86, 122, 52)
    ground: Colour = (104, 128, 60)
    walls: tuple[Colour, ...] = ((206, 190, 160), (190, 120, 96), (222, 218, 206), (168, 172, 150))
    roofs: tuple[Colour, ...] = ((150, 70, 52), (96, 88, 84), (120, 60, 50))
    crowns: tuple[Colour, ...] = ((58, 104, 40), (78, 122, 46), (46, 88, 44))
    window: Colour = (66, 84, 104)
    per_100_m: dict[str, float] = field(default_factory=dict)
    landmarks: bool = False


CAR_COLOURS: tuple[Colour, ...] = (
    (196, 40, 36),
    (34, 58, 150),
    (214, 214, 210),
    (40, 42, 46),
    (150, 156, 160),
    (220, 170, 40),
    (44, 110, 78),
)

TOWNS = {
    town.name: town
    for town in (
        Town(
            name="meadow",
            about="Farms and trees by daylight, a passenger car: where the tiny base learns.",
            speed_mps=(0.0, 20.0),
            radius_m=(75.0, 320.0),
            per_100_m={"house": 2.2, "tree": 9.0, "conifer": 6.0, "bush": 7.0, "post": 4.0},
        ),
        Town(
            name="harbour",
            about="Warehouses and containers at dusk, a tall van with other lenses, higher speeds.",
            speed_mps=(0.0, 28.0),
            radius_m=(145.0, 450.0),
            camera_rise_m=1.0,
            fov_deg={
                "camera_front_wide_120fov": 108.0,
                "camera_front_tele_30fov": 36.0,
                "camera_cross_left_120fov": 108.0,
                "camera_cross_right_120fov": 108.0,
                "camera_rear_left_70fov": 82.0,
                "camera_rear_right_70fov": 82.0,
                "camera_rear_tele_30fov": 36.0,
            },
            sun=(-0.85, 0.35, 0.30),
            ambient=0.50,
            zenith=(62, 62, 112),
            horizon=(236, 150, 104),
            hills=(84, 66, 96),
            asphalt=(78, 70, 78),
            shoulder=(112, 104, 102),
            marks=(226, 208, 160),
            verge=(122, 106, 82),
            ground=(104, 96, 84),
            walls=((140, 110, 104), (108, 116, 132), (152, 128, 96), (96, 92, 100)),
            roofs=((84, 76, 84), (112, 92, 84), (70, 72, 84)),
            crowns=((66, 78, 52), (84, 82, 50), (58, 66, 56)),
            window=(250, 206, 120),
            per_100_m={
                "warehouse": 1.8,
                "block": 0.9,
                "container": 5.0,
                "lamp": 3.0,
                "tree": 1.6,
                "bush": 3.0,
                "crane": 0.35,
                "post": 2.0,
            },
        ),
        Town(
            name="survey",
            about="White balls at known points in the dark: a proof of poses and calibration.",
            speed_mps=(6.0, 16.0),
            radius_m=(75.0, 320.0),
            ambient=1.0,
            zenith=(8, 8, 12),
            horizon=(10, 10, 14),
            hills=(10, 10, 14),
            asphalt=(12, 12, 14),
            shoulder=(12, 12, 14),
            marks=(12, 12, 14),
            verge=(10, 12, 10),
            ground=(10, 12, 10),
            per_100_m={"ball": 55.0},
            landmarks=True,
        ),
    )
}


def town(name: str) -> Town:
    """The town called `name`.

    Raises:
        AvomniError: there is none.
    """
    return pick(TOWNS, name, "town", "dataset.world.town")
