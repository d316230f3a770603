"""The door to huggingface_hub: the real client against a server, every refusal in plain words."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from avomni_lib.dataset.download import answers
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile, git_blob_id
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar
from tests import local_hub, published_set
from tests.hub_run import REPO, python
from tests.local_hub import LocalHub

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


FETCH = f"""
import sys
from pathlib import Path
from avomni_lib.dataset.download.hub import Hub
hub = Hub({REPO!r}, endpoint=sys.argv[1])
hub.fetch(hub.sizes([{ZIP!r}])[{ZIP!r}], Path(sys.argv[2]))
"""


def test_a_proxy_is_not_asked_for_this_machines_own_hub(server: LocalHub, tmp_path: Path):
    """Nor do the client's own bars say a word."""
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    process = python(FETCH, server.endpoint, str(tmp_path), NO_PROXY="", **nowhere)
    assert process.communicate() == (None, "") and process.returncode == 0


def test_offline_mode_is_said(server: LocalHub, tmp_path: Path):
    _, said = python(FETCH, server.endpoint, str(tmp_path), HF_HUB_OFFLINE="1").communicate()
    assert "AvomniError: cannot ask the hub for" in said and "HF_HUB_OFFLINE is set" in said


def test_a_token_that_no_hub_knows_is_explained_without_the_hubs_own_code():
    page = f"https://huggingface.co/datasets/{REPO}"
    error = answers.explain(401, None, "refs", page, None)
    assert "asks for a valid token" in error.what and error.where == page
    assert "hf auth login" in error.fix
