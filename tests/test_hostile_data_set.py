"""Clip ids, path templates and chosen.json with paths outside the data folder are refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avomni_lib.dataset.audit.audit import audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.download import download
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.select.evicted import evict
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import folder_run, local_hub
from tests.published_set import clip_id_of, read_zip, write_published_set, write_zip

CAMERA = "camera_front_wide_120fov"
CLIP = clip_id_of(1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return write_published_set(folder, 1, 3, 1.2, width=32, height=24)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to change, deep enough for `..` to stay within the test's folder."""
    return shutil.copytree(published, tmp_path / "a/b/c/data")


def rename_clip(folder: Path, clip_id: str, *new_ids: str | bytes) -> None:
    """Give a clip another id, or several, in every table and zip, as a data set's maker could."""
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        if "clip_id" not in table.column_names:
            continue
        ids = [old_id.encode() for old_id in table["clip_id"].to_pylist()]
        news = [new if isinstance(new, bytes) else new.encode() for new in new_ids]
        named = [
            (row, new)
            for row, old_id in enumerate(ids)
            for new in (news if old_id == clip_id.encode() else [old_id])
        ]
        plain = pa.array([new for _, new in named], pa.binary())
        # pyarrow writes text without checking that it is UTF-8.
        column = pa.Array.from_buffers(pa.string(), len(plain), plain.buffers())
        table = table.take(pa.array([row for row, _ in named]))
        table = table.set_column(table.column_names.index("clip_id"), "clip_id", column)
        pq.write_table(table, path)
    texts = [new.decode("latin-1") if isinstance(new, bytes) else new for new in new_ids]
    # zipfile truncates a name at NUL.
    texts = [text for text in texts if "\0" not in text]
    for path in folder.rglob("*.zip"):
        named_members = {}
        for name, content in read_zip(path).items():
            for text in texts if clip_id in name else [""]:
                named_members[name.replace(clip_id, text)] = content
        write_zip(path, named_members)


BAD_IDS = {
    "leaves the folder": "../../../../victim",
    "is absolute": "/tmp/avomni_victim",
    "holds a slash": "a/b",
    "holds a backslash": "..\\victim",
    "is empty": "",
    "is a dot": ".",
    "is two dots": "..",
    "is hidden": ".bashrc",
    "is 300 letters": "x" * 300,
    "is 201 bytes": "\u00e9" * 100 + "x",
    "holds a line break": "a\nb",
    "holds NUL": "a\0b",
    "holds an escape": "\x1b[2Jclear",
    "has a bidi override": "a\u202egnp",
    "ends in a dot": "clip.",
    "ends in a space": "clip ",
    "names a drive": "C:clip",
    "is no UTF-8": b"clip\xff\xfe",
}


def test_clips_with_unsafe_ids_are_reported_and_the_others_used(folder: Path, tmp_path: Path):
    rename_clip(folder, CLIP, *BAD_IDS.values())
    for name in ("victim", "victim.npz"):
        (tmp_path / name).write_text("mine")
    outside = {k: v for k, v in folder_run.content(tmp_path).items() if not k.startswith("a/b/c/")}
    good = {clip_id_of(0), clip_id_of(2)}
    p = Params.from_values(folder_run.values(tmp_path / "a/b/c/outputs", folder))
    report = audit(p, None)
    assert len(report.clips) == len(BAD_IDS) + 2
    for row in report.clips:
        is_good = row["clip_id"] in good
        assert row["state"] in (("sound", "odd") if is_good else ("damaged",))
        assert is_good or "is no plain name: " in row["reason"] and len(row["clip_id"]) < 100
        assert (row["clip_id"] + row["reason"]).isprintable() and len(row["reason"]) < 500
    download.fetch(p, None)
    assert {c for ids in read_chosen(p).clip_ids.values() for c in ids} == good
    built = build.build(p)
    assert {row["clip_id"]: row["reason"] for row in built.clips} == dict.fromkeys(good, "")
    assert len(runs.states(p)) == len(runs.STAGES)
    assert {
        k: v for k, v in folder_run.content(tmp_path).items() if not k.startswith("a/b/c/")
    } == outside
    assert not list(Path("/tmp").glob("avomni_victim*"))


