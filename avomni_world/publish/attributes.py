"""Country, time and vehicle in the metadata of a rendered clip.

They give the demo something to select by. All are random functions of the clip's name and do not
affect the pictures, except that the hour is that of the town's light. Which clips have an event is
decided here too; what happens in them is not random (see `events`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

HOUR_OF_DAY = {"meadow": 12, "harbour": 19, "survey": 23}
HOURS_AROUND = (-1, 0, 0, 1)
COUNTRIES = ("United States", "Germany", "Italy", "Sweden", "Portugal")
# Countries of a chunk's clips in order; the next chunk begins with the next country.
COUNTRY_SHARES = (0.5, 0.2, 0.1, 0.1, 0.1)
PLATFORMS = {"hyperion_8.1": 0.7, "hyperion_8": 0.3}
# The data set's clusters, and how many of its 1,740 clips each has.
EVENT_CLUSTERS = {
    "WORK_ZONES_TEMP_TRAFFIC_CONTROL": 856,
    "PEDESTRIAN_DENSITY_OR_CLOSE_PROXIMITY": 380,
    "SPECIAL_OR_UNCOMMON_VEHICLE_BEHAVIOR": 260,
    "CYCLISTS_AND_MICROMOBILITY_COMPLEX": 79,
    "COMPLEX_INTERSECTION_INTERACTION": 50,
    "OTHER_LONGTAIL": 39,
    "EMERGENCY_INCIDENT_SCENE": 30,
    "ROAD_DEBRIS_OR_SAFETY_TRACES": 23,
    "ANIMALS_BIRDS_ROADKILL": 23,
}
EVENT_EVERY, EVENT_FIRST = 8, 1  # clip 1, 9, 17, … of a world has an event
WITHOUT_EVENTS_EVERY = 5  # of these, each n-th has a cluster and no list of events


@dataclass(frozen=True)
class Circumstances:
    """A clip's metadata.

    Attributes:
        month: 1-12.
        hour: 0-23.
        event_cluster: None for most clips.
        has_event: Whether the metadata describe an event in it; true for most clips with a cluster.
    """

    country: str
    month: int
    hour: int
    platform: str
    event_cluster: str | None
    has_event: bool


def circumstances(clip_id: str, number: int, chunk: int, town: str) -> Circumstances:
    """The metadata of one clip of a world; a function of the arguments.

    Args:
        number: The clip's number in the world.
    """
    turned = [COUNTRIES[(chunk + place) % len(COUNTRIES)] for place in range(len(COUNTRIES))]
    country = _deal(clip_id, "country", dict(zip(turned, COUNTRY_SHARES, strict=True)))
    around = HOURS_AROUND[int(_luck(clip_id, "hour") * len(HOURS_AROUND))]
    cluster = None
    if number % EVENT_EVERY == EVENT_FIRST:
        cluster = _deal(clip_id, "event_cluster", EVENT_CLUSTERS)
    return Circumstances(
        country,
        int(_luck(clip_id, "month") * 12) + 1,
        (HOUR_OF_DAY.get(town, 12) + around) % 24,
        _deal(clip_id, "platform", PLATFORMS),
        cluster,
        has_event(number),
    )


def has_event(number: int) -> bool:
    """Whether the metadata describe an event in this clip of a world."""
    place, rest = divmod(number, EVENT_EVERY)
    return rest == EVENT_FIRST and place % WITHOUT_EVENTS_EVERY != WITHOUT_EVENTS_EVERY - 1


def _luck(clip_id: str, purpose: str) -> float:
    """A number in [0, 1), from the clip's name."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{clip_id}".encode()).digest()[:6]) / 2**48


def _deal(clip_id: str, purpose: str, shares: Mapping[str, float]) -> str:
    left = _luck(clip_id, purpose) * sum(shares.values())
    for name, share in shares.items():
        left -= share
        if left < 0:
            return name
    return name
