"""Frozen splits: written once, extended but never changed, and identified by a hash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.dataset.select import split
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

CLIPS = {"train": ["b", "a", "d"], "val": ["c"], "test": ["f", "e"]}


@pytest.fixture
def p(tmp_path: Path) -> Params:
    return Params.from_values({"run": {"outputs_dir": str(tmp_path)}})


def test_frozen_splits_are_read_back_sorted_with_their_hash(p: Params):
    assert split.sha256_of(p) is None
    digest = split.freeze(p, CLIPS)
    assert split.read(p) == {
        **dict.fromkeys("abd", "train"),
        **dict.fromkeys("c", "val"),
        **dict.fromkeys("ef", "test"),
    }
    assert list(split.read(p)) == sorted("abcdef")
    record = files.read_json(split.path_of(p))
    assert split.path_of(p) == p.run_dir / "split.json"
    assert digest == split.sha256_of(p) == record.pop("sha256")
    assert files.hash_json(record) == digest and record["format"] == 1
    assert [path.name for path in p.run_dir.iterdir()] == ["split.json"]


def test_freezing_the_same_splits_keeps_the_file(p: Params):
    digest = split.freeze(p, CLIPS)
    state = split.path_of(p).stat()
    assert split.freeze(p, {"test": ["e", "f"], "train": ["a", "b", "d"], "val": ["c"]}) == digest
    assert split.path_of(p).stat() == state


@settings(max_examples=30)
@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.sampled_from(["train", "val", "test"])),
    st.randoms(use_true_random=False),
)
def test_hash_does_not_depend_on_clip_order(tmp_path_factory, splits, rng):
    def frozen() -> str:
        order = list(splits)
        rng.shuffle(order)
        folder = tmp_path_factory.mktemp("split")
        p = Params.from_values({"run": {"outputs_dir": str(folder)}})
        by_split: dict[str, list[str]] = {}
        for clip_id in order:
            by_split.setdefault(splits[clip_id], []).append(clip_id)
        digest = split.freeze(p, by_split)
        assert split.read(p) == splits
        return digest

    assert frozen() == frozen()


def test_new_clips_are_added_and_old_ones_stay(p: Params):
    first = split.freeze(p, {"train": ["a"], "test": ["e"]})
    second = split.freeze(p, {"train": ["b"], "val": ["c"]})
    assert second != first
    assert split.read(p) == {"a": "train", "b": "train", "c": "val", "e": "test"}


def test_changed_split_of_a_clip_is_refused(p: Params):
    split.freeze(p, CLIPS)
    before = split.path_of(p).read_bytes()
    moved = {"train": ["f", "new"], "val": ["a", "b", "c", "d"]}
    moves = "a from train to val, b from train to val, d from train to val and 1 more"
    with pytest.raises(AvomniError, match=f"clips would change their split: {moves}") as caught:
        split.freeze(p, moved)
    assert caught.value.where == str(split.path_of(p))
    assert "dataset.revision" in caught.value.fix and "train again" in caught.value.fix
    assert split.path_of(p).read_bytes() == before


def test_clip_in_two_splits_is_refused(p: Params):
    with pytest.raises(AvomniError, match="in two splits, train and test") as caught:
        split.freeze(p, {"train": ["a", "b"], "test": ["b"]})
    assert caught.value.where == "clip b"
    assert not split.path_of(p).exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"c": "val"', '"c": "test"', "its content and its sha256 disagree"),
        ('    "c": "val",\n', "", "its content and its sha256 disagree"),
        ('"sha256": "', '"sha256": "0', "its content and its sha256 disagree"),
        ('"format": 1', '"format": 2', "not a split.json of format 1"),
        ('"splits": {', '"splitz": {', "its content and its sha256 disagree"),
        ("{", "[", "not a JSON file"),
    ],
)
def test_edited_split_file_is_refused_by_every_reader(p: Params, old, new, message):
    split.freeze(p, CLIPS)
    text = split.path_of(p).read_text()
    assert old in text
    split.path_of(p).write_text(text.replace(old, new, 1))
    for read in (split.read, split.sha256_of, lambda p: split.freeze(p, CLIPS)):
        with pytest.raises(AvomniError, match=message) as caught:
            read(p)
        assert caught.value.where == str(split.path_of(p)) and caught.value.fix


def test_cache_with_other_splits_is_refused(p: Params):
    with pytest.raises(AvomniError, match="not frozen yet") as caught:
        split.check(p, {"a": "train"})
    assert caught.value.fix == "run 03_etl"
    split.freeze(p, CLIPS)
    split.check(p, {"a": "train", "e": "test"})
    with pytest.raises(AvomniError, match="would change .*: e from test to train"):
        split.check(p, {"a": "train", "e": "train"})
    with pytest.raises(AvomniError, match="clips of the cache are in no frozen split: x"):
        split.check(p, {"a": "train", "x": "test"})