def test_equal_unsafe_ids_are_reported_separately(folder: Path, tmp_path: Path):
    for number in (0, 1):
        rename_clip(folder, clip_id_of(number), "..")
    p = Params.from_values(folder_run.values(tmp_path / "outputs", folder))
    bad = [row for row in audit(p, None).clips if row["state"] == "damaged"]
    assert len(bad) == 2
    download.fetch(p, None)
    assert read_chosen(p).num_clips == 1


@pytest.mark.parametrize(
    "clip_id",
    ["\u00e9t\u00e9", "clip 7", "2026-01-02T03:04", "a" * 200, "\u65e5\u672c", "-x", "a.b", "~x"],
)
def test_safe_ids_of_any_alphabet_are_accepted(folder: Path, clip_id: str):
    rename_clip(folder, CLIP, clip_id)
    catalog = Catalog.open(folder)
    assert catalog.clips.faults == {}
    assert clip_id in catalog.usable(0, ["egomotion"])


def test_selecting_a_clip_with_an_unsafe_id_is_an_error(folder: Path, tmp_path: Path):
    rename_clip(folder, CLIP, "../x")
    plain = folder_run.values(tmp_path / "outputs", folder)
    plain["download"]["clips"] = {"clip_ids": ["../x"]}
    with pytest.raises(AvomniError, match=r"\.\./x"):
        download.fetch(Params.from_values(plain), None)


# ---- features.csv


def change_feature(folder: Path, name: str, **changes: Any) -> None:
    """Change columns of a feature's row."""
    text = (folder / "features.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        if row["feature"] == name:
            row.update(changes)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "features.csv").write_text(out.getvalue())


GOOD_CHUNK, GOOD_MEMBER = "labels/egomotion/egomotion.chunk_{chunk_id:04d}.zip", "{clip_id}.x"
BAD_CHUNK_PATHS = {
    "absolute": "/tmp/avomni/{chunk_id:04d}.zip",
    "leaves the folder": "../../victim_{chunk_id:04d}.zip",
    "leaves the folder by a subfolder": "labels/../../victim_{chunk_id:04d}.zip",
    "a positional field": "labels/{0}.zip",
    "an empty field": "labels/{}.zip",
    "an attribute": "labels/{chunk_id.__class__}.zip",
    "an item": "labels/{chunk_id[0]}.zip",
    "a conversion": "labels/{chunk_id!r}.zip",
    "a huge width": "{chunk_id:1000000000d}",
    "three digits of width": "labels/{chunk_id:0100d}.zip",
    "a huge padded width": "labels/{chunk_id:01000000000d}.zip",
    "a width in Arabic digits": "labels/{chunk_id:0\u0664d}.zip",
    "space padding": "labels/{chunk_id:4d}.zip",
    "a sign": "labels/{chunk_id:+d}.zip",
    "a fraction": "labels/{chunk_id:.2f}.zip",
    "a field in a field": "labels/{chunk_id:{chunk_id}}.zip",
    "another field": "labels/{clip_id}.zip",
    "another field beside it": "labels/{chunk_id:04d}{clip_id}.zip",
    "no field": "labels/all.zip",
    "braces": "labels/{{chunk_id}}.zip",
    "a single closing brace": "labels/{chunk_id:04d}}.zip",
    "an open brace": "labels/{chunk_id:04d}{",
    "the folder for records": ".avomni/partial/{chunk_id:04d}.zip",
    "a hidden file": "labels/.{chunk_id:04d}.zip",
    "a backslash": "labels\\{chunk_id:04d}.zip",
    "a drive": "C:/{chunk_id:04d}.zip",
    "NUL": "labels/{chunk_id:04d}\0.zip",
    "an escape": "labels/\x1b[2J{chunk_id:04d}.zip",
    "long": "x" * 250 + "{chunk_id:04d}.zip",
    "deep": "x/" * 1000 + "{chunk_id:04d}.zip",
    "wide": "{chunk_id:099d}" * 3,
    "a folder": "labels/{chunk_id:04d}/",
    "an empty template": "",
}


@pytest.mark.parametrize("template", BAD_CHUNK_PATHS.values(), ids=BAD_CHUNK_PATHS)
def test_unsafe_chunk_path_template_is_refused(folder: Path, template: str):
    change_feature(folder, "egomotion", chunk_path=template)
    with pytest.raises(AvomniError, match="the template chunk_path .* is refused: ") as caught:
        Catalog.open(folder)
    assert "egomotion in" in caught.value.where and "features.csv" in caught.value.where
    assert len(str(caught.value)) < 1000


