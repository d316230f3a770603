"""Attributes of the clips of a rendered world: varied and deterministic."""

from collections import Counter

from avomni_lib.params import Params
from avomni_world.publish.attributes import (
    COUNTRIES,
    EVENT_CLUSTERS,
    HOUR_OF_DAY,
    PLATFORMS,
    Circumstances,
    circumstances,
    has_event,
)
from avomni_world.publish.dataset import world_clips


def demo() -> dict[str, tuple[int, Circumstances]]:
    """clip_id -> its chunk and its attributes, in a world like the demo's."""
    world = Params.model_validate(
        {"dataset": {"world": {"num_chunks": 2, "clips_per_chunk": 50}}}
    ).dataset.world
    return {
        c.clip_id: (c.chunk, circumstances(c.clip_id, c.number, c.chunk, "harbour"))
        for c in world_clips(world)
    }


def test_each_chunk_has_varied_attributes():
    attributes = demo()
    for chunk in (0, 1):
        in_chunk = [about for clip_chunk, about in attributes.values() if clip_chunk == chunk]
        countries = Counter(about.country for about in in_chunk)
        assert len(countries) >= 3 and countries.most_common(1)[0][0] == COUNTRIES[chunk]
        platforms = Counter(about.platform for about in in_chunk)
        assert platforms.keys() == PLATFORMS.keys() and platforms["hyperion_8.1"] > 25
        assert len({about.hour for about in in_chunk}) == 3
        assert len({about.month for about in in_chunk}) >= 6
        clusters = [about.event_cluster for about in in_chunk if about.event_cluster]
        assert 5 <= len(clusters) <= 8 and set(clusters) <= EVENT_CLUSTERS.keys()
    assert len({about.event_cluster for _, about in attributes.values()}) >= 4


def test_attributes_are_plausible_and_the_hour_matches_the_light():
    for _, about in demo().values():
        assert 1 <= about.month <= 12
        assert abs(about.hour - HOUR_OF_DAY["harbour"]) <= 1
        assert about.event_cluster or not about.has_event
    special = [about.has_event for _, about in demo().values() if about.event_cluster]
    assert 2 * sum(special) > len(special) > sum(special), "most of them, not all"
    assert sum(map(has_event, range(100))) == sum(special)


def test_clip_attributes_do_not_depend_on_the_world():
    assert demo() == demo()
    (clip_id, (chunk, about)), *_ = demo().items()
    assert circumstances(clip_id, 0, chunk, "harbour") == about
    assert circumstances(clip_id, 0, chunk, "meadow").hour != about.hour
