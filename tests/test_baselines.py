"""The best constants of the training split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import baselines


def test_mean_and_median_of_each_quantity_on_its_own():
    both = baselines.constants([(0.0, 30.0), (3.0, 0.0), (12.0, 6.0)])
    assert both["mean"] == baselines.Constant(5.0, 12.0)
    assert both["median"] == baselines.Constant(3.0, 6.0)


@given(
    true=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 400)), min_size=1, max_size=30),
    other=st.tuples(st.floats(0, 50), st.floats(0, 400)),
)
def test_no_other_constant_beats_the_median_in_mae_or_the_mean_in_rmse(true, other):
    both = baselines.constants(true)
    for name, values, candidate in (
        ("speed_mps", np.array([speed for speed, _ in true]), other[0]),
        ("displacement_m", np.array([path for _, path in true]), other[1]),
    ):
        median, mean = getattr(both["median"], name), getattr(both["mean"], name)
        assert np.abs(values - median).mean() <= np.abs(values - candidate).mean() + 1e-9
        assert np.square(values - mean).mean() <= np.square(values - candidate).mean() + 1e-9


def test_an_empty_training_split_is_refused():
    with pytest.raises(AvomniError, match="no training window"):
        baselines.constants([])