def test_unsafe_template_is_refused_before_any_file_changes(folder: Path, tmp_path: Path):
    change_feature(
        folder, "egomotion", chunk_path=BAD_CHUNK_PATHS["leaves the folder by a subfolder"]
    )
    before = folder_run.content(tmp_path)
    p = Params.from_values(folder_run.values(tmp_path / "outputs", folder))
    for stage in (audit, download.fetch):
        with pytest.raises(AvomniError, match="the template chunk_path .* is refused: "):
            stage(p, None)
    assert {
        k: v for k, v in folder_run.content(tmp_path).items() if "/.avomni/lock" not in k
    } == before


def test_hubs_template_writes_nothing_outside_the_data_folder(folder: Path, tmp_path: Path):
    change_feature(folder, "egomotion", chunk_path=f"{tmp_path}/victim_{{chunk_id:04d}}.zip")
    plain = folder_run.values(tmp_path / "outputs", tmp_path / "data")
    plain["dataset"] |= {"source": "hub", "repo_id": "avomni/world", "license_accepted": True}
    with local_hub.serve(folder, "avomni/world") as server:
        hub = Hub("avomni/world", endpoint=server.endpoint)
        with pytest.raises(AvomniError, match="the template chunk_path .* is refused: it is abs"):
            download.fetch(Params.from_values(plain), hub)
    assert not list(tmp_path.glob("victim*"))


BAD_MEMBERS = {
    "a list in place of text": {"egomotion": ["{clip_id}.egomotion.parquet"]},
    "a number": {"egomotion": 7},
    "null": {"egomotion": None},
    "a positional field": {"egomotion": "{0}.egomotion.parquet"},
    "an attribute": {"egomotion": "{clip_id.__class__.__mro__}"},
    "a width": {"egomotion": "{clip_id:>1000000000}"},
    "a conversion": {"egomotion": "{clip_id!a}"},
    "another field": {"egomotion": "{clip_id}{chunk_id}"},
    "the same for all clips": {"egomotion": "egomotion.parquet"},
    "leaves the folder": {"egomotion": "../{clip_id}.parquet"},
    "absolute": {"egomotion": "/{clip_id}.parquet"},
    "a path as a kind": {"../egomotion": "{clip_id}.egomotion.parquet"},
    "a list in place of kinds": ["{clip_id}.egomotion.parquet"],
    "text in place of kinds": "{clip_id}.egomotion.parquet",
    "true": True,
}


@pytest.mark.parametrize("members", BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_invalid_member_templates_are_refused(folder: Path, members: Any):
    change_feature(folder, "egomotion", clip_files_in_zip=json.dumps(members))
    with pytest.raises(AvomniError, match="is refused: ") as caught:
        Catalog.open(folder)
    assert "features.csv" in caught.value.where


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"feature,directory\n" + b"x" * 200_000),
        lambda path: path.write_bytes(b"\xff\xfe" + "feature,directory\n".encode("utf-16-le")),
        lambda path: path.write_bytes(path.read_bytes().replace(b'""video""', b'""video', 1)),
        lambda path: path.write_bytes(b"feature\0" + path.read_bytes()),
        lambda path: path.write_bytes(path.read_bytes().replace(b"clip_files_in_zip", b"files", 1)),
        lambda path: path.write_bytes(path.read_bytes() + b"egomotion,labels\n"),
        lambda path: path.write_bytes(path.read_bytes() + path.read_bytes().partition(b"\n")[2]),
        lambda path: path.write_text(
            "feature,directory,chunk_path,clip_files_in_zip\n"
            f"a,labels,labels/{{chunk_id}},{'[' * 100_000}\n"
        ),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=[
        *("empty", "a long field", "UTF-16", "cut JSON", "NUL", "a column is missing"),
        *("a short row", "repeated features", "deep JSON", "a folder"),
    ],
)
def test_unreadable_features_csv_is_one_error(folder: Path, spoil: Callable[[Path], Any]):
    spoil(folder / "features.csv")
    with pytest.raises(AvomniError) as caught:
        catalog = Catalog.open(folder)
        catalog.path("egomotion", 0)
    assert "features.csv" in caught.value.where and len(str(caught.value)) < 3000


