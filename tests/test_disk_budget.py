"""The disk budget is never exceeded, and a run that fits always finishes."""

from __future__ import annotations

import random
from collections import deque

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avomni_lib.etl.run import disk_budget
from avomni_lib.etl.run.disk_budget import DiskBudget, Load

SIZES = st.integers(0, 60)


@st.composite
def runs(draw) -> tuple[list[Load], list[list[int]], list[int], int]:
    """Loads, clip sizes per chunk, largest part per chunk, and bytes already on the disk."""
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
    return loads, clips, most, draw(SIZES)


class World:
    """Simulated disk whose steps ask the budget as `Prefetch` does."""

    def __init__(self, run, limit: float, num_workers: int, rng: random.Random):
        self.loads, self.clips, self.most, self.standing = run
        self.num_workers, self.rng = num_workers, rng
        self.raw = {load.chunk: load.here for load in self.loads}
        self.parts = {load.chunk: 0 for load in self.loads}
        self.budget = DiskBudget(limit, self.standing, 0, {**self.raw}, {**self.parts})
        self.shards, self.waiting, self.whole = 0, deque(self.loads), deque()
        self.coming: Load | None = None
        self.todo: dict[int, list[int]] = {}
        self.running: list[tuple[int, int, bool]] = []  # (chunk, bytes, whether it is a clip)

    def check(self) -> None:
        total = self.standing + sum(self.raw.values()) + self.shards + sum(self.parts.values())
        assert total <= sum(self.budget.now) <= self.budget.limit

    def steps(self) -> list:
        """The steps that the budget allows now."""
        budget = self.budget
        while self.whole and budget.may_work(self.whole[0]):
            load = self.whole.popleft()
            budget.reserved[load.chunk] = load.cache
            self.todo[load.chunk] = list(self.clips[load.chunk])
        may_come = self.waiting and not self.whole and not self.coming
        if may_come and budget.may_fetch(self.waiting[0]):
            self.coming = self.waiting.popleft()
            budget.raw[self.coming.chunk] = self.coming.raw
        steps = [self.arrive] if self.coming else []
        steps += [lambda job=job: self.finish(job) for job in self.running]
        if len(self.running) < self.num_workers:
            for chunk, todo in self.todo.items():
                if todo and budget.may_write(self.most[chunk]):
                    steps.append(lambda chunk=chunk: self.read(chunk))
                is_read = not todo and not any(job[0] == chunk for job in self.running)
                if is_read and budget.may_write(budget.parts[chunk]):
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
        self.running.append((chunk, size, True))
        self.budget.writing[chunk, len(self.todo[chunk])] = self.most[chunk]
        self.parts[chunk] += size  # it is being written

    def assemble(self, chunk: int) -> None:
        self.running.append((chunk, self.parts[chunk], False))
        self.budget.writing[chunk, -1] = self.parts[chunk]
        self.shards += self.parts[chunk]

    def finish(self, job: tuple[int, int, bool]) -> None:
        chunk, size, is_clip = job
        self.running.remove(job)
        key = next(key for key in self.budget.writing if key[0] == chunk)
        del self.budget.writing[key]
        if is_clip:
            self.budget.parts[chunk] += size
            return
        del self.todo[chunk], self.budget.reserved[chunk]
        self.budget.shards += size
        self.parts[chunk] = self.raw[chunk] = 0
        self.budget.parts[chunk] = self.budget.raw[chunk] = 0

    def run(self) -> None:
        while steps := self.steps():
            self.check()
            self.rng.choice(steps)()
        self.check()


@settings(max_examples=60)
@given(runs(), st.integers(0, 200), st.integers(1, 4), st.randoms(use_true_random=False))
def test_run_that_fits_chunk_by_chunk_finishes_within_the_budget(run, more, workers, rng):
    loads, clips, _, standing = run
    world = World(run, disk_budget.peak(loads, standing) + more, workers, rng)
    world.run()
    assert world.shards == sum(map(sum, clips)) and not sum(world.raw.values())


@settings(max_examples=40)
@given(runs(), st.integers(0, 400), st.randoms(use_true_random=False))
def test_too_small_a_budget_stops_without_being_exceeded(run, limit, rng):
    loads, _, _, standing = run
    assume(standing + sum(load.here for load in loads) <= limit)
    World(run, limit, 2, rng).run()


@given(runs(), st.integers(0, 500))
def test_num_fitting_is_the_largest_number_of_chunks_that_fit(run, limit):
    loads, _, _, standing = run
    num = disk_budget.num_fitting(loads, standing, limit)
    assert num == 0 or disk_budget.peak(loads[:num], standing) <= limit
    if num < len(loads):
        assert disk_budget.peak(loads[: num + 1], standing) > limit


@given(runs())
def test_fullest_moment_holds_a_chunk_with_its_parts_and_shard(run):
    loads, _, _, standing = run
    for n, (raw, cache) in enumerate(disk_budget.fullest(loads, standing)):
        here = sum(load.here for load in loads[n + 1 :])
        assert raw == standing + here + loads[n].raw
        assert cache == sum(load.stays for load in loads[:n]) + loads[n].cache


def test_next_chunk_is_fetched_ahead_only_if_its_raw_files_fit():
    loads = [Load(0, 100, 100, 40, 20), Load(1, 100, 0, 40, 20)]
    for limit, ahead in ((239, False), (240, True)):
        budget = DiskBudget(limit, 0, 0, {0: 100, 1: 0}, {0: 0, 1: 0})
        budget.reserved[0] = loads[0].cache
        assert budget.may_fetch(loads[1]) == ahead
