"""Pictures: each fits a notebook, cuts nothing off, is shown once, says what its numbers say."""

import io

import nbformat
import numpy as np
import pyarrow as pa
import pytest
from nbclient import NotebookClient
from PIL import Image

from avomni_lib.dataset import rig
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.baselines import Constant, constants
from avomni_lib.notebook.plots import audit, canvas, download, etl, evaluation, tiles, training

FEATURES = [camera.name for camera in rig.grid("4-cam").cameras] + ["egomotion"]
TARGET = (
    "<think>\nAvg Velocity: 5.23m/s. Total displacement: 42.15m.\n</think>\n"
    "Action: Displacement of 42.1 meters."
)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drive(num=80, turn=0.8):
    times = np.arange(num) / 10
    steps = np.stack([np.full(num, 0.8), np.linspace(0, turn, num)], axis=1)
    speed = 5 + np.sin(times)
    return tiles.Drive(
        times, np.cumsum(steps, axis=0), np.linspace(0, turn, num), speed, 24, 40, 30
    )


def answers(num=120, unread=3):
    rng = np.random.default_rng(0)
    true = [(float(speed), float(speed * 1.5)) for speed in rng.uniform(0, 20, num)]
    clips, windows = [f"{i // 10:08d}-0000" for i in range(num)], [i % 10 for i in range(num)]
    best = constants(true)
    parts = [metrics.rows(k, clips, windows, true, [best[k]] * num, [None] * num) for k in best]
    for model, spread in (("base", 4.0), ("blind", 9.0), ("adapted", 1.0)):
        said = [Constant(abs(a + rng.normal() * spread), b) for a, b in true]
        said[:unread] = [None] * unread
        text = ["$junk$ $" if one is None else "…" for one in said]
        parts.append(metrics.rows(model, clips, windows, true, said, text))
    return pa.concat_tables(parts)