@pytest.mark.parametrize("name", ["../x", "", "a/b", "x" * 201, "a\nb"])
def test_unsafe_feature_name_is_refused(folder: Path, name: str):
    change_feature(folder, "egomotion", feature=name)
    with pytest.raises(AvomniError, match="is refused"):
        Catalog.open(folder)


def test_features_csv_with_a_byte_order_mark_is_read(folder: Path, tmp_path: Path):
    """As spreadsheets write it."""
    path = folder / "features.csv"
    plain = Catalog.open(folder).features
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert Catalog.open(folder).features == plain
    p = folder_run.chosen(tmp_path / "outputs", folder)
    assert read_chosen(p).num_clips == 3


@pytest.mark.parametrize("width", ["", ":04d", ":06d", ":04", ":010d"])
def test_chunk_number_widths_are_applied(folder: Path, width: str):
    change_feature(folder, "egomotion", chunk_path=f"labels/e_{{chunk_id{width}}}.zip")
    assert (
        Catalog.open(folder).path("egomotion", 7) == "labels/e_" + f"{{{width}}}".format(7) + ".zip"
    )


# ---- chosen.json


BAD_CHOICES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a clip id that leaves the folder": lambda v: v["clip_ids"]["train"].append("../../victim"),
    "a number as a clip id": lambda v: v["clip_ids"]["train"].append(7),
    "a list as a clip id": lambda v: v["clip_ids"]["train"].append(["x"]),
    "text in place of clip ids": lambda v: v["clip_ids"].update(train="../x"),
    "a file that leaves the folder": lambda v: v["files"].update(
        {"../../../../victim": {"size": 4, "sha256": "0" * 64}}
    ),
    "an absolute path": lambda v: v["files"].update(
        {"/tmp/victim": {"size": 4, "sha256": "0" * 64}}
    ),
    "a file of the folder's records": lambda v: v["files"].update(
        {".avomni/verified.json": {"size": 4, "sha256": "0" * 64}}
    ),
    "a negative size": lambda v: next(iter(v["files"].values())).update(size=-1),
    "a number in place of a file": lambda v: v["files"].update({"a.zip": 7}),
    "text as a chunk": lambda v: v.update(chunks=["../0"]),
    "a negative chunk": lambda v: v.update(chunks=[-1]),
    "true as a chunk": lambda v: v.update(chunks=[True]),
}


@pytest.mark.parametrize("spoil", BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_chosen_json_with_unsafe_values_is_refused(
    folder: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any]
):
    p = folder_run.chosen(tmp_path / "a/b/c/outputs", folder)
    path = p.run_dir / "chosen.json"
    values = json.loads(path.read_text())
    spoil(values)
    path.write_text(json.dumps(values))
    (tmp_path / "victim").write_text("mine")
    for use in (read_chosen, build.build, lambda p: evict(p, list(values["files"]))):
        with pytest.raises(AvomniError, match="is refused|not a chosen.json") as caught:
            use(p)
        assert caught.value.where == str(path) and "run 02_download again" in caught.value.fix
    assert (tmp_path / "victim").read_text() == "mine"


# ---- fixes for damaged files


@pytest.mark.parametrize("source", ["folder", "hub"])
@pytest.mark.parametrize("spoil", ["cut", "removed", "no zip"])
def test_fix_for_a_damaged_file_depends_on_the_source(
    folder: Path, tmp_path: Path, source: str, spoil: str
):
    p = folder_run.chosen(tmp_path / "outputs", folder)
    p = p.model_copy(update={"dataset": p.dataset.model_copy(update={"source": source})})
    clip = Clip(folder, Catalog.of(p), CLIP)
    places = {
        clip.egomotion: folder / "labels/egomotion/egomotion.chunk_0000.zip",
        clip.vehicle: folder
        / "calibration/vehicle_dimensions/vehicle_dimensions.chunk_0000.parquet",
    }
    for read, path in places.items():
        content = path.read_bytes()
        path.unlink()
        if spoil != "removed":
            path.write_bytes(content[: len(content) // 2] if spoil == "cut" else b"x" * 999)
        with pytest.raises(AvomniError) as caught:
            read()
        assert ("fetch" in caught.value.fix) == (source == "hub")
        assert ("dataset.local_dir" in caught.value.fix) == (source == "folder")
