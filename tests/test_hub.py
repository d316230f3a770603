"""The door to huggingface_hub: the real client against a server, every refusal in plain words."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from avomni_lib.dataset.download import answers
from avomni_lib.dataset.download.backoff import Backoff
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile, git_blob_id
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar
from tests import local_hub, published_set
from tests.local_hub import LocalHub

REPO = "avomni/world"
ZIP = "labels/egomotion/egomotion.chunk_0000.zip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return published_set.write_published_set(folder, num_chunks=1, clips_per_chunk=1, seconds=0.2)


@pytest.fixture
def server(folder: Path) -> Iterator[LocalHub]:
    with local_hub.serve(folder, REPO) as server:
        yield server


@pytest.fixture
def hub(server: LocalHub) -> Hub:
    return Hub(REPO, endpoint=server.endpoint)


def one(hub: Hub, path: str) -> RemoteFile:
    return hub.sizes([path])[path]


def test_making_a_hub_asks_nothing_and_the_commit_is_asked_for_once(server: LocalHub, hub: Hub):
    assert server.requests == []
    assert hub.commit == hub.commit == server.commit
    assert len(server.requests) == 1


def test_a_branch_is_pinned_to_its_commit(server: LocalHub):
    assert Hub(REPO, "main", server.endpoint).commit == server.commit
    assert Hub(REPO, server.commit, server.endpoint).commit == server.commit


def test_sizes_are_exact_and_what_is_not_there_is_left_out(hub: Hub, folder: Path):
    listed = hub.sizes(["features.csv", ZIP, "camera/no_such.zip", "labels"])
    content = (folder / ZIP).read_bytes()
    assert listed.keys() == {"features.csv", ZIP}
    assert listed[ZIP].size == len(content)
    assert listed[ZIP].sha256 == hashlib.sha256(content).hexdigest()
    assert listed["features.csv"].sha256 is None
    assert listed["features.csv"].blob_id == git_blob_id((folder / "features.csv").read_bytes())


def test_many_paths_are_asked_for_in_batches(server: LocalHub, hub: Hub):
    paths = [f"camera/f{n}.zip" for n in range(1200)] + ["features.csv"]
    assert hub.sizes(paths).keys() == {"features.csv"}
    assert sum(r.path == "api:paths-info" for r in server.requests) == 3


def test_a_fetched_file_is_the_listed_one_and_its_bytes_are_counted(
    hub: Hub, folder: Path, tmp_path: Path
):
    bar = Bar()
    for path in (ZIP, "features.csv"):
        assert hub.fetch(one(hub, path), tmp_path, bar) == tmp_path / path
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()
    assert bar.count == sum((folder / path).stat().st_size for path in (ZIP, "features.csv"))


def test_a_damaged_file_of_this_very_commit_is_not_taken_for_whole(
    server: LocalHub, hub: Hub, folder: Path, tmp_path: Path
):
    """The client itself would hand it out again without a request."""
    hub.fetch(one(hub, ZIP), tmp_path)
    (tmp_path / ZIP).write_bytes(b"damaged")
    server.faults.flipped[ZIP] = 1
    hub.fetch(one(hub, ZIP), tmp_path)
    assert (tmp_path / ZIP).read_bytes() == (folder / ZIP).read_bytes()


def test_the_users_own_token_is_not_sent_to_a_hub_on_this_machine(folder: Path, tmp_path: Path):
    with local_hub.serve(folder, REPO, token="hf_users_own") as server:
        done = fetch_elsewhere(server, tmp_path, HF_TOKEN="hf_users_own")
    assert "gated and there is no token" in done.stderr


def test_a_busy_hub_is_asked_again(server: LocalHub):
    hub = Hub(REPO, server.commit, server.endpoint, backoff=Backoff(first_s=0.01, num_tries=4))
    server.faults.refuse("api:paths-info", 2, 429)
    assert hub.sizes(["features.csv"])
    server.faults.refuse("api:paths-info", 99, 429)
    with pytest.raises(AvomniError, match="takes no more requests .429, when asked for sizes of 1"):
        hub.sizes(["clip_index.parquet"])
    statuses = [r.status for r in server.requests if r.path == "api:paths-info"]
    assert statuses == [429, 429, 200] + [429] * 4


def test_what_was_listed_once_is_not_asked_for_again(server: LocalHub, hub: Hub):
    """A commit cannot change; a plan and the download after it ask the same."""
    first = hub.sizes(["features.csv", ZIP, "camera/no_such.zip"])
    assert hub.sizes(["camera/no_such.zip", ZIP]) == {ZIP: first[ZIP]}
    assert hub.at(server.commit).sizes(["features.csv"]) == {"features.csv": first["features.csv"]}
    assert sum(r.path == "api:paths-info" for r in server.requests) == 1


def test_a_gated_set_says_what_to_do(folder: Path, tmp_path: Path):
    with local_hub.serve(folder, REPO, token="hf_right") as server:
        page = f"{server.endpoint}/datasets/{REPO}"
        nobody = Hub(REPO, endpoint=server.endpoint)
        with pytest.raises(AvomniError, match="gated and there is no token") as caught:
            nobody.check_access()
        assert page in caught.value.fix and "hf auth login" in caught.value.fix
        stranger = Hub(REPO, endpoint=server.endpoint, token="hf_wrong")
        with pytest.raises(AvomniError, match=r"may not read it \(403\)") as caught:
            stranger.check_access()
        assert page in caught.value.fix
        with pytest.raises(AvomniError, match="may not read it"):
            stranger.fetch(one(stranger, "features.csv"), tmp_path)
        friend = Hub(REPO, endpoint=server.endpoint, token="hf_right")
        friend.check_access()
        assert friend.fetch(one(friend, "features.csv"), tmp_path).exists()


def test_an_unknown_revision_or_repository_is_said(server: LocalHub):
    for revision in ("no-such-tag", "0" * 40):
        with pytest.raises(AvomniError, match=f"has no revision '{revision}'") as caught:
            Hub(REPO, revision, server.endpoint).sizes(["features.csv"])
        assert caught.value.where == "dataset.revision"
    with pytest.raises(AvomniError, match="no data set someone/else on the hub"):
        Hub("someone/else", endpoint=server.endpoint).check_access()


FETCH = """
import resource, sys
from pathlib import Path
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.errors import AvomniError
endpoint, path, folder, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    hub = Hub("avomni/world", endpoint=endpoint)
    hub.fetch(hub.sizes([path])[path], Path(folder))
