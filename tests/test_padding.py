"""Rows of tokens: padded, a window's numbers are the same as alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.training.backbones import backbone
from avomni_lib.training.model import load
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import IGNORED, Sample, padded
from tests import training_set

WINDOWS = training_set.Stripes(24)


@pytest.fixture(scope="module")
def base(base_folder, tmp_path_factory):
    return load.load_base(training_set.params(tmp_path_factory.mktemp("out"), base_folder))


@pytest.fixture(scope="module")
def talk(base):
    kind = backbone("qwen3_vl", base.model.config)
    p = training_set.params("unused", "unused")
    return samples.conversation_of(p, base.tokenizer, kind)


def hidden(base, talk, indices):
    """(rows, L, hidden) of the decoder's last layer."""
    batch = samples.batch_of(indices, WINDOWS, talk)
    del batch["labels"]
    batch |= talk.inputs(torch.stack([torch.from_numpy(WINDOWS.frames(i)) for i in indices]))
    with torch.inference_mode():
        return base.model.model(**batch, use_cache=False).last_hidden_state


rows = st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=9), min_size=1, max_size=5)


def made(row):
    ids = np.array(row)
    return Sample(ids, ids * 3, np.arange(3 * len(ids)).reshape(3, -1))


@given(rows)
def test_padding_adds_nothing_that_is_learned(found):
    batch = padded([made(row) for row in found], pad_id=0)
    assert "attention_mask" not in batch
    assert batch["position_ids"].shape == (3, *batch["input_ids"].shape)
    for n, row in enumerate(found):
        length = len(row)
        assert batch["input_ids"][n].tolist() == row + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["labels"][n, :length].tolist() == [3 * token for token in row]
        assert (batch["labels"][n, length:] == IGNORED).all()
        assert (batch["position_ids"][:, n, :length].numpy() == made(row).positions).all()


def test_padded_windows_are_to_the_model_what_they_are_alone(base, talk):
    """Exactly: no window sees padding or another window."""
    indices = [0, 5, 9, 2]
    alone = [hidden(base, talk, [index])[0] for index in indices]
    for row, expected in zip(hidden(base, talk, indices), alone, strict=True):
        assert torch.equal(row[: len(expected)], expected)


def test_no_mask_is_made_for_a_batch(base, talk, monkeypatch):
    """65,536 tokens would take a mask of 4.3e9 entries."""
    from transformers import AttentionInterface

    masks = []
    sdpa = AttentionInterface()["sdpa"]

    def watch(module, query, key, value, attention_mask, **options):
        if module.is_causal:  # the language model's, not the vision tower's
            masks.append(attention_mask)
        return sdpa(module, query, key, value, attention_mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", watch)
    hidden(base, talk, [0, 1, 2])
    assert masks == [None] * base.model.config.get_text_config().num_hidden_layers