def states_of(num_clips=200):
    states = np.full((len(FEATURES), num_clips), "sound", dtype=object)
    states[:, num_clips // 2 :] = "not chosen"
    states[2, 40], states[4, 50:53] = "damaged", "missing"
    return states


def every_picture():
    """One of each, by name, on ordinary and on awkward input."""
    frames = np.stack([noise(64, 96, i) for i in range(16)])
    grid4, grid7 = rig.grid("4-cam"), rig.grid("7-cam")
    here = {name: 10_000_000 * (i + 1) for i, name in enumerate(FEATURES)}
    table = answers()
    figures = metrics.figures(table)
    rows = metrics.worst(table, "adapted", 3)
    lines = [
        etl.ClipLine(f"{i}bcdef00-1111", split, drive().times_s, drive().speed_mps, [(0, 15)])
        for i, split in enumerate(("train", "val", "test"))
    ]
    steps = np.arange(1, 200)
    logged = [
        {"step": s, "loss": 3 * np.exp(-s / 30) + 0.5, "seconds": 0.5, "data_wait_s": 0.002}
        for s in steps
    ]
    made = {
        "matrix": audit.matrix(FEATURES, [str(i) for i in range(200)], states_of()),
        "matrix of nothing": audit.matrix(FEATURES, [], np.zeros((len(FEATURES), 0))),
        "bytes": download.bytes_by_feature(here, {FEATURES[0]: 5_000_000}, 1e9),
        "bytes over the budget": download.bytes_by_feature({}, here, 1e7),
        "bytes of nothing": download.bytes_by_feature({}, {}, 150e9),
        "contact sheet": etl.contact_sheet([noise(64, 96)] * 7, ["25cd4769 train"] * 7, "7 clips"),
        "one large contact": etl.contact_sheet([noise(768, 1344)], ["25cd4769 train"], "1 clip"),
        "no contact": etl.contact_sheet([], [], "no clip went into the cache"),
        "timelines": etl.timelines(lines, 800),
        "clips by state": etl.clips_by_state(
            {"train": 70, "test": 28}, {"camera_rear_left_70fov: the zip is cut short " * 3: 2}, 30
        ),
        "small preview": tiles.preview(noise(64, 96), grid4, drive(), "96 vision tokens"),
        "large preview": tiles.preview(noise(768, 1344), grid7, drive(), "8,064 vision tokens"),
        "standing": tiles.preview(
            noise(64, 96),
            grid4,
            tiles.Drive(np.arange(4.0), np.zeros((4, 2)), np.zeros(4), np.zeros(4), 0, 4, 0),
            "a car at rest",
        ),
        "motion": tiles.motion(drive()),
        "curve": training.curve(logged),
        "steep curve without wait": training.curve(
            [{"step": step, "loss": np.exp(-step / 20.0)} for step in steps]
        ),
        "curve of no step": training.curve([]),
        "before and after": training.before_after(
            frames, grid4, TARGET, TARGET, "$x$ babble_{ " * 60, "Before 5.23 m/s, after unreadable"
        ),
        "silent model": training.before_after(frames, grid7, TARGET, "", "\n\n", "says nothing"),
        "ladder": evaluation.ladder(figures),
        "scatter": evaluation.predicted_against_true(table),
        "worst": evaluation.worst(rows, [frames] * len(rows), grid4),
        "no worst": evaluation.worst([], [], grid4),
    }
    return made


@pytest.fixture(scope="module")
def pictures():
    return every_picture()


def test_pictures_are_png_of_1200_px_at_most_with_nothing_cut_off(pictures):
    for name, picture in pictures.items():
        image = Image.open(io.BytesIO(picture.png()))
        assert image.format == "PNG" and image.width <= 1200, name
        ink = np.asarray(image.convert("L")) < 250
        assert ink.mean() > 0.01, f"{name} is empty"
        edges = (ink[0], ink[-1], ink[:, 0], ink[:, -1])
        assert not any(edge.any() for edge in edges), f"{name}: something is cut off at an edge"


def test_every_picture_states_a_finding_and_names_its_axes(pictures):
    for name, picture in pictures.items():
        assert picture._suptitle is not None or name == "motion", f"{name} has no finding"
        for axes in picture.axes:
            is_bottom = axes.get_subplotspec().is_last_row()
            if is_bottom and len(axes.get_xticks()) and (axes.lines or axes.patches):
                assert axes.get_xlabel(), f"{name}: an x axis without its unit"


def test_a_picture_is_shown_once_by_a_kernel_that_never_imported_pyplot():
    sources = (
        "from avomni_lib.notebook.plots import training\ntraining.curve([])",
        "import sys\n'matplotlib.pyplot' in sys.modules",
    )
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = [sorted(output.data) for output in notebook.cells[0].outputs]
    assert shown == [["image/png", "text/plain"]]
    assert notebook.cells[1].outputs[0].data["text/plain"] == "False"


def test_titles_say_what_the_numbers_say(pictures):
    title = {name: picture._suptitle for name, picture in pictures.items()}
    said = {name: text.get_text().replace("\n", " ") for name, text in title.items() if text}
    assert said["matrix"] == "496 of 500 parts of the chosen clips are sound, 1 damaged, 3 missing"
    assert "155.0 MB (5.00 MB to fetch, 150.0 MB on disk): 16% of the budget" in said["bytes"]
    assert "1500% of the budget of 10.0 MB" in said["bytes over the budget"]
    assert said["clips by state"].startswith("98 clips are in the cache at 196 clips a minute, 2 l")
    assert said["curve"].startswith("Loss went from 3.40 to 0.5") and "0.4% of a" in said["curve"]
    assert said["ladder"].startswith("The adapted model beats every other row")
    assert "on 120 windows of 12 held-out clips" in said["ladder"]


def test_the_ladder_says_so_when_the_model_is_beaten():
    figures = metrics.figures(answers())
    figures["speed_mae_mps"]["adapted"] = 99.0
    title = evaluation.ladder(figures)._suptitle.get_text().replace("\n", " ")
    assert title.startswith("The adapted model does not beat every row: 99.00 m/s, base model has")


def test_all_sound_and_nothing_there_are_told_apart():
    everything = np.full((2, 3), "sound", dtype=object)
    assert "All 6 parts" in _finding(everything) and "None of the 6" in _finding(
        np.full((2, 3), "missing", dtype=object)
    )
    everything[0, 0] = "evicted"
    assert _finding(everything).endswith("5 of 6 parts of the chosen clips are sound, 1 evicted")


def _finding(states):
    picture = audit.matrix(["a", "b"], ["1", "2", "3"], states)
    return picture._suptitle.get_text().replace("\n", " ")


@pytest.mark.parametrize("setup", ["4-cam", "7-cam"])
@pytest.mark.parametrize("scale", [1, 3])
def test_named_tiles_cover_no_pixel(setup, scale):
    grid = rig.grid(setup)
    image = noise(grid.rows * 20, grid.cols * 80)
    sheet = canvas.name_tiles(image, grid, scale)
    for place in range(grid.rows * grid.cols):
        row, col = divmod(place, grid.cols)
        left, top, right, bottom = canvas.tile_box(image.shape, grid, row, col, scale)
        tile = image[row * 20 : row * 20 + 20, col * 80 : col * 80 + 80]
        assert np.array_equal(sheet[top:bottom, left:right][::scale, ::scale], tile)
        band = sheet[top - canvas.CAPTION_PX : top, left:right]
        assert (band.min() < 128) == (grid.cells[place] is not None), "named, unless empty"


def test_the_path_is_drawn_in_the_ego_frame_of_the_frame_shown():
    # Ten metres east, then ten metres north; shown at the corner, already heading north.
    east = np.stack([np.linspace(0, 10, 11), np.zeros(11)], axis=1)
    north = np.stack([np.full(10, 10.0), np.linspace(1, 10, 10)], axis=1)
    yaw = np.array([0.0] * 10 + [np.pi / 2] * 11)
    there = tiles.Drive(np.arange(21.0), np.vstack([east, north]), yaw, np.ones(21), 0, 21, 10)
    xy = there.xy_ego_m()
    assert np.allclose(xy[10], 0)
    assert np.allclose(xy[-1], [10, 0]), "ten metres on, straight ahead"
    assert np.allclose(xy[0], [0, 10]), "where it came from lies to the left"


def test_running_mean_of_the_last_values():
    assert np.allclose(training.running_mean(np.array([4.0, 2, 6, 0]), 2), [4, 3, 4, 3])
