"""If the hub offers Xet, the real hf_xet fetches into the same partials with the same checks.

The storage is a stand-in on 127.0.0.1 (`xet_storage.py`).
"""

import hashlib
import importlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from avomni_lib.dataset.download import transfer, xet
from avomni_lib.dataset.download.backoff import Backoff
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar
from tests import local_hub, xet_storage
from tests.local_hub import LocalHub
from tests.xet_storage import XetStorage

REPO, ZIP, TOKEN = "avomni/world", "camera/a/a.zip", "hf_right"
CONTENT = random.Random(5).randbytes(500_001)
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def storage() -> Iterator[XetStorage]:
    with xet_storage.serve({HASH: CONTENT}) as storage:
        yield storage


@pytest.fixture
def server(storage: XetStorage, tmp_path: Path) -> Iterator[LocalHub]:
    (tmp_path / "served/camera/a").mkdir(parents=True)
    (tmp_path / "served" / ZIP).write_bytes(CONTENT)
    (tmp_path / "served/features.csv").write_text("small files are not offered\n")
    with local_hub.serve(
        tmp_path / "served", REPO, token=TOKEN, xet=storage.server.endpoint
    ) as server:
        yield server


@pytest.fixture
def hub(server: LocalHub) -> Hub:
    return Hub(REPO, server.commit, server.endpoint, TOKEN, Backoff(first_s=0.01))


def test_large_files_use_xet_without_the_hubs_token(
    server: LocalHub, storage: XetStorage, hub: Hub, tmp_path: Path
):
    bar = Bar()
    for path, remote in hub.sizes([ZIP, "features.csv"]).items():
        hub.fetch(remote, tmp_path / "data", bar)
        content = (tmp_path / "served" / path).read_bytes()
        assert (tmp_path / "data" / path).read_bytes() == content
    assert server.gets(ZIP) == 0 and server.gets("features.csv") == 1
    assert storage.first_bytes(HASH) == [0]
    assert not any(TOKEN in secret for secret in storage.server.secrets)
    assert bar.count == len(CONTENT) + (tmp_path / "served/features.csv").stat().st_size


def test_xet_resumes_a_partial_file(
    server: LocalHub, storage: XetStorage, hub: Hub, tmp_path: Path
):
    remote = hub.sizes([ZIP])[ZIP]
    partial = transfer.path_of(tmp_path / "data", remote)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT[:300_000])
    bar = Bar()
    assert hub.fetch(remote, tmp_path / "data", bar).read_bytes() == CONTENT
    assert storage.first_bytes(HASH) == [300_000] and bar.count == 200_001
    assert server.gets(ZIP) == 0


def test_failed_xet_falls_back_to_range_requests(
    server: LocalHub, storage: XetStorage, hub: Hub, tmp_path: Path, caplog
):
    storage.is_lost = True
    remote = hub.sizes([ZIP])[ZIP]
    partial = transfer.path_of(tmp_path / "data", remote)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT[:300_000])
    with caplog.at_level(logging.WARNING):
        assert hub.fetch(remote, tmp_path / "data").read_bytes() == CONTENT
        hub.fetch(remote, tmp_path / "again")
    assert [r.start for r in server.requests if r.path == ZIP] == [300_000, 0]
    warnings = [record.message for record in caplog.records if "Xet fails" in record.message]
    assert len(warnings) == 1 and "plain HTTP from here on" in warnings[0]


def test_file_damaged_by_xet_is_fetched_over_http(
    server: LocalHub, storage: XetStorage, hub: Hub, tmp_path: Path
):
    storage.flips = True
    remote, bar = hub.sizes([ZIP])[ZIP], Bar()
    assert hub.fetch(remote, tmp_path / "data", bar).read_bytes() == CONTENT
    assert server.gets(ZIP) == 1 and bar.count == len(CONTENT)
    server.faults.flipped[ZIP] = 9
    with pytest.raises(AvomniError, match="arrived damaged twice"):
        hub.fetch(remote, tmp_path / "again")


def test_xet_can_be_disabled(server, storage, hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert hub.fetch(hub.sizes([ZIP])[ZIP], tmp_path / "data").read_bytes() == CONTENT
    assert server.gets(ZIP) == 1 and storage.server.asked == []


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in xet.PRIVATE_NAMES.items() for name in names],
)
def test_private_name_of_the_client_exists(module: str, name: str):
    assert hasattr(importlib.import_module(module), name), f"{module}.{name} has moved"
