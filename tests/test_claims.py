"""Claims are made only if the figures support them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.evaluation import bootstrap, metrics
from avomni_lib.evaluation.claims import FEWEST_CLIPS, claims
from tests.answered import drives, summaries

MEAN = (10.0, 15.0)
bounds = st.floats(-5, 5).map(lambda value: round(value, 3))


def entry(name, value=1.0, apart=0.0, low=0.0, high=0.0, metric="speed_mae_mps", **more):
    return {
        **{"name": name, "target": "summary_v1", "metric": metric, "value": value},
        **{"low": value, "high": value, "difference_to_model": apart},
        **{"difference_low": low, "difference_high": high, "num_clips": 30},
        **{"num_windows": 300, "valid_share": 1.0, **more},
    }


def vision(*others):
    ladder = [*others, entry("adapted")]
    (claim,) = claims(ladder)
    return claim


def test_supported_claim_states_gain_interval_and_comparison():
    claim = vision(entry("blind", 3.0, 2.0, 1.5, 2.75))
    assert claim["holds"]
    assert claim["text"] == (
        "vision helps by 2.000 ± 0.625 m/s (mean absolute error of the speed: 1.000 against "
        "3.000 m/s of the model shown black frames; 95 % interval of the gain 1.500 to 2.750 m/s, "
        "30 clips)"
    )


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ((1.1, 0.1, -0.2, 0.5), "the gain of 0.100 ± 0.350 m/s may be none ("),
        ((0.5, -0.5, -0.7, -0.3), "the model is worse by 0.500 ± 0.200 m/s ("),
    ],
)
def test_interval_containing_or_below_zero_gives_no_evidence(row, text):
    claim = vision(entry("blind", *row))
    assert not claim["holds"]
    assert claim["text"].startswith(f"no evidence that vision helps: {text}")


def test_higher_f1_is_better():
    blind = entry("blind", 0.4, -0.5, -0.7, -0.3, metric="macro_f1")
    better = vision(blind)
    assert better["holds"] and better["text"].startswith("vision helps by 0.500 ± 0.200 (")
    assert "95 % interval of the gain 0.300 to 0.700, 30 clips" in better["text"]
    assert not vision(entry("blind", 0.9, 0.5, 0.3, 0.7, metric="macro_f1"))["holds"]


def test_vision_is_compared_with_the_model_trained_blind():
    claim = vision(entry("blind", 3.0, 2.0, 1.5, 2.5), entry("trained_blind", 1.0, 0, -0.1, 0.1))
    assert not claim["holds"]
    assert "trained and asked on black frames" in claim["text"]


@pytest.mark.parametrize(("valid", "text"), [(0.25, "75 %"), (0.999, "under 1 %")])
def test_claim_states_the_share_of_unreadable_answers(valid, text):
    claim = vision(entry("blind", 3.0, 2.0, 1.5, 2.5, valid_share=valid))
    wanted = f"black frames, {text} of whose answers cannot be read and count as the mean's"
    assert wanted in claim["text"]


@pytest.mark.parametrize("num_clips", [1, 2, FEWEST_CLIPS - 1])
def test_few_clips_support_no_claim(num_clips):
    low, high = (None, None) if num_clips < 2 else (1.5, 2.5)
    claim = vision(entry("blind", 3.0, 2.0, low, high, num_clips=num_clips))
    assert not claim["holds"]
    assert claim["text"].startswith("nothing can be said on whether vision helps: ")
    assert f"held-out clips: {num_clips}, too few" in claim["text"]


def test_figure_without_any_window_supports_no_claim():
    claim = vision(entry("blind", None, None, None, None, num_clips=0))
    assert claim["text"] == "nothing can be said on whether vision helps: no window has this figure"


@given(low=bounds, high=bounds, f1=st.booleans())
def test_claim_holds_exactly_if_the_interval_shows_a_gain(low, high, f1):
    low, high = sorted((low, high))
    metric = "macro_f1" if f1 else "ade_m"
    claim = vision(entry("blind", 1.0, (low + high) / 2, low, high, metric=metric))
    assert claim["holds"] == (high < 0 if f1 else low > 0)
    assert claim["holds"] == claim["text"].startswith("vision helps by ")


def test_claims_of_a_table_follow_from_its_rows():
    asked, near = drives(FEWEST_CLIPS + 2, spread=0.2)
    far = [(speed + 2, path) for speed, path in near]
    rows = {
        "median": far,
        "ctra": far,
        "ego_motion": near,
        "base": far,
        "blind": ["?"] * len(asked),
    }
    figures = metrics.figures(summaries(asked, MEAN, **rows, adapted=near))
    held = {claim["text"].split(" by ")[0] for claim in figures["claims"] if claim["holds"]}
    assert held == {
        *("vision helps", "the model beats the mean", "the model beats the median"),
        "training helps",
    }
    (other,) = (claim["text"] for claim in figures["claims"] if not claim["holds"])
    assert other.startswith(
        "no evidence that the model beats past motion alone: the gain of 0.000 ± 0.000 m/s"
    )


@pytest.mark.parametrize("num_clips", [FEWEST_CLIPS, 30])
def test_false_claims_are_rare_without_a_difference(num_clips):
    clips, num, claimed = np.repeat(np.arange(num_clips), 3), 400, 0
    for repetition in range(num):
        draw = np.random.default_rng(repetition)
        rows = np.stack([np.zeros(len(clips)), draw.normal(size=num_clips)[clips]])
        _, (_, apart) = bootstrap.estimates(bootstrap.mean(rows, clips), 0, seed=repetition)
        other = entry("blind", 1.0, apart.value, apart.low, apart.high, num_clips=num_clips)
        claimed += vision(other)["holds"]
    # The nominal rate is 2.5 %; `FEWEST_CLIPS` documents the observed one.
    assert claimed / num < 0.075
