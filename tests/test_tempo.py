"""What bars have counted, moment by moment, and the pictures of it."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.notebook import tempo as tempos
from avomni_lib.notebook.plots import tempo as plots
from avomni_lib.notebook.progress import LineBar
from avomni_lib.notebook.tempo import CpuTime, Tempo, Track
from avomni_lib.plan import Bar

FETCHED = {"bytes": 9_000_000, "bytes_fetched": 9_000_000, "bytes_to_fetch": 0}


class Clock:
    def __init__(self):
        self.now_s = 50.0

    def __call__(self):
        return self.now_s


def counted(updates, total=None, unit="clip", label="ETL", every_s=0.5):
    """A tempo whose one bar was given (seconds passed, amount) updates."""
    clock = Clock()
    kept = Tempo(every_s, clock)
    with kept.bar(total=total, unit=unit, label=label) as bar:
        for seconds, amount in updates:
            clock.now_s += seconds
            bar.update(amount)
    return kept


def finding(picture):
    return picture._suptitle.get_text().replace("\n", " ")


def test_the_bar_is_the_one_that_people_see_and_keeps_what_it_counts(capsys):
    kept = counted([(1.0, 2)] * 5, total=10)
    assert issubclass(kept.bar, LineBar) and issubclass(kept.bar, Bar)
    assert "ETL: 10 of 10 clips" in capsys.readouterr().out or kept.track("ETL").count == 10
    track = kept.track("ETL")
    assert [moment[:2] for moment in track.moments[:3]] == [(0.0, 0.0), (1.0, 2.0), (2.0, 4.0)]
    assert (track.seconds, track.count, track.total, track.unit) == (5.0, 10.0, 10, "clip")
    assert kept.track("Download") is None


def test_the_last_bar_of_a_name_is_the_one_that_is_told():
    kept = counted([(1.0, 1)])
    with kept.bar(total=1, unit="clip", label="ETL") as bar:
        bar.update(7)
    assert kept.track("ETL").count == 7 and len(kept.tracks) == 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 50), st.integers(0, 9)), min_size=1, max_size=60))
def test_whatever_was_counted_is_the_area_below_the_rates(updates):
    track = counted(updates).track("ETL")
    times, counts, cpu = np.array(track.moments).T
    assert (np.diff(times) >= 0).all() and (np.diff(counts) >= 0).all()
    assert (np.diff(cpu) >= -1e-9).all()
    assert track.count == sum(amount for _, amount in updates)
    edges, rate = plots.rates(track)
    assert (rate * np.diff(edges)).sum() == pytest.approx(track.count)
    assert len(rate) <= plots.MOST_BINS


def test_long_work_is_kept_in_a_bounded_number_of_moments(monkeypatch):
    monkeypatch.setattr(CpuTime, "seconds", lambda self: 0.0)
    track = counted([(1.0, 1)] * 9000).track("ETL")
    assert len(track.moments) <= tempos.MOST_MOMENTS
    assert (track.seconds, track.count) == (9000.0, 9000.0)
    gaps = np.diff([moment[0] for moment in track.moments])
    assert gaps.max() <= 16


def test_threads_that_update_lose_nothing():
    kept = Tempo(0.0)
    with kept.bar(total=4000, unit="file", label="fetch") as bar:
        threads = [
            threading.Thread(target=lambda: [bar.update(1) for _ in range(100)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = [moment[1] for moment in kept.track("fetch").moments]
    assert counts[-1] == 400 and len(kept.track("fetch").moments) > 4


def test_cpu_time_of_children_counts_and_stays_when_they_have_ended():
    clock = CpuTime()
    before = clock.seconds()
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    at_work = clock.seconds()
    child.communicate(b"\n")
    assert at_work - before > 0.3
    assert clock.seconds() >= at_work


def test_an_interrupted_bar_keeps_what_it_had():
    kept, clock = Tempo(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), kept.bar(total=9, unit="clip", label="ETL") as bar:
        bar.update(4)
        raise KeyboardInterrupt
    assert kept.track("ETL").count == 4 and kept.track("ETL").seconds <= time.monotonic() - clock


def test_titles_say_how_fast_it_went():
    kept = counted([(2.0, 300_000)] * 30, total=9_000_000, unit="B", label="Download")
    said = finding(plots.bytes_over_time(kept, FETCHED))
    assert said == "9.00 MB came in 60 s, 150.0 kB a second; nothing is left"
    left = FETCHED | {"bytes": 12_000_000, "bytes_to_fetch": 3_000_000}
    said = finding(plots.bytes_over_time(kept, left))
    assert said.endswith("; 3.00 MB are left to 03, chunk after chunk")
    nothing = finding(plots.bytes_over_time(Tempo(), left))
    assert nothing.startswith("Nothing had to be fetched: 9.00 MB lay here already; 3.00 MB are")
    clips = finding(plots.clips_a_minute(counted([(3.0, 1)] * 20, total=20), 8))
    assert clips.startswith("20 clips in 60 s: 20 a minute, with ")
    assert clips.endswith(" of 8 cores busy on this machine")
    assert finding(plots.clips_a_minute(Tempo())).startswith("No clip had to be read")


def test_a_line_that_stood_still_is_told_with_its_length():
    steady = [(1.0, 10)] * 20
    kept = counted([*steady, *[(1.0, 0)] * 45, *steady], total=400, unit="B", label="Download")
    assert plots.longest_stall(kept.track("Download")) == pytest.approx(45)
    assert "for 45 s nothing came" in finding(plots.bytes_over_time(kept, FETCHED))
    smooth = counted(steady * 3, total=600, unit="B", label="Download")
    assert plots.longest_stall(smooth.track("Download")) == 0
    assert "nothing came" not in finding(plots.bytes_over_time(smooth, FETCHED))


@pytest.mark.parametrize("seconds", [2.0, 600.0, 40_000.0])
def test_the_time_axis_has_a_unit_that_people_read(seconds):
    kept = counted([(seconds / 50, 1)] * 50)
    axes = plots.clips_a_minute(kept, 2).axes[-1]
    unit = {2.0: "seconds", 600.0: "minutes", 40_000.0: "hours"}[seconds]
    assert axes.get_xlabel() == f"{unit} from the start"
    scale = {"seconds": 1, "minutes": 60, "hours": 3600}[unit]
    assert axes.get_xlim()[1] == pytest.approx(seconds / scale)


def test_rates_of_one_moment_are_no_error():
    track = Track("ETL", "clip", 1, [(0.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
    edges, rate = plots.rates(track)
    assert len(edges) == 2 and np.isfinite(rate).all()
    assert list(itertools.pairwise(edges)) == [(0.0, 1e-9)]
