"""Bars: what they say at the start, in between and at the end, and which one suits whom."""

import contextlib
import re
import threading

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


def test_first_and_last_line_of_short_work(lines_of):
    lines = lines_of(4, "clip", [(0.5, 1)] * 4)
    assert lines == [
        "ETL: 0/4 clip (0%) in 00:00, ? clip/s, ? left",
        "ETL: 4/4 clip (100%) in 00:02,  2.00 clip/s",
    ]


def test_a_line_every_ten_seconds_with_share_rate_and_time_left(lines_of):
    lines = lines_of(100, "clip", [(1, 1)] * 35)
    assert lines[1] == "ETL: 10/100 clip (10%) in 00:10,  1.00 clip/s, 01:30 left"
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "ETL: 35/100 clip (35%) in 00:35,  1.00 clip/s"


def test_bytes_are_worded_in_powers_of_ten(lines_of):
    lines = lines_of(2e9, "byte", [(11, 5e8), (1, 1.5e9)])
    assert lines[1] == "ETL: 500M/2.00GB (25%) in 00:11, 45.5MB/s, 00:33 left"
    assert lines[-1].startswith("ETL: 2.00G/2.00GB (100%) in 00:12")


def test_the_rate_forgets_what_a_resumed_run_found_done(lines_of):
    line = lines_of(1000, "clip", [(0, 900)] + [(2, 1)] * 60)[-2]
    assert "1.99s/ clip, 01:19 left" in line, line


def test_interrupted_work_says_where_it_stopped(lines_of):
    assert lines_of(10, "step", [(1, 3)], fail=True)[-1].startswith("ETL: stopped at 3/10 step")


def test_unknown_total_counts_without_a_share(lines_of):
    lines = lines_of(None, "row", [(11, 2000)])
    assert lines[1].startswith("ETL: 2000 row in 00:11, ")
    assert "%" not in "".join(lines) and "left" not in "".join(lines)


def test_no_work_at_all_is_no_error(lines_of):
    assert lines_of(0, "clip", [])[-1].startswith("ETL: 0/0 clip")


@pytest.mark.parametrize("kind", [progress.LineBar, progress.WidgetBar])
def test_threads_lose_no_count(kind, capsys):
    with kind(4000, "file", "fetch") as bar:
        threads = [
            threading.Thread(target=lambda: [bar.update(1) for _ in range(1000)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bar.count == bar.meter.n == 4000


def test_lines_where_nobody_looks(monkeypatch):
    assert progress.bar() is progress.LineBar
    assert issubclass(progress.LineBar, Bar) and issubclass(progress.WidgetBar, Bar)


def run_cells(sources, allow_stdin):
    """Execute cells in a real kernel; with `allow_stdin` as JupyterLab does."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    with client.setup_kernel():
        client.kc.allow_stdin = allow_stdin
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
    return notebook


WORK = """
from avomni_lib.notebook import progress
with progress.bar()(3, "clip", "ETL") as bar:
    for _ in range(3):
        bar.update(1)
type(bar).__name__
"""


def test_a_bar_whose_kernel_dies_leaves_words_and_no_widgets_name(monkeypatch):
    """What a front end keeps of a display that nobody updates any more is its text."""
    monkeypatch.delenv(progress.HEADLESS_VARIABLE, raising=False)
    source = (
        "from avomni_lib.notebook import progress\n"
        "bar = progress.bar()(9, 'clip', 'ETL')\nbar.update(2)"
    )
    (output,) = run_cells([source], allow_stdin=True).cells[0].outputs
    assert output.data["text/plain"].startswith("ETL: 0/9 clip")
    assert "application/vnd.jupyter.widget-view+json" in output.data


def test_a_batch_kernel_gets_lines_and_lab_a_widget_that_leaves_its_last_line(monkeypatch):
    monkeypatch.delenv(progress.HEADLESS_VARIABLE, raising=False)
    headless = "import os; os.environ['AVOMNI_HEADLESS'] = '1'"
    for allow_stdin, first, expected in (
        (False, "", "'LineBar'"),
        (True, "", "'WidgetBar'"),
        (True, headless, "'LineBar'"),
    ):
        cell = run_cells([first, WORK], allow_stdin).cells[1]
        assert cell.outputs[-1].data["text/plain"] == expected
        shown = cell.outputs[:-1]
        if expected == "'WidgetBar'":
            assert [list(output.data) for output in shown] == [["text/plain"]]
            text = shown[0].data["text/plain"]
        else:
            text = "".join(output.text for output in shown)
        assert "ETL: 3/3 clip (100%) in 00:00" in text, "the output that stays is the closing line"
