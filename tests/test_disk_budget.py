"""The arithmetic of the budget: it always holds, and what fits never gets stuck."""

from __future__ import annotations

import random
from collections import deque

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avomni_lib.etl.run import disk_budget
from avomni_lib.etl.run.disk_budget import DiskBudget, Load, Moment

SIZES = st.integers(0, 60)


@st.composite
def runs(draw) -> tuple[list[Load], list[list[int]], list[int], Moment]:
    """Chunks, the bytes that their clips take, the most that one may take, and what is there."""
    loads, clips, most = [], [], []
    for chunk in range(draw(st.integers(1, 4))):
        raw = draw(SIZES)
        sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
        stays = sum(sizes)
        # A part counts as up to five times its bytes until it is written, as with JPEG.
        most.append(max(sizes) * draw(st.integers(1, 5)))
        cache = max(2 * stays, stays + most[-1])
        loads.append(Load(chunk, raw, draw(st.integers(0, raw)), cache, stays))
        clips.append(sizes)
    return loads, clips, most, Moment(draw(SIZES), draw(SIZES))


class World:
    """What really lies there, while the budget is asked before every step as `Prefetch` asks it."""

    def __init__(self, run, limit: int, num_workers: int, rng: random.Random):
        self.loads, self.clips, self.most, self.start = run
        self.limit, self.num_workers, self.rng = limit, num_workers, rng
        self.budget = DiskBudget(limit, self.start, self.loads, {})
        self.raw = {load.chunk: load.here for load in self.loads}
        self.parts = {load.chunk: 0 for load in self.loads}
        self.shards = 0
        self.waiting, self.whole = deque(self.loads), deque()
        self.coming: Load | None = None
        self.todo: dict[int, list[int]] = {}
        self.left: dict[int, int] = {}
        self.running: list[tuple[str, int, int, int]] = []
        self.most_raw = 0

    @property
    def total(self) -> int:
        return (
            sum(self.start.__dict__.values())
            + sum(self.raw.values())
            + self.shards
            + sum(self.parts.values())
        )

    def steps(self) -> list:
        """What can be done now."""
        while self.whole and self.budget.may_work(self.whole[0]):
            load = self.whole.popleft()
            self.budget.work(load)
            self.todo[load.chunk] = list(self.clips[load.chunk])
            self.left[load.chunk] = len(self.clips[load.chunk])
        may_come = self.waiting and not self.whole and not self.coming
        if may_come and self.budget.may_fetch(self.waiting[0]):
            self.coming = self.waiting.popleft()
            self.budget.fetch(self.coming)
        steps = [self.arrive] if self.coming else []
        steps += [lambda job=job: self.finish(job) for job in self.running]
        if len(self.running) < self.num_workers:
            for chunk in self.left:
                busy = any(job[1] == chunk for job in self.running)
                if self.todo[chunk] and self.budget.may_write(self.most[chunk]):
                    steps.append(lambda chunk=chunk: self.read(chunk))
                is_read = not self.left[chunk] and not busy
                if is_read and self.budget.may_write(self.budget.parts_of(chunk)):
                    steps.append(lambda chunk=chunk: self.assemble(chunk))
        return steps

    def arrive(self) -> None:
        chunk, missing = self.coming.chunk, self.coming.raw - self.raw[self.coming.chunk]
        self.raw[chunk] += min(missing, self.rng.randint(1, 30))
        if self.raw[chunk] == self.coming.raw:
            self.whole.append(self.coming)
            self.coming = None

    def read(self, chunk: int) -> None:
        size = self.todo[chunk].pop()
        job = ("clip", chunk, size, len(self.todo[chunk]))
        self.budget.begin(job, self.most[chunk])
        self.running.append(job)
        self.parts[chunk] += size  # it is being written

    def assemble(self, chunk: int) -> None:
        job = ("shard", chunk, self.parts[chunk], 0)
        self.budget.begin(job, self.parts[chunk])
        self.running.append(job)
        self.shards += self.parts[chunk]

    def finish(self, job: tuple) -> None:
        kind, chunk, size, _ = job
        self.running.remove(job)
        self.budget.end(job, chunk, size if kind == "clip" else 0)
        if kind == "clip":
            self.left[chunk] -= 1
            return
        self.parts[chunk] = self.raw[chunk] = 0
        del self.left[chunk]
        self.budget.release(chunk, size, 0)

    def run(self) -> None:
        while steps := self.steps():
            assert self.total <= self.budget.now.total <= self.limit
            self.most_raw = max(self.most_raw, sum(self.raw.values()))
            self.rng.choice(steps)()
        assert self.total <= self.budget.now.total <= self.limit


@settings(max_examples=60)
@given(runs(), st.integers(0, 200), st.integers(1, 4), st.randoms(use_true_random=False))
def test_what_goes_through_one_by_one_never_sticks_and_never_exceeds(run, more, workers, rng):
    loads, clips, _, start = run
    world = World(run, disk_budget.peak(loads, start) + more, workers, rng)
    world.run()
    assert world.shards == sum(map(sum, clips))
    assert not sum(world.raw.values()) and world.budget.peak <= world.limit


@settings(max_examples=40)
@given(runs(), st.integers(0, 400), st.randoms(use_true_random=False))
def test_too_small_a_budget_stops_and_does_not_exceed(run, limit, rng):
    loads, _, _, start = run
    assume(start.total + sum(load.here for load in loads) <= limit)
    World(run, limit, 2, rng).run()


@given(runs(), st.integers(0, 500))
def test_as_many_chunks_fit_as_it_says(run, limit):
    loads, _, _, start = run
    num = disk_budget.num_fitting(loads, start, limit)
    assert num == 0 or disk_budget.peak(loads[:num], start) <= limit
    if num < len(loads):
        assert disk_budget.peak(loads[: num + 1], start) > limit


@given(runs())
def test_the_fullest_moment_is_that_of_a_chunk_with_its_parts_and_shard(run):
    loads, _, _, start = run
    for n, moment in enumerate(disk_budget.fullest(loads, start)):
        shards = sum(load.stays for load in loads[:n])
        here = sum(load.here for load in loads[n + 1 :])
        assert moment == Moment(
            start.raw + here + loads[n].raw, start.cache + shards + loads[n].cache
        )
    assert disk_budget.peak(loads, start) >= start.total


def test_the_next_chunk_is_fetched_early_where_there_is_room():
    loads = [Load(chunk, 50, 0, 20, 10) for chunk in range(4)]
    run = (loads, [[5, 5]] * 4, [5] * 4, Moment(0, 0))
    one_by_one = World(run, disk_budget.peak(loads, Moment(0, 0)), 2, random.Random(0))
    one_by_one.run()
    assert one_by_one.most_raw == 50
    ahead = World(run, disk_budget.peak(loads, Moment(0, 0)) + 50, 2, random.Random(0))
    ahead.run()
    assert ahead.most_raw == 100, "one chunk ahead and no more"
