"""Evicted is a record: of files that this run removed, and that are not there again."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from avomni_lib.dataset.select import evicted, manifest
from avomni_lib.dataset.select.manifest import Chosen
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

TODAY = datetime.date.today().isoformat()
PATHS = ("camera/a.zip", "camera/b.zip", "labels/c.zip")


@pytest.fixture
def p(tmp_path: Path) -> Params:
    p = Params.from_values(
        {
            "run": {"name": "test", "outputs_dir": str(tmp_path)},
            "dataset": {"local_dir": str(tmp_path / "raw")},
        }
    )
    choose(p, "1")
    for path in PATHS:
        (p.local_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (p.local_dir / path).write_bytes(b"12345")
    return p


def choose(p: Params, sha256: str) -> None:
    listed = {path: {"size": 5, "sha256": sha256} for path in PATHS}
    manifest.write_chosen(p, Chosen("owner/name", "0" * 40, (0,), {"train": ("x",)}, listed))


def test_evicted_files_are_gone_and_known_by_their_day(p: Params):
    assert evicted.read_evicted(p) == {}
    assert evicted.evict(p, PATHS[:2]) == 10
    assert evicted.read_evicted(p) == dict.fromkeys(PATHS[:2], TODAY)
    assert [path.name for path in p.local_dir.rglob("*.zip")] == ["c.zip"]
    assert evicted.evict(p, PATHS) == 5, "what is gone already is passed over"
    assert evicted.read_evicted(p) == dict.fromkeys(PATHS, TODAY)


def test_a_file_that_is_there_again_is_not_evicted(p: Params):
    """As after a kill between the record and the removal, too."""
    evicted.evict(p, PATHS)
    (p.local_dir / PATHS[0]).write_bytes(b"12345")
    assert list(evicted.read_evicted(p)) == list(PATHS[1:])


def test_another_content_under_the_same_name_was_never_evicted(p: Params):
    evicted.evict(p, PATHS)
    choose(p, "2")
    assert evicted.read_evicted(p) == {}


def test_only_chosen_files_are_removed(p: Params):
    (p.local_dir / "other.zip").write_bytes(b"of another run")
    with pytest.raises(AvomniError, match="not this run's to remove, such as other.zip"):
        evicted.evict(p, [*PATHS, "other.zip"])
    assert len(list(p.local_dir.rglob("*.zip"))) == 4


def test_the_record_comes_before_the_removal(p: Params):
    """The record cannot be written here: a folder has its name."""
    evicted.path_of(p).mkdir()
    with pytest.raises(OSError):
        evicted.evict(p, PATHS)
    assert len(list(p.local_dir.rglob("*.zip"))) == 3


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "{"])
def test_a_record_that_cannot_be_read_costs_only_the_word(p: Params, text: str):
    evicted.evict(p, PATHS[:1])
    evicted.path_of(p).write_text(text)
    assert evicted.read_evicted(p) == {}
    evicted.evict(p, PATHS)
    assert list(evicted.read_evicted(p)) == list(PATHS[1:])


def test_the_day_of_the_choice_is_kept_and_changes_no_digest(p: Params):
    old = manifest.read_chosen(p)
    assert old.chosen_on is None
    path = manifest.path_of(p)
    values = json.loads(path.read_text())
    del values["chosen_on"]
    path.write_text(json.dumps(values))
    assert manifest.read_chosen(p) == old, "files without it are still read"
    path.write_text(json.dumps(values | {"chosen_on": TODAY}))
    assert manifest.read_chosen(p).chosen_on == TODAY
    assert manifest.read_chosen(p).digest == old.digest
