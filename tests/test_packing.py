"""Rows of tokens: padded or packed, a window's numbers are the same as alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones import backbone
from avomni_lib.training.feed import packing
from avomni_lib.training.fit import worker
from avomni_lib.training.model import attention, load
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import IGNORED, Sample
from tests import training_set

WINDOWS = training_set.Stripes(24)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return training_set.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(base_folder, tmp_path_factory):
    return load.load_base(training_set.params(tmp_path_factory.mktemp("out"), base_folder))


@pytest.fixture(scope="module")
def talk(base):
    kind = backbone("qwen3_vl", base.model.config)
    p = training_set.params("unused", "unused")
    return samples.conversation_of(p, WINDOWS, base.tokenizer, kind)


def hidden(base, talk, indices, packed):
    """(rows, L, hidden) of the decoder's last layer."""
    batch = samples.batch_of(indices, WINDOWS, talk, packed)
    del batch["labels"]
    batch |= talk.backbone.inputs(
        torch.stack([torch.from_numpy(WINDOWS.frames(i)) for i in indices])
    )
    with torch.inference_mode():
        return base.model.model(**batch, use_cache=False).last_hidden_state


rows = st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=9), min_size=1, max_size=5)


def made(row):
    ids = np.array(row)
    return Sample(ids, ids * 3, ids * 0, np.arange(3 * len(ids)).reshape(3, -1))


@given(rows)
def test_padding_adds_nothing_that_is_learned(found):
    batch = packing.padded([made(row) for row in found], pad_id=0)
    assert "attention_mask" not in batch
    assert batch["position_ids"].shape == (3, *batch["input_ids"].shape)
    for n, row in enumerate(found):
        length = len(row)
        assert batch["input_ids"][n].tolist() == row + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["labels"][n, :length].tolist() == [3 * token for token in row]
        assert (batch["labels"][n, length:] == IGNORED).all()
        assert (batch["position_ids"][:, n, :length].numpy() == made(row).positions).all()


@given(rows)
def test_a_packed_row_is_its_windows_and_none_answers_the_one_before(found):
    batch = packing.packed([made(row) for row in found])
    assert batch["window_lengths"] == tuple(map(len, found))
    assert batch["input_ids"].tolist() == [[token for row in found for token in row]]
    parts = batch["labels"][0].split(batch["window_lengths"])
    for row, labels, positions in zip(
        found, parts, batch["position_ids"][:, 0].split(batch["window_lengths"], dim=1), strict=True
    ):
        assert labels.tolist() == [IGNORED, *(3 * token for token in row[1:])]
        assert (positions.numpy() == made(row).positions).all()


def test_windows_are_to_the_model_what_they_are_alone(base, talk):
    """Exactly, padded or packed: no window sees padding or another window."""
    indices = [0, 5, 9, 2]
    alone = [hidden(base, talk, [index], packed=False)[0] for index in indices]
    padded = hidden(base, talk, indices, packed=False)
    for row, expected in zip(padded, alone, strict=True):
        assert torch.equal(row[: len(expected)], expected)
    before = base.model.config.get_text_config()._attn_implementation
    attention.keep_windows_apart(base.model)
    try:
        (row,) = hidden(base, talk, indices, packed=True)
        apart = row.split([len(expected) for expected in alone])
        assert all(torch.equal(ours, expected) for ours, expected in zip(apart, alone, strict=True))
        # And what is not packed goes through the same attention unchanged.
        assert torch.equal(hidden(base, talk, indices, packed=False), padded)
    finally:
        base.model.config.get_text_config()._attn_implementation = before


def test_no_mask_is_made_for_a_packed_row(base, talk, monkeypatch):
    """65,536 tokens would take a mask of 4.3e9 entries."""
    seen = []

    def watch(module, query, key, value, attention_mask, **options):
        if module.is_causal:  # the language model's, not the vision tower's
            seen.append((attention_mask, tuple(query.shape)))
        return sdpa(module, query, key, value, attention_mask, **options)

    from transformers.integrations import sdpa_attention

    sdpa = sdpa_attention.sdpa_attention_forward
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", watch)
    before = base.model.config.get_text_config()._attn_implementation
    attention.keep_windows_apart(base.model)
    try:
        hidden(base, talk, [0, 1, 2], packed=True)
    finally:
        base.model.config.get_text_config()._attn_implementation = before
    lengths = [len(samples.sample_of(i, WINDOWS, talk)) for i in (0, 1, 2)]
    assert [mask for mask, _ in seen] == [None] * len(seen)
    layers = base.model.config.get_text_config().num_hidden_layers
    assert [shape[2] for _, shape in seen] == lengths * layers


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_packed_training_learns_what_an_unpacked_one_learns(base_folder, tmp_path, checkpointing):
    def trained(packed):
        training = {"packing": packed, "gradient_checkpointing": checkpointing, "max_steps": 4}
        p = training_set.params(tmp_path / str(packed), base_folder, training=training)
        return worker.work(p, windows=WINDOWS)

    packed, unpacked = trained(True), trained(False)
    losses = [[line["loss"] for line in each.metrics] for each in (packed, unpacked)]
    np.testing.assert_allclose(*losses, rtol=2e-6)
    assert packed.choices["backend"].value == "transformers"


def test_more_windows_than_a_row_has_room_for_are_refused(base_folder, tmp_path):
    training = {"packing": True, "batch_size": 5, "gradient_accumulation_steps": 1}
    p = training_set.params(tmp_path, base_folder, training=training)
    with pytest.raises(AvomniError, match="5 windows is 620 tokens") as caught:
        worker.work(p, windows=WINDOWS)
    assert "training.batch_size to 4 at most" in caught.value.fix
