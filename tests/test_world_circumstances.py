"""What a rendered world says of its clips: of each kind some, and never by chance."""

import json
from collections import Counter

from avomni_lib.params import Params
from avomni_lib.world.circumstances import (
    COUNTRIES,
    EVENT_CLUSTERS,
    HOUR_OF_DAY,
    PLATFORMS,
    Circumstances,
    circumstances,
)
from avomni_lib.world.publish import world_clips

SECONDS = 8.0


def demo() -> dict[str, tuple[int, Circumstances]]:
    """clip_id -> its chunk and what is said of it, of a world as the demo's."""
    world = Params.model_validate(
        {"dataset": {"world": {"num_chunks": 2, "clips_per_chunk": 50}}}
    ).dataset.world
    return {
        c.clip_id: (c.chunk, circumstances(c.clip_id, c.number, c.chunk, "harbour", SECONDS))
        for c in world_clips(world)
    }


def test_there_is_something_to_choose_by():
    said = demo()
    for chunk in (0, 1):
        here = [about for own, about in said.values() if own == chunk]
        countries = Counter(about.country for about in here)
        assert len(countries) >= 3 and countries.most_common(1)[0][0] == COUNTRIES[chunk]
        platforms = Counter(about.platform for about in here)
        assert platforms.keys() == PLATFORMS.keys() and platforms["hyperion_8.1"] > 25
        assert len({about.hour for about in here}) == 3
        assert len({about.month for about in here}) >= 6
        clusters = [about.event_cluster for about in here if about.event_cluster]
        assert 5 <= len(clusters) <= 8 and set(clusters) <= EVENT_CLUSTERS.keys()
    assert len({about.event_cluster for _, about in said.values()}) >= 4


def test_values_are_possible_and_the_hour_is_the_lights():
    for _, about in demo().values():
        assert 1 <= about.month <= 12
        assert abs(about.hour - HOUR_OF_DAY["harbour"]) <= 1
        assert about.events is None or about.event_cluster
        for event in json.loads(about.events or "[]"):
            assert set(event) == {"event_start_frame", "event_start_timestamp", "coc"}
            # As at the source: frame 16 at 1,448,872 µs.
            start_us = 1_448_872 + (event["event_start_frame"] - 16) * 100_000
            assert event["event_start_timestamp"] == start_us
            assert 0 <= start_us < SECONDS * 1e6
    lists = [about.events for _, about in demo().values() if about.event_cluster]
    assert None in lists and any(lists)


def test_a_clip_is_the_same_in_any_world_that_holds_it():
    assert demo() == demo()
    (clip_id, (chunk, about)), *_ = demo().items()
    assert circumstances(clip_id, 0, chunk, "harbour", SECONDS) == about
    assert circumstances(clip_id, 0, chunk, "meadow", SECONDS).hour != about.hour
