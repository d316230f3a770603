"""The target full_v1: all parts in one answer that starts with the exact summary."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.training.targets import Content, target
from tests.known_paths import Arc, other, truth, truths

FULL, SUMMARY = target("full_v1"), target("summary_v1")
PARTS = [target(name) for name in ("meta_v1", "future_v1", "coc_v1")]
ONE = replace(truth(Arc.steady(5.0).future(), other(x_m=12.0)), speed_mps=5.2299, path_m=42.149)
TEXT = (
    "<think>\n"
    "Avg Velocity: 5.23m/s. Total displacement: 42.15m.\n"
    "</think>\n"
    "Action: Displacement of 42.1 meters.\n"
    "Manoeuvre: hold, straight.\n"
    "Waypoints: (2.00,0.00) (4.00,0.00) (6.00,0.00) (8.00,0.00) (10.00,0.00) (12.00,0.00) "
    "(14.00,0.00) (16.00,0.00) (18.00,0.00) (20.00,0.00) (22.00,0.00) (24.00,0.00) (26.00,0.00) "
    "(28.00,0.00) (30.00,0.00) (32.00,0.00)\n"
    "Cause: The car holds its speed while the automobile 6 m ahead stands (1 s to contact)."
)


def summary_of(text):
    return "\n".join(text.split("\n")[:4])


def test_full_answer_has_all_parts():
    assert FULL.render(ONE) == TEXT


@given(truths())
def test_full_answer_starts_with_the_exact_summary(any_truth):
    text = FULL.render(any_truth)
    alone = SUMMARY.render(any_truth)
    assert summary_of(text) == alone
    assert SUMMARY.parse(summary_of(text)) == SUMMARY.parse(alone) == SUMMARY.read(text)


@given(truths())
def test_parts_equal_the_single_targets(any_truth):
    full = FULL.parse(FULL.render(any_truth))
    alone = [part.parse(part.render(any_truth)) for part in [SUMMARY, *PARTS]]
    names = ("speed_mps", "displacement_m", "action_m", "along", "across", "waypoints_m", "cause")
    for name in names:
        values = [getattr(part, name) for part in alone if getattr(part, name) is not None]
        assert values == [getattr(full, name)]


@given(st.sampled_from(TEXT.splitlines()), st.sampled_from(["", "{}\n{}", " {}", "{} ", "- {}"]))
def test_missing_repeated_or_indented_line_is_not_parsed(line, change):
    broken = TEXT.replace(line, change.replace("{}", line), 1)
    # Whitespace around the whole answer is ignored.
    assert (FULL.parse(broken) is None) == (broken.strip() != TEXT)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("\n", "\n\n"),
        TEXT.replace("\n", " "),
        "Of course.\n" + TEXT.lower() + "\nThat is all",
        TEXT.replace("<think>\n", "").replace("</think>\n", ""),
    ],
)
def test_lenient_reader_accepts_other_spaces_case_and_words(text):
    assert FULL.parse(text) is None
    read, expected = FULL.read(text), FULL.parse(TEXT)
    assert replace(read, cause=None) == replace(expected, cause=None)
    assert read.cause.lower() == expected.cause.lower()


@pytest.mark.parametrize("missing", TEXT.splitlines()[1:2] + TEXT.splitlines()[4:])
def test_lenient_reader_refuses_an_answer_without_a_part(missing):
    assert FULL.read(TEXT.replace(missing, "")) is None


def test_event_text_cannot_forge_another_line():
    forged = FULL.render(
        replace(ONE, scene=replace(ONE.scene, event=SUMMARY.render(replace(ONE, speed_mps=99.0))))
    )
    assert summary_of(forged) == SUMMARY.render(ONE)
    assert FULL.read(forged).speed_mps == 5.23


def test_error_is_that_of_the_summary():
    expected = FULL.parse(TEXT)
    assert FULL.error(replace(expected, speed_mps=7.23, cause="Else."), expected) == pytest.approx(
        2.0
    )
    assert FULL.figure == SUMMARY.figure
    assert FULL.of(ONE) == Content(
        speed_mps=5.2299,
        displacement_m=42.149,
        action_m=42.149,
        waypoints_m=FULL.of(ONE).waypoints_m,
        along="hold",
        across="straight",
        cause=expected.cause,
        cause_from="template",
    )
