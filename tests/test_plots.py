"""Plots: size, clipping, display in a notebook, and titles that match the data."""

import io
import itertools
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit.audit import Audit
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.run.build import Built
from avomni_lib.evaluation.answer import ComparedWindow
from avomni_lib.notebook.pages import tables
from avomni_lib.notebook.plots import audit, canvas, etl, tiles, training
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import cached_run
from tests.pictures import finding, fits_a_notebook, names_its_axes

FEATURES = tuple(camera.name for camera in cameras.grid("4-cam").cameras) + ("egomotion",)
TARGET = (
    "<think>\nAvg Velocity: 5.23m/s. Total displacement: 42.15m.\n</think>\n"
    "Action: Displacement of 42.1 meters."
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    p = cached_run.make(tmp_path_factory.mktemp("pictures"))
    return Windows(Cache.open(p.cache_dir), cached_run.LENGTH, cached_run.STRIDE)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drive(num=80, turn=0.8):
    times = np.arange(num) / 10
    steps = np.stack([np.full(num, 0.8), np.linspace(0, turn, num)], axis=1)
    speed = 5 + np.sin(times)
    return tiles.WindowMotion(
        times, np.cumsum(steps, axis=0), np.linspace(0, turn, num), speed, 24, 40, 30
    )


def audit_with(num_clips, **states_of):
    """An audit where every part is "sound" except (clip, feature) pairs: `missing=[(3, 0)]`."""
    clips = [
        {"chunk": i // 100, "features": dict.fromkeys(FEATURES, "sound")} for i in range(num_clips)
    ]
    for state, places in states_of.items():
        for clip, feature in places:
            clips[clip]["features"][FEATURES[feature]] = state
    return Audit(FEATURES, [], clips, {}, [], "")


def file_rows(state, sizes):
    """File rows as 01 and 02 list them, one chunk per feature."""
    paths = [f"camera/{name}/{name}.chunk_0000.zip" for name in FEATURES[:4]]
    paths += ["labels/egomotion/egomotion.chunk_0000.zip", "clip_index.parquet"]
    return [
        {"path": path, "size": size, "state": state}
        for path, size in zip(paths, sizes, strict=False)
    ]


def built(seconds=30.0):
    chunks = [{"bytes_evicted": 8_200_000_000}] * 3
    # Raw files are fetched and evicted while the cache grows.
    moments = [
        (n * seconds / 30, int((8.2 - n % 10) * 1e9) % int(8.2e9), n * int(4e8)) for n in range(30)
    ]
    return Built(None, [], chunks, moments, {"num_clips_read": 1, "seconds": seconds})


def compared(before, after, speeds=(None, None), shape=(64, 96)):
    frames = np.stack([noise(*shape, i) for i in range(16)])
    return ComparedWindow("25cd4769", frames, TARGET, before, after, 5.23, *speeds)


@pytest.fixture(scope="module")
def pictures(windows):
    """One plot of each kind by name, for ordinary inputs and edge cases."""
    grid4, grid7 = cameras.grid("4-cam"), cameras.grid("7-cam")
    steps = np.arange(1, 200)
    logged = [
        {"step": s, "loss": 3 * np.exp(-s / 30) + 0.5, "seconds": 0.5, "data_wait_s": 0.002}
        for s in steps
    ]
    sizes = [30_000_000, 20_000_000, 15_000_000, 10_000_000, 500_000, 20_000]
    nothing = SimpleNamespace(clips=(), shards=())
    standing = tiles.WindowMotion(
        np.arange(4.0), np.zeros((4, 2)), np.zeros(4), np.zeros(4), 0, 4, 0
    )
    return {
        "matrix": audit.matrix(
            audit_with(200, damaged=[(40, 2)], missing=[(50, 4), (51, 4)], absent=[(199, 0)])
        ),
        "matrix of nothing": audit.matrix(audit_with(0)),
        "matrix of thousands": audit.matrix(
            audit_with(
                3100, damaged=[(2000, 2)], odd=[(7, 1)], evicted=[(i, 0) for i in range(900)]
            )
        ),
        "bytes": audit.bytes_by_feature(
            [*file_rows("sound", sizes), *file_rows("missing", sizes[:1])], 1.0
        ),
        "bytes fetched": audit.bytes_by_feature(
            [*file_rows("fetched", sizes), *file_rows("kept", sizes)], 1.0
        ),
        "bytes over the budget": audit.bytes_by_feature(file_rows("missing", sizes), 0.01),
        "bytes of nothing": audit.bytes_by_feature(file_rows("not chosen", sizes), 150.0),
        "contact sheet": etl.contact_sheet(windows.cache, 7),
        "one large contact": canvas.in_rows([noise(768, 1344)], ["25cd4769 train"], "1 clip"),
        "contact of nothing": etl.contact_sheet(nothing),
        "timelines": etl.timelines(windows),
        "disk under a budget": etl.disk(built(), 25.0),
        "disk without a budget": etl.disk(built(), None),
        "small preview": tiles.preview(noise(64, 96), grid4, drive(), "96 vision tokens"),
        "large preview": tiles.preview(noise(768, 1344), grid7, drive(), "8,064 vision tokens"),
        "standing": tiles.preview(noise(64, 96), grid4, standing, "a car at rest"),
        "motion": tiles.motion(drive()),
        "curve": training.curve(logged),
        "steep curve without wait": training.curve(
            [{"step": step, "loss": np.exp(-step / 20.0)} for step in steps]
        ),
        "curve of no step": training.curve([]),
        "before and after": training.before_after(
            compared(TARGET, "$x$ babble_{ " * 60, (9.99, None)), grid4
        ),
        "before alone": training.before_after(compared("", None), grid4),
        "silent model": training.before_after(compared("", "\n\n", shape=(96, 96)), grid7),
    }


def test_plots_fit_1200_px_without_clipping(pictures):
    for name, picture in pictures.items():
        fits_a_notebook(name, picture)


def test_plots_have_a_finding_and_axis_labels(pictures):
    for name, picture in pictures.items():
        assert picture._suptitle is not None or name == "motion", f"{name} has no finding"
        names_its_axes(name, picture)


def test_plot_is_displayed_once_without_importing_pyplot():
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


def test_saved_plots_of_third_party_clips_carry_a_banner(tmp_path):
    def saved(source):
        p = Params.from_values(
            {"run": {"outputs_dir": str(tmp_path), "name": source}, "dataset": {"source": source}}
        )
        stage = runs.OpenStage(p, runs.BY_NAME["05_train"])
        picture = stage.save(training.curve([]), "loss")
        assert stage.save(picture, "loss") is picture
        image = Image.open(stage.figures_dir / "loss.png").convert("RGB")
        return np.asarray(image).astype(int)

    plain, marked = saved("world"), saved("hub")
    assert len(marked) == len(plain) + canvas.BANNER_PX, "once, below the picture"
    foot = marked[-canvas.BANNER_PX :]
    assert ((foot[..., 0] > 150) & (foot[..., 1] < 80)).mean() > 0.1, "red"
    ink = marked[: -canvas.BANNER_PX].min(axis=2) < 250
    assert ink.sum() == pytest.approx((plain.min(axis=2) < 250).sum(), rel=0.2), "nothing covered"


def test_banner_is_drawn_below_the_note():
    def foot(text):
        picture = canvas.Picture(800, 300)
        picture.add_subplot().plot([0, 1])
        picture.note("how to read it\nand what a dot is")
        picture.banner(text)
        image = np.asarray(Image.open(io.BytesIO(picture.png())).convert("RGB")).astype(int)
        return image

    marked, unmarked = foot("confidential"), foot("")
    red = (marked[..., 0] > 150) & (marked[..., 1] < 80)
    assert red.any()
    ink = unmarked.min(axis=2) < 200
    assert not ink[red.any(axis=1)].any(), "the banner's rows hold nothing else"


def test_live_curve_is_redrawn_only_with_a_front_end(monkeypatch):
    import IPython.display

    shown = []

    class Handle:
        def update(self, picture):
            shown.append(finding(picture))

    monkeypatch.setattr(training.progress, "has_front_end", lambda: False)
    assert training.live() is None
    monkeypatch.setattr(training.progress, "has_front_end", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda picture, display_id: Handle())
    watch = training.live()
    lines = [{"step": step, "loss": 1.0, "samples_per_s": 9.0} for step in (1, 2)]
    watch(lines[:1])
    watch(lines)
    assert [text.partition(" in ")[2] for text in shown] == ["1 steps", "2 steps"]


def test_titles_match_the_data(pictures, windows):
    titles = {name: finding(picture) for name, picture in pictures.items() if name != "motion"}
    assert titles["matrix"] == (
        "5 features of 200 clips, 1,000 parts: 996 sound, 1 damaged, 2 missing, 1 absent"
    )
    assert titles["matrix of thousands"] == (
        "5 features of 3,100 clips, 15,500 parts: 14,598 sound, 1 odd, 1 damaged, 900 evicted"
    )
    assert titles["bytes"] == (
        "The chosen chunks take 105.5 MB (75.5 MB on the disk, 30.0 MB to fetch): "
        "11% of the budget of 1.00 GB"
    )
    assert "(75.5 MB on the disk, 75.5 MB fetched now)" in titles["bytes fetched"]
    assert titles["bytes over the budget"].endswith("755% of the budget of 10.0 MB")
    assert (
        titles["curve"].startswith("Loss went from 3.40 to 0.5") and "0.4% of a" in titles["curve"]
    )
    assert titles["before and after"] == (
        "The car drives 5.23 m/s; the base model answers 9.99 m/s; "
        "the adapted model answers text that cannot be read"
    )
    assert titles["before alone"].endswith("the base model answers text that cannot be read")
    assert titles["timelines"].startswith(f"{len(windows)} windows lie on the clips")
    assert titles["contact sheet"].startswith("7 of the 12 clips in the cache")


@pytest.mark.parametrize("state", ["sound", "missing", "absent", "evicted"])
def test_audit_title_counts_only_chosen_parts(state):
    places = [(clip, feature) for clip in range(2) for feature in range(len(FEATURES))]
    assert finding(audit.matrix(audit_with(2, **{state: places}))) == (
        f"5 features of 2 clips, 10 parts: 10 {state}"
    )
    states = {state: places[5:], "not chosen": places[:5]}
    assert finding(audit.matrix(audit_with(2, **states))).endswith(f", 5 chosen parts: 5 {state}")


def cells(picture):
    """(features, columns) of the states that a matrix shows."""
    codes = np.asarray(picture.axes[0].images[0].get_array())
    return np.array(audit.WORST, object)[codes]


@pytest.mark.parametrize("num_clips", [100, 300, 301, 3100])
def test_audit_matrix_shows_every_fault_for_any_number_of_clips(num_clips):
    damaged_idx, odd, missing_idx = num_clips - 1, num_clips // 2, 3
    picture = audit.matrix(
        audit_with(
            num_clips,
            damaged=[(damaged_idx, 2)],
            odd=[(odd, 1), (damaged_idx, 2)],
            missing=[(missing_idx, 0)],
        )
    )
    shown = cells(picture)
    per_column = -(-num_clips // shown.shape[1])
    assert shown.shape[1] == (num_clips if num_clips <= 300 else -(-num_clips // per_column))
    assert 100 <= shown.shape[1] <= 300
    faults = {(1, odd // per_column): "odd", (0, missing_idx // per_column): "missing"}
    faults[2, damaged_idx // per_column] = "odd"
    for place, state in faults.items():
        assert shown[place] == state
    assert (shown != "sound").sum() == len(faults)
    label = picture.axes[0].get_xlabel()
    assert (f"a column is {per_column:,} clips" in label) == (per_column > 1)
    # Each mark is in the column of its clip.
    (dots,) = [line for line in picture.axes[0].lines if line.get_marker() == "."]
    places = sorted((dots.get_xdata() - 0.5) // per_column)
    assert places == sorted({odd // per_column, damaged_idx // per_column})


def test_column_of_several_clips_shows_the_worst_state():
    for better, worse in itertools.pairwise(reversed(audit.WORST)):
        states = {better: [(clip, 0) for clip in range(600)], worse: [(301, 0)]}
        shown = cells(audit.matrix(audit_with(600, **states)))
        assert shown[0, 150] == worse and set(shown[0, :150]) == {better}


def test_feature_is_derived_from_the_file_path():
    assert audit.feature_of("labels/egomotion/egomotion.chunk_0000.zip") == "egomotion"
    assert audit.feature_of("metadata/data_collection.parquet") == "metadata"
    assert audit.feature_of("features.csv") == "metadata"


def test_timeline_draws_every_window_at_its_time(windows):
    picture = etl.timelines(windows, len(windows.cache.clips))
    for axes, clip in zip(picture.axes, windows.cache.clips, strict=True):
        _, *drawn = [line.get_xdata().tolist() for line in axes.lines]
        times = [
            windows.times_us(i)[[0, -1]] for i, w in enumerate(windows) if w.clip_id == clip.clip_id
        ]
        expected = (np.array(times) - times[0][0]) / 1e6
        assert len(times) > 1 and drawn == pytest.approx(expected)


@pytest.mark.parametrize("setup", ["4-cam", "7-cam"])
@pytest.mark.parametrize("scale", [1, 3])
def test_tile_labels_cover_no_pixels(setup, scale):
    grid = cameras.grid(setup)
    image = noise(grid.rows * 20, grid.cols * 80)
    sheet = canvas.name_tiles(image, grid, scale)
    for place in range(grid.rows * grid.cols):
        row, col = divmod(place, grid.cols)
        left, top, right, bottom = canvas.tile_box(image.shape, grid, row, col, scale)
        tile = image[row * 20 : row * 20 + 20, col * 80 : col * 80 + 80]
        assert np.array_equal(sheet[top:bottom, left:right][::scale, ::scale], tile)
        band = sheet[top - canvas.CAPTION_PX : top, left:right]
        assert (band.min() < 128) == (grid.cells[place] is not None), "named, unless empty"


def test_path_is_drawn_in_the_current_ego_frame():
    # Ten metres east, then ten metres north; the current frame is the corner, heading north.
    east = np.stack([np.linspace(0, 10, 11), np.zeros(11)], axis=1)
    north = np.stack([np.full(10, 10.0), np.linspace(1, 10, 10)], axis=1)
    yaw = np.array([0.0] * 10 + [np.pi / 2] * 11)
    motion = tiles.WindowMotion(
        np.arange(21.0), np.vstack([east, north]), yaw, np.ones(21), 0, 21, 10
    )
    xy = motion.xy_ego_m()
    assert np.allclose(xy[10], 0)
    assert np.allclose(xy[-1], [10, 0]), "ten metres on, straight ahead"
    assert np.allclose(xy[0], [0, 10]), "where it came from lies to the left"


def test_loss_curve_includes_a_running_mean():
    loss = np.random.default_rng(0).random(60)
    picture = training.curve([{"step": step, "loss": raw} for step, raw in enumerate(loss, 1)])
    raw, smooth = (line.get_ydata() for line in picture.axes[0].lines)
    assert np.array_equal(raw, loss)
    assert smooth == pytest.approx([loss[max(i - 2, 0) : i + 1].mean() for i in range(60)])


def test_outcome_table_formats_every_kind_of_figure():
    finished = {
        "stage": "03_etl",
        "seconds": 4000.4,
        "peak_memory_gb": 1.234,
        "figures": {
            "num_clips": 98_000,
            "cache_bytes": 6_046_264,
            "clips_by_split": {"train": 70, "val": 0, "test": 28},
            "digest": "c71d89a05212670713c37a3ba3d6a7102869383050f5d6055e04b514df23b569",
            "heldout": [{"step": 1}, {"step": 2}],
            "data_wait_share": 0.0123456,
            "train_seconds": 52_000.7,
            "resumed": True,
            "streams": {name: {"codec": "h264"} for name in FEATURES},
            "estimate": {},
            "oldest_file": None,
        },
    }
    shown = tables.outcome(finished)["what came out"]
    assert list(shown.items()) == [
        ("stage", "03_etl"),
        ("time", "67 min"),
        ("memory at most", "1.23 GB"),
        ("clips", "98,000"),
        ("cache bytes", "6.05 MB"),
        ("clips by split", "train 70, test 28"),
        ("digest", "c71d89a05212…"),
        ("heldout", "2 entries"),
        ("data wait share", "0.01235"),
        ("train seconds", "52,001"),
        ("resumed", "yes"),
        ("streams", "5 entries"),
    ]


@pytest.mark.parametrize(
    ("clip_id", "shown"),
    [
        ("0024fd1c-4335-43f7-ab05-cce4d4c1c111", "0024fd1c"),
        ("episode_000012", "episode_000012"),
        ("a_long_name_of_a_drive_0012", "…ame_of_a_drive_0012"),
    ],
)
def test_clip_ids_are_shortened_for_plots(clip_id, shown):
    assert canvas.short(clip_id) == shown
