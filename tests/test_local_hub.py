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


def test_main_is_the_commit_and_the_commit_follows_from_the_content(
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


def test_entries_of_files_have_size_and_hash_and_what_is_not_there_is_left_out(
    api: huggingface_hub.HfApi, folder: Path
):
    on_disk = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    infos = api.get_paths_info(REPO, [*on_disk, "no/such.zip"], repo_type="dataset")
    found = {info.path: info for info in infos}
    assert found.keys() == on_disk.keys()
    for path, file in on_disk.items():
        content = file.read_bytes()
        assert found[path].size == len(content)
        if path.endswith((".csv", ".md")):
            assert found[path].lfs is None
        else:
            assert found[path].lfs.sha256 == hashlib.sha256(content).hexdigest()
    # git's own id of the data set's features.csv, as huggingface.co lists it
    assert found["features.csv"].blob_id == "65de094a4037902a40bd42de7b17082029b78fe2"


def test_files_arrive_whole_and_are_counted(hub: LocalHub, folder: Path, tmp_path: Path):
    path = "labels/egomotion/egomotion.chunk_0000.zip"
    got = huggingface_hub.hf_hub_download(
        REPO, path, repo_type="dataset", endpoint=hub.endpoint, token=False, local_dir=tmp_path
    )
    assert Path(got).read_bytes() == (folder / path).read_bytes()
    assert (hub.gets(path), hub.bytes_of(path)) == (1, (folder / path).stat().st_size)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-3", 0, 3), ("bytes=7000-", 7000, 7075), ("bytes=-5", 7071, 7075)],
)
def test_a_range_is_a_part_of_the_file(
    hub: LocalHub, folder: Path, asked: str, first: int, last: int
):
    url = f"{hub.endpoint}/datasets/{REPO}/resolve/main/features.csv"
    status, body, headers = read(url, Range=asked)
    assert (status, body) == (206, (folder / "features.csv").read_bytes()[first : last + 1])
    assert headers["Content-Range"] == f"bytes {first}-{last}/7076"


def test_a_range_past_the_end_is_refused(hub: LocalHub):
    with pytest.raises(urllib.error.HTTPError, match="416"):
        read(f"{hub.endpoint}/datasets/{REPO}/resolve/main/features.csv", Range="bytes=9999-")


def test_it_listens_on_this_machine_alone(hub: LocalHub):
    assert hub.endpoint.startswith("http://127.0.0.1:")
    port = int(hub.endpoint.rpartition(":")[2])
    # Every address of 127/8 is this machine; one that is not bound is answered by nobody.
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(1)
        other.connect(("127.0.0.2", port))


def test_hidden_files_and_folders_above_are_not_served(folder: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/features.csv").write_text("x")
    (tmp_path / "a/.features.csv.1.partial").write_text("half")
    (tmp_path / "secret").write_text("secret")
    with local_hub.serve(tmp_path / "a", REPO) as hub:
        assert list(hub.blobs) == ["features.csv"]
        for path in ("../secret", "%2e%2e/secret", ".features.csv.1.partial"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                read(f"{hub.endpoint}/datasets/{REPO}/resolve/main/{path}")


def test_an_empty_folder_and_a_taken_port_are_said(folder: Path, hub: LocalHub, tmp_path: Path):
    with pytest.raises(AvomniError, match="holds no file"):
        local_hub.serve(tmp_path, REPO)
    with pytest.raises(AvomniError, match="cannot listen"):
        local_hub.serve(folder, REPO, port=int(hub.endpoint.rpartition(":")[2]))
