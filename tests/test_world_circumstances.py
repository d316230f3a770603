"""What a rendered world says of its clips: of each kind some, and never by chance."""

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
    """clip_id -> its chunk and what is said of it, of a world as the demo's."""
    world = Params.model_validate(
        {"dataset": {"world": {"num_chunks": 2, "clips_per_chunk": 50}}}
    ).dataset.world
    return {
        c.clip_id: (c.chunk, circumstances(c.clip_id, c.number, c.chunk, "harbour"))
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
        assert about.event_cluster or not about.has_event
    special = [about.has_event for _, about in demo().values() if about.event_cluster]
    assert 2 * sum(special) > len(special) > sum(special), "most of them, not all"
    assert sum(map(has_event, range(100))) == sum(special)


def test_a_clip_is_the_same_in_any_world_that_holds_it():
    assert demo() == demo()
    (clip_id, (chunk, about)), *_ = demo().items()
    assert circumstances(clip_id, 0, chunk, "harbour") == about
    assert circumstances(clip_id, 0, chunk, "meadow").hour != about.hour
