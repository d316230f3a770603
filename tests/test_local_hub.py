"""The local hub answers the real huggingface_hub client as huggingface.co does."""

import hashlib
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from avomni_lib.errors import AvomniError
from tests import local_hub, published_set
from tests.local_hub import LocalHub

REPO = "avomni/world"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return published_set.write_published_set(folder, num_chunks=1, clips_per_chunk=1, seconds=0.2)


@pytest.fixture
def hub(folder: Path) -> Iterator[LocalHub]:
    with local_hub.serve(folder, REPO) as hub:
        yield hub


@pytest.fixture
def api(hub: LocalHub) -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(endpoint=hub.endpoint, token=False)


def read(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.status, answer.read(), dict(answer.headers)


def test_commit_of_main_follows_from_the_content(
    hub: LocalHub, api: huggingface_hub.HfApi, folder: Path, tmp_path: Path
):
    (main,) = api.list_repo_refs(REPO, repo_type="dataset").branches
    assert (main.name, main.target_commit) == ("main", hub.commit)
    assert len(hub.commit) == 40
    assert api.dataset_info(REPO, revision="main").sha == hub.commit
    with local_hub.serve(folder, REPO) as again:
        assert again.commit == hub.commit
    (tmp_path / "features.csv").write_text("another content")
    with local_hub.serve(tmp_path, REPO) as other:
        assert other.commit != hub.commit


def test_listing_has_sizes_and_hashes_and_omits_missing_paths(
    api: huggingface_hub.HfApi, folder: Path
):
    on_disk = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    infos = api.get_paths_info(REPO, [*on_disk, "no/such.zip"], repo_type="dataset")
    infos_by_path = {info.path: info for info in infos}
    assert infos_by_path.keys() == on_disk.keys()
    for path, file in on_disk.items():
        content = file.read_bytes()
        assert infos_by_path[path].size == len(content)
        if path.endswith((".csv", ".md")):
            assert infos_by_path[path].lfs is None
        else:
            assert infos_by_path[path].lfs.sha256 == hashlib.sha256(content).hexdigest()
    # git's own id of the data set's features.csv, as huggingface.co lists it
    assert infos_by_path["features.csv"].blob_id == "65de094a4037902a40bd42de7b17082029b78fe2"


def test_downloaded_file_is_complete_and_counted(hub: LocalHub, folder: Path, tmp_path: Path):
    path = "labels/egomotion/egomotion.chunk_0000.zip"
    path_on_disk = huggingface_hub.hf_hub_download(
        REPO, path, repo_type="dataset", endpoint=hub.endpoint, token=False, local_dir=tmp_path
    )
    assert Path(path_on_disk).read_bytes() == (folder / path).read_bytes()
    assert (hub.gets(path), hub.bytes_of(path)) == (1, (folder / path).stat().st_size)


@pytest.mark.parametrize(
    ("requested", "first", "last"),
    [("bytes=0-3", 0, 3), ("bytes=7000-", 7000, 7075), ("bytes=-5", 7071, 7075)],
)
def test_range_request_returns_that_part_of_the_file(
    hub: LocalHub, folder: Path, requested: str, first: int, last: int
):
    url = f"{hub.endpoint}/datasets/{REPO}/resolve/main/features.csv"
    status, body, headers = read(url, Range=requested)
    assert (status, body) == (206, (folder / "features.csv").read_bytes()[first : last + 1])
    assert headers["Content-Range"] == f"bytes {first}-{last}/7076"


def test_range_past_the_end_is_refused(hub: LocalHub):
    with pytest.raises(urllib.error.HTTPError, match="416"):
        read(f"{hub.endpoint}/datasets/{REPO}/resolve/main/features.csv", Range="bytes=9999-")


def test_hub_listens_on_localhost_only(hub: LocalHub):
    assert hub.endpoint.startswith("http://127.0.0.1:")
    port = int(hub.endpoint.rpartition(":")[2])
    # Every address of 127/8 is this machine; an unbound one refuses connections.
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(1)
        other.connect(("127.0.0.2", port))


def test_hidden_files_and_parent_folders_are_not_served(folder: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/features.csv").write_text("x")
    (tmp_path / "a/.features.csv.1.partial").write_text("half")
    (tmp_path / "secret").write_text("secret")
    with local_hub.serve(tmp_path / "a", REPO) as hub:
        assert list(hub.blobs) == ["features.csv"]
        for path in ("../secret", "%2e%2e/secret", ".features.csv.1.partial"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                read(f"{hub.endpoint}/datasets/{REPO}/resolve/main/{path}")


def test_empty_folder_and_used_port_are_errors(folder: Path, hub: LocalHub, tmp_path: Path):
    with pytest.raises(AvomniError, match="holds no file"):
        local_hub.serve(tmp_path, REPO)
    with pytest.raises(AvomniError, match="cannot listen"):
        local_hub.serve(folder, REPO, port=int(hub.endpoint.rpartition(":")[2]))
