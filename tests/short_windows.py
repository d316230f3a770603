"""Parameters of a model that drives: windows of three pictures 0.2 s apart."""

import numpy as np

from avomni_lib.params import Params

AHEAD_S = 0.4 * np.arange(1, 17)  # of its waypoints


def p_of(**changes: dict) -> Params:
    """An answer at every second picture; `changes` are sections of keys."""
    values = {
        "processing": {
            **{"sequence_length": 3, "sample_hz": 5, "tile_width": 12, "tile_height": 8},
            "fit": "stretch",
        },
        "vision": {"window_size": None},
        "training": {"target": "future_v1"},
        "live": {"hop": 2},
        "driving": {"smoothing": 0},
    }
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return Params.from_values(values)
