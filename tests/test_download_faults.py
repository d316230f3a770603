"""The real client against the local hub: every fault is survived or reported.

The hub's log shows each byte that was sent.
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
    """Files of every size, filled with noise."""
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
    """Records its notes."""

    last: "Seen"

    def __init__(self, *arguments: object, **named: object):
        super().__init__(*arguments, **named)
        self.notes: set[str] = set()
        Seen.last = self

    def update(self, amount: float = 1, note: str = "") -> None:
        super().update(amount, note)
        self.notes.add(note)


def hub_of(server: LocalHub, token: str | None = None, num_tries: int = 10) -> Hub:
    """The real client, with shorter waits where the hub states none."""
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


def test_every_file_is_requested_once_without_faults(server: LocalHub, p: Params, folder: Path):
    get(server, p)
    assert_whole(p, folder)
    log = server.requests
    # There is no HEAD request, and an empty file needs no request.
    requests = sorted((request.method, request.path) for request in log)
    gets = [("GET", path) for path in SIZES if SIZES[path]]
    assert requests == sorted([("POST", "api:paths-info"), *gets])


IN_A_SECOND = {
    "no header": {},
    "seconds": {"Retry_After": "1"},
    "rate limit": {"RateLimit": '"resolvers";r=0;t=1'},
    "rate limit first": {"RateLimit": '"resolvers";r=0;t=1', "Retry_After": "600"},
}


@pytest.mark.parametrize("headers", IN_A_SECOND.values(), ids=IN_A_SECOND)
def test_rate_limited_download_waits_and_succeeds(
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


def test_threads_share_one_backoff(tmp_path: Path):
    """Eight simultaneous requests are refused; after that one thread tries at a time."""
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
def test_server_errors_are_retried(server: LocalHub, p: Params, folder: Path, status: int):
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
def test_persistent_server_errors_end_the_run_with_one_message(
    server: LocalHub, p: Params, folder: Path, status: int, what: str, fix: str
):
    hub = hub_of(server, num_tries=3)
    server.faults.refuse(BIG, 99, status)
    with pytest.raises(AvomniError, match=what) as caught:
        get(server, p, hub=hub)
    assert fix in caught.value.fix and caught.value.where == hub.page
    assert len(server.asked(BIG)) == 3
    assert not (p.local_dir / BIG).exists()


def test_wait_of_hours_is_an_error(server: LocalHub, p: Params):
    server.faults.refuse(BIG, 99, 429, Retry_After="7200")
    with pytest.raises(AvomniError, match="it asks to wait 2.0 h") as caught:
        get(server, p, BIG)
    assert "again in 2.0 h" in caught.value.fix
    assert len(server.asked(BIG)) == 1


def test_dropped_connection_resumes_at_the_same_byte(server: LocalHub, p: Params, folder: Path):
    """Twenty drops in one file; each byte received resets the count of tries."""
    seed = random.randrange(2**32)
    print("seed", seed)
    places = sorted({0, 1, SIZES[BIG] - 1, *random.Random(seed).sample(range(SIZES[BIG]), 17)})
    server.faults.cuts = {BIG: [*places], SMALL: [150_000], "labels/one.bin": [0, 0]}
    get(server, p)
    assert_whole(p, folder)
    assert starts(server, BIG) == [0, *places]
    # Each byte was sent once.
    assert server.bytes_of(BIG) == SIZES[BIG] and server.bytes_of(SMALL) == SIZES[SMALL]


def test_partial_file_survives_a_lost_connection(server: LocalHub, p: Params, folder: Path):
    server.faults.cuts = {BIG: [1_000_000] * 99}
    with pytest.raises(AvomniError, match=f"no connection to the hub .* for {BIG}") as caught:
        get(server, p, BIG, hub=hub_of(server, num_tries=3))
    assert "it goes on from here" in caught.value.fix
    server.faults.cuts = {}
    get(server, p, BIG)
    assert_whole(p, folder, BIG)
    assert server.bytes_of(BIG) == SIZES[BIG]


def test_download_resumes_after_the_hub_restarts(folder: Path, p: Params):
    """The hub stops during a response and is back at the same address after half a second."""
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


def test_silent_connection_times_out_and_resumes(
    server: LocalHub, p: Params, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """HF_HUB_DOWNLOAD_TIMEOUT is the read timeout; 10 s unless set."""
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


def test_short_response_body_is_completed(server: LocalHub, p: Params, folder: Path):
    """The response states a shorter length and ends regularly."""
    server.faults.short.update({BIG: 3, TEXT: 1})
    get(server, p, BIG, TEXT)
    assert_whole(p, folder, BIG, TEXT)
    assert len(starts(server, BIG)) == 4 and server.bytes_of(BIG) == SIZES[BIG]


@pytest.mark.parametrize("path", [BIG, TEXT])
def test_flipped_bit_causes_one_more_fetch(server: LocalHub, p: Params, folder: Path, path: str):
    server.faults.flipped[path] = 1
    get(server, p, path)
    assert_whole(p, folder, path)
    assert starts(server, path) == [0, 0]


def test_file_damaged_twice_is_an_error_and_is_not_kept(server: LocalHub, p: Params):
    server.faults.flipped[BIG] = 2
    with pytest.raises(AvomniError, match=f"{BIG} arrived damaged twice: its sha256 is wrong"):
        get(server, p, BIG)
    assert not (p.local_dir / BIG).exists()
    assert list((p.local_dir / transfer.PARTIALS).iterdir()) == []
    get(server, p, BIG)
    assert starts(server, BIG) == [0, 0, 0]


def test_damage_in_a_previous_partial_is_detected(server: LocalHub, p: Params, folder: Path):
    """Bytes that an earlier process has left are hashed too."""
    remote = hub_of(server).sizes([BIG])[BIG]
    partial = transfer.path_of(p.local_dir, remote)
    partial.parent.mkdir(parents=True)
    content = bytearray((folder / BIG).read_bytes()[:900_000])
    content[1234] ^= 1
    partial.write_bytes(content)
    get(server, p, BIG)
    assert_whole(p, folder, BIG)
    assert starts(server, BIG) == [900_000, 0]


def test_host_without_range_support_restarts_the_file(server: LocalHub, p: Params, folder: Path):
    server.faults.whole = {BIG}
    server.faults.cuts = {BIG: [1_000_000, 1_200_000]}
    get(server, p, BIG)
    assert_whole(p, folder, BIG)
    assert starts(server, BIG) == [0, 0, 0]


def test_file_with_changed_content_is_refused(server: LocalHub, p: Params, folder: Path):
    server.faults.cuts = {BIG: [1_000_000]}
    server.faults.swapped = {SMALL: BIG}
    with pytest.raises(AvomniError, match=f"{SMALL} arrived damaged twice: its hash") as caught:
        get(server, p, SMALL)
    assert "run the same command again" in caught.value.fix
    assert not (p.local_dir / SMALL).exists()
    server.faults.swapped = {}
    get(server, p, BIG, SMALL)
    assert_whole(p, folder, BIG, SMALL)


def test_file_size_unlike_the_listing_is_an_error(server: LocalHub, p: Params):
    server.faults.sizes = {TEXT: SIZES[TEXT] + 10, SMALL: SIZES[SMALL] - 10}
    hub = hub_of(server, num_tries=2)
    for path in (TEXT, SMALL):
        with pytest.raises(AvomniError, match=f"{path} arrived damaged twice"):
            get(server, p, path, hub=hub)


def test_file_deleted_at_the_source_is_an_error(server: LocalHub, p: Params, folder: Path):
    server.faults.vanished = {SMALL}
    with pytest.raises(AvomniError, match=f"{SMALL} is gone from the source") as caught:
        get(server, p)
    assert "download.chunks" in caught.value.fix and "dataset.revision" in caught.value.fix
    server.faults.vanished = set()
    get(server, p)
    for path in SIZES:
        assert (p.local_dir / path).read_bytes() == (folder / path).read_bytes()


def test_storage_host_serves_files_without_the_token(folder: Path, p: Params):
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
    # The hub is asked for a new address after one has expired.
    statuses = [request.status for request in log if request.path == SMALL]
    assert statuses == [302, 403, 302, 403, 302, 200]
    assert [r.start for r in stored if r.path == BIG] == [0, 1_000_000]


@pytest.mark.parametrize(
    ("token", "status", "message", "fix"),
    [
        (None, 401, "is gated and there is no token", "hf auth login"),
        ("hf_wrong", 403, "this token's account may not read it", "accept its terms"),
    ],
)
def test_missing_access_is_reported_before_long_work(
    published: Path, p: Params, token: str | None, status: int, message: str, fix: str
):
    """Unverified local files are not hashed first, and no other request is sent."""
    shutil.copytree(published, p.local_dir)
    with local_hub.serve(published, REPO, token="hf_right") as server:
        hub = hub_of(server, token)
        with pytest.raises(AvomniError, match=message) as caught:
            fetch(p, hub, progress=Never)
        assert hub.page in caught.value.fix and fix in caught.value.fix
        assert [(r.path, r.status) for r in server.requests] == [("api:auth-check", status)]
        with pytest.raises(AvomniError, match=message):
            hub.fetch(hub.sizes([TEXT])[TEXT], p.local_dir)


class Never(Bar):
    def __init__(self, *_: object, **__: object):
        raise AssertionError("long work was begun")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published_set(tmp_path_factory.mktemp("published"), seconds=0.2)


@pytest.fixture(scope="module")
def moved(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next revision: one chunk file differs, at the same size."""
    moved = shutil.copytree(published, tmp_path_factory.mktemp("moved") / "set")
    content = bytearray((moved / CHANGED).read_bytes())
    content[len(content) // 2] ^= 1
    (moved / CHANGED).write_bytes(bytes(content))
    return moved


CHANGED = chunk_path("vehicle_dimensions", 1)


def test_only_new_runs_use_the_moved_main(published: Path, moved: Path, tmp_path: Path):
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


def test_main_moving_during_a_run_does_not_change_its_revision(
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


def test_long_listing_is_requested_500_names_at_a_time(tmp_path: Path):
    """With dropped connections and a server error."""
    names = {f"labels/f{n:05d}.bin" for n in range(2100)}
    (tmp_path / "labels").mkdir()
    for name in names:
        (tmp_path / name).touch()
    with local_hub.serve(tmp_path, REPO) as server:
        server.faults.cuts = {"api:paths-info": [0, 20]}
        server.faults.refuse("api:paths-info", 1, 500)
        assert hub_of(server).sizes(sorted(names)).keys() == names
        requests = [r for r in server.asked("api:paths-info") if r.status == 200]
    assert len(requests) == 5 + 2


def whole_run(p: Params, server: LocalHub, revision: str | None = None) -> subprocess.Popen:
    commit = server.commit if revision is None else revision
    return python(FETCH, p.model_dump_json(), commit, server.endpoint)


def test_two_processes_fetch_each_byte_once_into_one_folder(published: Path, tmp_path: Path):
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
    # The record has the entries of both processes.
    verified = Verified(runs[0].local_dir)
    assert all(verified.checked_on(path) for path in first.files)


def test_download_sends_only_the_needed_requests(published: Path, p: Params):
    """Access check, commit of main, two listings (the second by names from the first), files."""
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
