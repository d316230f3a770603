"""The real client against the local hub: every fault survived or said.

What was sent is read off the hub's own log, byte for byte.
"""

import hashlib
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from avomni_lib.dataset.download import hub as hub_module
from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.backoff import Backoff
from avomni_lib.dataset.download.download import fetch, read_chosen
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from tests import local_hub
from tests.hub_run import FETCH, REPO, params, python
from tests.local_hub import LocalHub
from tests.published_set import chunk_path, write_published_set

BIG, SMALL, TEXT = "camera/a/a.zip", "labels/b/b.zip", "features.csv"
SIZES = {BIG: 1_500_007, SMALL: 200_003, TEXT: 5_000, "labels/one.bin": 1, "labels/none.bin": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every size, noise all through."""
    folder = tmp_path_factory.mktemp("served")
    noise = random.Random(7)
    for path, size in SIZES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(noise.randbytes(size))
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[LocalHub]:
    with local_hub.serve(folder, REPO) as server:
        yield server


@pytest.fixture
def p(tmp_path: Path) -> Params:
    return params(tmp_path)


class Seen(Bar):
    """Remembers what it was given."""

    last: "Seen"

    def __init__(self, *arguments: object, **named: object):
        super().__init__(*arguments, **named)
        self.notes: set[str] = set()
        Seen.last = self

    def update(self, amount: float = 1, note: str = "") -> None:
        super().update(amount, note)
        self.notes.add(note)


def hub_of(server: LocalHub, token: str | None = None, num_tries: int = 10) -> Hub:
    """The real client, but for its patience: waits that nobody names are short here."""
    backoff = Backoff(first_s=0.05, num_tries=num_tries)
    return Hub(REPO, server.commit, server.endpoint, token, backoff)


def get(server: LocalHub, p: Params, *paths: str, hub: Hub | None = None) -> None:
    """Fetch these files as 02 and 03 do."""
    hub = hub or hub_of(server)
    wanted = hub.sizes(paths or list(SIZES))
    transfer.fetch_files(list(wanted.values()), hub, p, Verified(p.local_dir), Seen)


def assert_whole(p: Params, folder: Path, *paths: str) -> None:
    for path in paths or SIZES:
        assert (p.local_dir / path).read_bytes() == (folder / path).read_bytes(), path
    assert list((p.local_dir / transfer.PARTIALS).iterdir()) == []
    assert Seen.last.count == Seen.last.total


def starts(server: LocalHub, path: str) -> list[int]:
    return [request.start for request in server.asked(path) if request.status < 300]


def test_without_a_fault_every_file_is_asked_for_once(server: LocalHub, p: Params, folder: Path):
    get(server, p)
    assert_whole(p, folder)
    log = server.requests
    # Nor is there a HEAD, and an empty file needs no request at all.
    asked = sorted((request.method, request.path) for request in log)
    gets = [("GET", path) for path in SIZES if SIZES[path]]
    assert asked == sorted([("POST", "api:paths-info"), *gets])


IN_A_SECOND = {
    "no header": {},
    "seconds": {"Retry_After": "1"},
    "rate limit": {"RateLimit": '"resolvers";r=0;t=1'},
    "rate limit first": {"RateLimit": '"resolvers";r=0;t=1', "Retry_After": "600"},
}


@pytest.mark.parametrize("headers", IN_A_SECOND.values(), ids=IN_A_SECOND)
def test_a_hub_that_is_asked_too_often_is_waited_for(
    server: LocalHub, p: Params, folder: Path, headers: dict[str, str]
):
    server.faults.refuse(SMALL, 2, 429, **headers)
    get(server, p, SMALL)
    assert_whole(p, folder, SMALL)
    log = server.asked(SMALL)
    assert [request.status for request in log] == [429, 429, 200]
    least_s = 1.0 if headers else 0.05
    assert all(b.at_s - a.at_s >= least_s for a, b in zip(log, log[1:], strict=False))
    if headers:
        assert any("the hub asks to wait" in note for note in Seen.last.notes)


def test_all_threads_wait_together(tmp_path: Path):
    """Eight files at a time, all refused: from then on one of them tries, not eight."""
    many = tmp_path / "many"
    (many / "labels").mkdir(parents=True)
    paths = [f"labels/f{n}.bin" for n in range(8)]
    for n, path in enumerate(paths):
        (many / path).write_bytes(bytes([n]) * 1000)
    with local_hub.serve(many, REPO) as server:
        p, hub = params(tmp_path, download={"max_workers": 8}), hub_of(server, num_tries=20)
        hub.sizes(paths)
        server.faults.refuse("*", 8 + 2, 429, Retry_After="1")
        get(server, p, *paths, hub=hub)
        assert_whole(p, many, *paths)
        times = [request.at_s for request in server.requests if request.status == 429]
    assert len(times) == 10
    first = [time_s for time_s in times if time_s < times[0] + 0.9]
    alone = times[len(first) :]
    assert len(first) <= 8 and all(b - a >= 1.0 for a, b in zip(alone, alone[1:], strict=False))


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_hub_that_is_not_well_is_asked_again(
    server: LocalHub, p: Params, folder: Path, status: int
):
    server.faults.refuse("*", 2, status)
    server.faults.refuse(BIG, 3, status)
    get(server, p)
    assert_whole(p, folder)


@pytest.mark.parametrize(
    ("status", "what", "fix"),
    [
        (429, "takes no more requests", "run the same command again later: it goes on from here"),
        (500, f"the hub answered 500 when asked for {BIG}", "wait some minutes"),
        (503, f"the hub answered 503 when asked for {BIG}", "it goes on from here"),
    ],
)
def test_a_hub_that_stays_so_ends_the_run_with_one_message(
    server: LocalHub, p: Params, folder: Path, status: int, what: str, fix: str
):
    hub = hub_of(server, num_tries=3)
    server.faults.refuse(BIG, 99, status)
    with pytest.raises(AvomniError, match=what) as caught:
        get(server, p, hub=hub)
    assert fix in caught.value.fix and caught.value.where == hub.page
    assert len(server.asked(BIG)) == 3
    assert not (p.local_dir / BIG).exists()


def test_a_wait_of_hours_is_said_and_not_sat_through(server: LocalHub, p: Params):
    server.faults.refuse(BIG, 99, 429, Retry_After="7200")
    with pytest.raises(AvomniError, match="it asks to wait 2.0 h") as caught:
        get(server, p, BIG)
    assert "again in 2.0 h" in caught.value.fix
    assert len(server.asked(BIG)) == 1


def test_a_line_that_drops_at_any_point_is_taken_up_there(
    server: LocalHub, p: Params, folder: Path
):
    """Twenty drops in one file, ten tries each without a byte at most: only a dead line ends it."""
    seed = random.randrange(2**32)
    print("seed", seed)
    places = sorted({0, 1, SIZES[BIG] - 1, *random.Random(seed).sample(range(SIZES[BIG]), 17)})
    server.faults.cuts = {BIG: [*places], SMALL: [150_000], "labels/one.bin": [0, 0]}
    get(server, p)
    assert_whole(p, folder)
    assert starts(server, BIG) == [0, *places]
    # Each byte was sent once.
    assert server.bytes_of(BIG) == SIZES[BIG] and server.bytes_of(SMALL) == SIZES[SMALL]


def test_a_line_that_drops_for_good_ends_the_run_and_what_came_stays(
    server: LocalHub, p: Params, folder: Path
):
    server.faults.cuts = {BIG: [1_000_000] * 99}
    with pytest.raises(AvomniError, match=f"no connection to the hub .* for {BIG}") as caught:
        get(server, p, BIG, hub=hub_of(server, num_tries=3))
    assert "it goes on from here" in caught.value.fix
    server.faults.cuts = {}
    get(server, p, BIG)
    assert_whole(p, folder, BIG)
    assert server.bytes_of(BIG) == SIZES[BIG]


def test_a_hub_that_goes_away_for_a_while_is_found_again(folder: Path, p: Params):
    """Gone in the middle of an answer, back at the same address half a second later."""
    result: list[BaseException | None] = []

    def run() -> None:
        try:
            get(first, p, BIG, hub=hub)
            result.append(None)
        except BaseException as error:
            result.append(error)

    with local_hub.serve(folder, REPO) as first:
        first.faults.cuts = {BIG: [SIZES[BIG] // 2] * 99}  # until it no longer listens
        hub = hub_of(first)
        hub.sizes([BIG])
        thread = threading.Thread(target=run)
        thread.start()
        while first.bytes_of(BIG) < SIZES[BIG] // 2:
            time.sleep(0.02)
    time.sleep(0.5)
    port = int(first.endpoint.rpartition(":")[2])
    with local_hub.serve(folder, REPO, port=port) as second:
        thread.join()
        assert result == [None]
        assert_whole(p, folder, BIG)
        assert starts(second, BIG) == [SIZES[BIG] // 2]


def test_a_line_that_falls_silent_is_dropped_and_taken_up_there(
    server: LocalHub, p: Params, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """HF_HUB_DOWNLOAD_TIMEOUT is how long silence is borne; 10 s unless set."""
    assert hub_module.SILENCE_S == huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    monkeypatch.setattr(hub_module, "SILENCE_S", 1.0)
    monkeypatch.setattr(hub_module, "API_SILENCE_S", 1.0)
    huggingface_hub.close_session()
    server.faults.stalls = {BIG: [0, 700_000, 700_001], "api:paths-info": [0]}
    get(server, p, BIG)
    huggingface_hub.close_session()
    assert_whole(p, folder, BIG)
    log = server.asked(BIG)
    assert starts(server, BIG) == [0, 0, 700_000, 700_001]
    assert all(1.0 <= b.at_s - a.at_s < 5.0 for a, b in zip(log, log[1:], strict=False))
    assert server.bytes_of(BIG) == SIZES[BIG]


def test_a_body_that_ends_early_is_completed(server: LocalHub, p: Params, folder: Path):
    """Not a drop: the answer says itself that it is shorter."""
    server.faults.short.update({BIG: 3, TEXT: 1})
    get(server, p, BIG, TEXT)
    assert_whole(p, folder, BIG, TEXT)
    assert len(starts(server, BIG)) == 4 and server.bytes_of(BIG) == SIZES[BIG]


@pytest.mark.parametrize("path", [BIG, TEXT])
def test_a_flipped_bit_costs_one_more_fetch(server: LocalHub, p: Params, folder: Path, path: str):
    server.faults.flipped[path] = 1
    get(server, p, path)
    assert_whole(p, folder, path)
    assert starts(server, path) == [0, 0]


def test_a_bit_that_flips_each_time_is_said_and_nothing_gets_the_name(server: LocalHub, p: Params):
    server.faults.flipped[BIG] = 2
    with pytest.raises(AvomniError, match=f"{BIG} arrived damaged twice: its sha256 is wrong"):
        get(server, p, BIG)
    assert not (p.local_dir / BIG).exists()
    assert list((p.local_dir / transfer.PARTIALS).iterdir()) == []
    get(server, p, BIG)
    assert starts(server, BIG) == [0, 0, 0]


def test_a_bit_that_flipped_before_a_kill_is_found_after_it(
    server: LocalHub, p: Params, folder: Path
):
    """The beginning that an earlier process left is hashed too."""
    remote = hub_of(server).sizes([BIG])[BIG]
    partial = transfer.path_of(p.local_dir, remote)
    partial.parent.mkdir(parents=True)
    content = bytearray((folder / BIG).read_bytes()[:900_000])
    content[1234] ^= 1
    partial.write_bytes(content)
    get(server, p, BIG)
    assert_whole(p, folder, BIG)
    assert starts(server, BIG) == [900_000, 0]


def test_a_host_that_knows_no_ranges_starts_over(server: LocalHub, p: Params, folder: Path):
    server.faults.whole = {BIG}
    server.faults.cuts = {BIG: [1_000_000, 1_200_000]}
    get(server, p, BIG)
    assert_whole(p, folder, BIG)
    assert starts(server, BIG) == [0, 0, 0]


def test_a_file_that_is_another_one_now_is_not_mixed_in(server: LocalHub, p: Params, folder: Path):
    server.faults.cuts = {BIG: [1_000_000]}
    server.faults.swapped = {SMALL: BIG}
    with pytest.raises(AvomniError, match=f"{SMALL} arrived damaged twice: its hash") as caught:
        get(server, p, SMALL)
    assert "run the same command again" in caught.value.fix
    assert not (p.local_dir / SMALL).exists()
    server.faults.swapped = {}
    get(server, p, BIG, SMALL)
    assert_whole(p, folder, BIG, SMALL)


def test_a_file_that_is_longer_or_shorter_than_listed_is_said(server: LocalHub, p: Params):
    server.faults.sizes = {TEXT: SIZES[TEXT] + 10, SMALL: SIZES[SMALL] - 10}
    hub = hub_of(server, num_tries=2)
    for path in (TEXT, SMALL):
        with pytest.raises(AvomniError, match=f"{path} arrived damaged twice"):
            get(server, p, path, hub=hub)


def test_a_file_that_vanished_is_said(server: LocalHub, p: Params, folder: Path):
    server.faults.vanished = {SMALL}
    with pytest.raises(AvomniError, match=f"{SMALL} is gone from the source") as caught:
        get(server, p)
    assert "download.chunks" in caught.value.fix and "dataset.revision" in caught.value.fix
    server.faults.vanished = set()
    get(server, p)
    for path in SIZES:
        assert (p.local_dir / path).read_bytes() == (folder / path).read_bytes()


def test_the_second_host_gets_no_token_and_files_come_from_it(folder: Path, p: Params):
    with local_hub.serve(folder, REPO, token="hf_right", has_storage=True) as server:
        server.faults.cuts = {f"storage:{BIG}": [1_000_000]}
        server.faults.refuse(f"storage:{SMALL}", 2, 403)
        get(server, p, hub=hub_of(server, "hf_right"))
        assert_whole(p, folder)
        log = server.requests
    stored = [request for request in log if request.is_storage]
    assert {request.path for request in stored} == {BIG, SMALL, "labels/one.bin"}
    assert not any(request.has_token for request in stored)
    assert all(request.has_token for request in log if not request.is_storage)
    # An address that has run out is asked for again at the hub.
    statuses = [request.status for request in log if request.path == SMALL]
    assert statuses == [302, 403, 302, 403, 302, 200]
    assert [r.start for r in stored if r.path == BIG] == [0, 1_000_000]


@pytest.mark.parametrize(
    ("token", "status", "says", "fix"),
    [
        (None, 401, "is gated and there is no token", "hf auth login"),
        ("hf_wrong", 403, "this token's account may not read it", "accept its terms"),
    ],
)
def test_a_gate_is_found_before_anything_long(
    published: Path, p: Params, token: str | None, status: int, says: str, fix: str
):
    """Files that lie here unchecked are not hashed first, and no other question is asked."""
    shutil.copytree(published, p.local_dir)
    with local_hub.serve(published, REPO, token="hf_right") as server:
        hub = hub_of(server, token)
        with pytest.raises(AvomniError, match=says) as caught:
            fetch(p, hub, progress=Never)
        assert hub.page in caught.value.fix and fix in caught.value.fix
        assert [(r.path, r.status) for r in server.requests] == [("api:auth-check", status)]
        with pytest.raises(AvomniError, match=says):
            hub.fetch(hub.sizes([TEXT])[TEXT], p.local_dir)


class Never(Bar):
    def __init__(self, *_: object, **__: object):
        raise AssertionError("long work was begun")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published_set(tmp_path_factory.mktemp("published"), seconds=0.2)


@pytest.fixture(scope="module")
def moved(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next revision: one chunk file has another content of the same size."""
    moved = shutil.copytree(published, tmp_path_factory.mktemp("moved") / "set")
    content = bytearray((moved / CHANGED).read_bytes())
    content[len(content) // 2] ^= 1
    (moved / CHANGED).write_bytes(bytes(content))
    return moved


CHANGED = chunk_path("vehicle_dimensions", 1)


def test_main_that_moves_between_two_runs_moves_new_runs_alone(
    published: Path, moved: Path, tmp_path: Path
):
    old, new = params(tmp_path / "a"), params(tmp_path / "b")
    with local_hub.serve(published, REPO) as server:
        first = fetch(old, Hub(REPO, None, server.endpoint)).chosen
        old_commit = server.commit
        server.publish(moved)
        again = fetch(old, Hub(REPO, None, server.endpoint)).chosen
        fresh = fetch(new, Hub(REPO, None, server.endpoint)).chosen
    assert first.revision == again.revision == old_commit != server.commit == fresh.revision
    assert first.files[CHANGED] != fresh.files[CHANGED]
    assert (old.local_dir / CHANGED).read_bytes() == (published / CHANGED).read_bytes()
    assert (new.local_dir / CHANGED).read_bytes() == (moved / CHANGED).read_bytes()


def test_main_that_moves_in_the_middle_of_a_run_does_not_mix_in(
    published: Path, moved: Path, p: Params
):
    with local_hub.serve(published, REPO, bytes_per_s=200_000) as server:
        commit, process = server.commit, whole_run(p, server, revision="")
        while len([r for r in server.requests if r.method == "GET"]) < 8:
            assert process.poll() is None, "it ended before main moved"
            time.sleep(0.01)
        server.publish(moved)
        server.bytes_per_s = None
        assert process.wait() == 0, process.stderr.read()
    chosen = read_chosen(p)
    assert chosen.revision == commit
    for path, file in chosen.files.items():
        assert hashlib.sha256((published / path).read_bytes()).hexdigest() == file["sha256"]


def test_a_long_listing_comes_five_hundred_names_at_a_time(tmp_path: Path):
    """Over a bad line, and past a hub that is not well."""
    names = {f"labels/f{n:05d}.bin" for n in range(2100)}
    (tmp_path / "labels").mkdir()
    for name in names:
        (tmp_path / name).touch()
    with local_hub.serve(tmp_path, REPO) as server:
        server.faults.cuts = {"api:paths-info": [0, 20]}
        server.faults.refuse("api:paths-info", 1, 500)
        assert hub_of(server).sizes(sorted(names)).keys() == names
        asked = [r for r in server.asked("api:paths-info") if r.status == 200]
    assert len(asked) == 5 + 2


def whole_run(p: Params, server: LocalHub, revision: str | None = None) -> subprocess.Popen:
    commit = server.commit if revision is None else revision
    return python(FETCH, p.model_dump_json(), commit, server.endpoint)


def test_two_processes_share_one_folder_and_fetch_each_byte_once(published: Path, tmp_path: Path):
    runs = [
        params(tmp_path, run={"name": name}, download={"max_workers": lines})
        for name, lines in (("run", 4), ("other", 2))
    ]
    with local_hub.serve(published, REPO, bytes_per_s=150_000) as server:
        processes = [whole_run(p, server) for p in runs]
        for process in processes:
            assert process.wait() == 0, process.stderr.read()
        sent = {path: server.bytes_of(path) for path in read_chosen(runs[0]).files}
    first, second = (read_chosen(p) for p in runs)
    assert first == second
    assert sent == {path: file["size"] for path, file in first.files.items()}
    # Both have written down what they checked, and neither has lost the other's.
    verified = Verified(runs[0].local_dir)
    assert all(verified.checked_on(path) for path in first.files)


def test_a_download_asks_no_more_than_it_needs(published: Path, p: Params):
    """Main's commit, the gate, two listings (the second by names out of the first), the files."""
    with local_hub.serve(published, REPO) as server:
        hub = Hub(REPO, None, server.endpoint)
        downloaded = fetch(p, hub)
        log = list(server.requests)
        fetch(p, hub)
        again = server.requests[len(log) :]
    api = [request.path for request in log if request.path.startswith("api:")]
    assert api == ["api:auth-check", "api:refs", "api:paths-info", "api:paths-info"]
    gets = [request.path for request in log if not request.path.startswith("api:")]
    assert sorted(gets) == sorted(row["path"] for row in downloaded.rows)
    assert [request.path for request in again] == ["api:auth-check"]
