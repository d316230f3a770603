"""What holds for every picture that a notebook shows."""

import io

import numpy as np
from PIL import Image


def finding(picture):
    """Its title on one line."""
    return picture.get_suptitle().replace("\n", " ")


def fits_a_notebook(name, picture):
    """It is a PNG of 1200 px at most, not empty, and nothing is cut off at an edge."""
    image = Image.open(io.BytesIO(picture.png()))
    assert image.format == "PNG" and image.width <= 1200, name
    ink = np.asarray(image.convert("L")) < 250
    assert ink.mean() > 0.005, f"{name} is empty"
    edges = (ink[0], ink[-1], ink[:, 0], ink[:, -1])
    assert not any(edge.any() for edge in edges), f"{name}: something is cut off at an edge"


def names_its_axes(name, picture):
    for axes in picture.axes:
        is_bottom = axes.get_subplotspec().is_last_row()
        if is_bottom and len(axes.get_xticks()) and (axes.lines or axes.patches):
            assert axes.get_xlabel(), f"{name}: an x axis without its unit"