except AvomniError as error:
    sys.exit(str(error))
"""


def fetch_elsewhere(server: LocalHub, folder: Path, limit: int = 0, **environment: str):
    arguments = [sys.executable, "-c", FETCH, server.endpoint, ZIP, str(folder), str(limit)]
    environment = {**os.environ, **environment}
    return subprocess.run(arguments, capture_output=True, text=True, env=environment)


def test_a_disk_that_takes_no_more_is_one_message(server: LocalHub, tmp_path: Path):
    """A limit on the size of files stops the real write in the middle, as a quota does."""
    done = fetch_elsewhere(server, tmp_path, limit=50_000)
    assert done.returncode == 1
    assert "no room left on the disk" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / ZIP).exists()
    assert fetch_elsewhere(server, tmp_path).returncode == 0
    # What the disk had taken was not fetched again.
    assert [r.start for r in server.requests if r.path == ZIP] == [0, 50_000]


def test_a_proxy_is_not_asked_for_this_machines_own_hub(server: LocalHub, tmp_path: Path):
    nowhere = "http://127.0.0.1:9"
    done = fetch_elsewhere(server, tmp_path, HTTP_PROXY=nowhere, http_proxy=nowhere, NO_PROXY="")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_clients_own_bars_stay_silent(server: LocalHub, tmp_path: Path):
    done = fetch_elsewhere(server, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_offline_mode_is_said(server: LocalHub, tmp_path: Path):
    done = fetch_elsewhere(server, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "asks for a valid token"),
        (429, "takes no more requests"),
        (500, "answered 500"),
    ],
)
def test_a_refusal_without_the_hubs_own_code_is_explained_too(status: int, says: str):
    page = f"https://huggingface.co/datasets/{REPO}"
    error = answers.explain(status, None, "refs", page, None)
    assert says in error.what and error.where == page and error.fix
    assert ("hf auth login" in error.fix) == (status in (401, 429))
