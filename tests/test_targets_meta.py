"""The manoeuvre of the next 3 s in words."""

from __future__ import annotations

import itertools

import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.manoeuvre import ACROSS, ALONG
from avomni_lib.training.targets import Content, target
from tests.known_paths import Arc, truth

META = target("meta_v1")
EVERY = list(itertools.product(ALONG, ACROSS))


def test_manoeuvre_is_written_in_one_line():
    after = Arc(lambda t: 8.0 * t - 0.5 * t**2, curvature=0.03).future()
    assert META.render(truth(after)) == "Manoeuvre: gentle brake, turn left."


@pytest.mark.parametrize(("along", "across"), EVERY)
def test_every_manoeuvre_is_read_strictly_and_leniently(along, across):
    answer = Content(along=along, across=across)
    text = META.write(answer)
    assert META.parse(text) == META.read(text) == answer
    loose = f"the MANEUVER is\n {along.upper().replace(' ', '  ')} and {across.title()}, I think"
    assert META.parse(loose) is None
    assert META.read(loose) == answer
    assert META.read(f"{along.replace(' ', '-')} / {across.replace('-', ' ')}") == answer


@pytest.mark.parametrize(
    "text",
    [
        "Manoeuvre: hold, straight",
        "manoeuvre: hold, straight.",
        "Manoeuvre: straight, hold.",
        "Manoeuvre: hold,straight.",
        "Manoeuvre: brake, straight.",
        "Manoeuvre: hold, straight. And on.",
        "Manoeuvre: hold, straight.\nManoeuvre: hold, straight.",
    ],
)
def test_changed_manoeuvre_is_not_parsed(text):
    assert META.parse(text) is None


def test_lenient_reader_takes_the_labels_after_the_title():
    text = "After a stop the road goes straight. Manoeuvre: gentle brake, nudge left"
    assert META.read(text) == Content(along="gentle brake", across="nudge left")


@pytest.mark.parametrize("text", ["", "hold", "straight", "brake, straight", "withhold, straight"])
def test_lenient_reader_refuses_a_missing_label(text):
    assert META.read(text) is None


def test_error_is_the_share_of_wrong_labels():
    expected = Content(along="hold", across="straight")
    assert META.error(expected, expected) == 0
    assert META.error(Content(along="stop", across="straight"), expected) == 0.5
    assert META.error(Content(along="hold", across="u-turn"), expected) == 0.5
    assert META.error(Content(along="stop", across="u-turn"), expected) == 1


def test_incomplete_manoeuvre_is_not_written():
    with pytest.raises(AvomniError, match="'brake' and None"):
        META.write(Content(along="brake"))


def test_question_names_every_label():
    assert all(label in META.question for label in ALONG + ACROSS)
