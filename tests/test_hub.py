"""The real huggingface_hub client against a local server, and the errors of refusals."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from avomni_lib.dataset.download import responses
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import git_blob_id
from avomni_lib.errors import AvomniError
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


def test_commit_is_requested_once_and_on_demand(server: LocalHub, hub: Hub):
    assert server.requests == []
    assert hub.commit == hub.commit == server.commit
    assert len(server.requests) == 1
    assert Hub(REPO, "main", server.endpoint).commit == server.commit
    assert Hub(REPO, server.commit, server.endpoint).commit == server.commit


def test_sizes_are_exact_and_missing_paths_are_omitted(hub: Hub, folder: Path):
    listed = hub.sizes(["features.csv", ZIP, "camera/no_such.zip", "labels"])
    content = (folder / ZIP).read_bytes()
    assert listed.keys() == {"features.csv", ZIP}
    assert listed[ZIP].size == len(content)
    assert listed[ZIP].sha256 == hashlib.sha256(content).hexdigest()
    assert listed["features.csv"].sha256 is None
    assert listed["features.csv"].blob_id == git_blob_id((folder / "features.csv").read_bytes())


def test_unknown_revision_or_repository_is_an_error(server: LocalHub):
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


def test_local_hub_is_not_reached_through_a_proxy(server: LocalHub, tmp_path: Path):
    """The client's progress bars are silent too."""
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    process = python(FETCH, server.endpoint, str(tmp_path), NO_PROXY="", **nowhere)
    assert process.communicate() == (None, "") and process.returncode == 0


def test_offline_mode_is_reported(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AvomniError, match="cannot ask the hub for .*: HF_HUB_OFFLINE is set"):
        hub.sizes([ZIP])


def test_status_401_without_an_error_code_is_explained():
    page = f"https://huggingface.co/datasets/{REPO}"
    error = responses.explain(401, None, "refs", page, None)
    assert "asks for a valid token" in error.what and error.where == page
    assert "hf auth login" in error.fix
