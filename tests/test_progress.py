"""Progress bars: their text at the start, in between and at the end, and the choice of bar."""

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
import tqdm.std
from nbclient import NotebookClient

from avomni_lib.notebook import progress
from avomni_lib.plan import Bar

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


@pytest.fixture
def lines_of(monkeypatch, capsys):
    """The lines written for (seconds passed, amount) updates, without their times of day."""
    now_s = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now_s[0])

    def write(total, unit, updates, fail=False):
        with contextlib.suppress(KeyboardInterrupt), progress.LineBar(total, unit, "ETL") as bar:
            for seconds, amount in updates:
                now_s[0] += seconds
                bar.update(amount)
            if fail:
                raise KeyboardInterrupt
        lines = capsys.readouterr().out.splitlines()
        assert all(re.match(STAMP, line) for line in lines)
        return [re.sub(STAMP, "", line, count=1) for line in lines]

    return write


def test_short_work_prints_a_first_and_a_last_line(lines_of):
    lines = lines_of(4, "clip", [(0.5, 1)] * 4)
    assert lines == [
        "ETL: 0/4 clip (0%) in 00:00, ? clip/s, ? left",
        "ETL: 4/4 clip (100%) in 00:02,  2.00 clip/s",
    ]


def test_line_every_ten_seconds_shows_share_rate_and_time_left(lines_of):
    lines = lines_of(100, "clip", [(1, 1)] * 35)
    assert lines[1] == "ETL: 10/100 clip (10%) in 00:10,  1.00 clip/s, 01:30 left"
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "ETL: 35/100 clip (35%) in 00:35,  1.00 clip/s"


def test_bytes_are_shown_in_powers_of_ten(lines_of):
    lines = lines_of(2e9, "byte", [(11, 5e8), (1, 1.5e9)])
    assert lines[1] == "ETL: 500M/2.00GB (25%) in 00:11, 45.5MB/s, 00:33 left"
    assert lines[-1].startswith("ETL: 2.00G/2.00GB (100%) in 00:12")


def test_rate_excludes_work_done_before_a_resume(lines_of):
    line = lines_of(1000, "clip", [(0, 900)] + [(2, 1)] * 60)[-2]
    assert "1.99s/ clip, 01:19 left" in line, line


def test_interrupted_work_shows_where_it_stopped(lines_of):
    assert lines_of(10, "step", [(1, 3)], fail=True)[-1].startswith("ETL: stopped at 3/10 step")


def test_unknown_total_shows_a_count_without_a_share(lines_of):
    lines = lines_of(None, "row", [(11, 2000)])
    assert lines[1].startswith("ETL: 2000 row in 00:11, ")
    assert "%" not in "".join(lines) and "left" not in "".join(lines)


def test_empty_work_is_not_an_error(lines_of):
    assert lines_of(0, "clip", [])[-1].startswith("ETL: 0/0 clip")


@pytest.mark.parametrize("kind", [progress.LineBar, progress.WidgetBar])
def test_updates_from_threads_are_all_counted(kind, capsys):
    with kind(4000, "file", "fetch") as bar, ThreadPoolExecutor(4) as pool:
        list(pool.map(bar.update, [1] * 4000))
    assert bar.count == bar.meter.n == 4000


def test_line_bar_is_the_default_without_a_notebook():
    assert progress.bar() is progress.LineBar
    assert issubclass(progress.LineBar, Bar) and issubclass(progress.WidgetBar, Bar)


WORK = """
from avomni_lib.notebook import progress
with progress.bar()(3, "clip", "ETL") as bar:
    for _ in range(3):
        bar.update(1)
type(bar).__name__
"""
# A front end keeps the text of a display that is no longer updated.
UNFINISHED = "unfinished = progress.bar()(9, 'clip', 'ETL')\nunfinished.update(2)"


def test_batch_kernel_shows_lines_and_jupyterlab_a_widget():
    """In a real kernel; a front end with a user allows input requests."""
    sources = [WORK, WORK, UNFINISHED]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    with client.setup_kernel():
        for place, cell in enumerate(notebook.cells):
            client.kc.allow_stdin = place > 0
            client.execute_cell(cell, place)
    batch, lab, unfinished = notebook.cells
    for cell, kind in ((batch, "LineBar"), (lab, "WidgetBar")):
        *shown, last = cell.outputs
        assert last.data["text/plain"] == repr(kind)
        if kind == "WidgetBar":
            assert [list(output.data) for output in shown] == [["text/plain"]]
            text = shown[0].data["text/plain"]
        else:
            text = "".join(output.text for output in shown)
        assert "ETL: 3/3 clip (100%) in 00:00" in text, "the output that stays is the closing line"
    [output] = unfinished.outputs
    assert output.data["text/plain"].startswith("ETL: 0/9 clip")
    assert "application/vnd.jupyter.widget-view+json" in output.data
