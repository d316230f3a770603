"""03 reads what 02 has chosen, and names the tables of a catalog that has changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import FEATURES_FILE, INDEX_FILE, OLD_PRESENCE_FILE, PRESENCE_FILE
from avomni_lib.dataset.download import download
from avomni_lib.dataset.select.manifest import path_of
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build, slurm
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import folder_run
from tests.folder_run import chosen
from tests.published_set import chunk_path, clip_id_of, read_zip, write_published_set, write_zip


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_published_set(tmp_path_factory.mktemp("set"), 2, 2, 1.0)


@pytest.fixture
def folder(published, tmp_path) -> Path:
    shutil.copytree(published, tmp_path / "set")
    return tmp_path / "set"


def index(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder / INDEX_FILE, change)


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_value(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    """The first clip's row with another value."""

    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        values = table[name].to_pylist()
        values[0] = value
        return table.set_column(place, name, pa.array(values, table[name].type))

    return change


def without_first(table: pa.Table) -> pa.Table:
    return table.slice(1)


def first_twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


def other_template(folder: Path) -> None:
    path = folder / FEATURES_FILE
    path.write_text(path.read_text().replace(".chunk_", ".chunk__"))


def newer_presence(folder: Path) -> None:
    """Add a table that takes precedence over the existing one."""
    shutil.copy(folder / PRESENCE_FILE, folder / OLD_PRESENCE_FILE)


def absent(folder: Path) -> None:
    name = cameras.FRONT_WIDE.name
    rewritten(folder / PRESENCE_FILE, with_value(name, False))


CHANGES = {
    "a clip is removed": (index(without_first), INDEX_FILE),
    "a clip is listed twice": (index(first_twice), INDEX_FILE),
    "a clip is in another chunk": (index(with_value("chunk", 1)), INDEX_FILE),
    "a clip is in a chunk that was not taken": (index(with_value("chunk", 7)), INDEX_FILE),
    "a clip is of another split": (index(with_value("split", "test")), INDEX_FILE),
    "a clip is not valid": (index(with_value("clip_is_valid", False)), INDEX_FILE),
    "the index is removed": (lambda folder: (folder / INDEX_FILE).unlink(), INDEX_FILE),
    "a clip lacks a camera": (absent, PRESENCE_FILE),
    "another table of presence": (newer_presence, OLD_PRESENCE_FILE),
    "files have other names": (other_template, FEATURES_FILE),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_catalog_changed_since_02_is_an_error(folder, tmp_path, kind):
    change, name = CHANGES[kind]
    p = chosen(tmp_path, folder)
    change(folder)
    for read in (build.build, build.plan, lambda p: slurm.build_share(p, 1, 2)):
        if read is build.plan and kind == "the index is removed":
            continue
        if read is build.plan:
            p = folder_run_that_evicts(p)
        with pytest.raises(AvomniError, match="not the one that 02_download chose from") as caught:
            read(p)
        p = Params.from_values(folder_run.values(tmp_path, folder))
        assert name in caught.value.what and "02_download" in caught.value.fix
        assert caught.value.where == str(folder)
    assert not list(p.cache_dir.glob("shard_*"))


def folder_run_that_evicts(p: Params) -> Params:
    values = p.values()
    values["dataset"]["source"], values["download"]["evict_raw"] = "hub", True
    return Params.from_values(values)


def test_changed_index_makes_02_stale_and_a_rerun_succeeds(folder, tmp_path):
    p = chosen(tmp_path, folder)
    for name in ("01_audit", "02_download"):
        runs.start(p, name).finish({}, digest="the same")
    assert runs.state(p, "02_download").done
    index(without_first)(folder)
    state = runs.state(p, "02_download")
    assert not state.done and f"{INDEX_FILE} changed or gone since" in state.reason
    download.fetch(p, None)
    built = build.build(p)
    assert clip_id_of(0) not in {row["clip_id"] for row in built.clips} and len(built.clips) == 3


CHOICES = {
    "unknown": (lambda ids: ids["train"].append("no such clip"), "no such clip is not listed"),
    "twice": (lambda ids: ids["train"].append(ids["train"][0]), "is chosen twice"),
    "other split": (
        lambda ids: ids["test"].append(ids["train"].pop()),
        "was of the split test and is of train",
    ),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_choice_that_contradicts_the_catalog_is_an_error(folder, tmp_path, kind):
    change, message = CHOICES[kind]
    p = chosen(tmp_path, folder)
    values = json.loads(path_of(p).read_text())
    change(values["clip_ids"])
    path_of(p).write_text(json.dumps(values))
    (p.run_dir / "split.json").unlink()
    with pytest.raises(AvomniError, match=message):
        build.build(p)


def test_chunk_listed_twice_counts_once(folder, tmp_path):
    p = chosen(tmp_path, folder)
    before = build.build(p)
    values = json.loads(path_of(p).read_text())
    values["chunks"] = [*values["chunks"], 0]
    path_of(p).write_text(json.dumps(values))
    assert build.build(p).clips == before.clips


def test_each_clip_of_the_chosen_chunks_has_one_row(folder, tmp_path):
    """As with `--limit`; a clip that its zip lacks has a row too."""
    values = folder_run.values(tmp_path, folder)
    values["download"]["target_chunks"] = 1
    p = Params.from_values(values)
    download.fetch(p, None)
    path = folder / chunk_path(cameras.FRONT_WIDE.name, 0)
    members = read_zip(path)
    write_zip(path, {name: c for name, c in members.items() if clip_id_of(1) not in name})
    built = build.build(p)
    assert [row["clip_id"] for row in built.clips] == [clip_id_of(0), clip_id_of(1)]
    assert [row["state"] for row in built.clips] == ["ok", "damaged"]
    assert "no member" in built.clips[1]["reason"]
