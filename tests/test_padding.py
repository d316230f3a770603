"""Padding a batch does not change a window's hidden states or labels."""

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
def conversation(base):
    kind = backbone("qwen3_vl", base.model.config)
    p = training_set.params("unused", "unused")
    return samples.conversation_of(p, base.tokenizer, kind)


def hidden(base, conversation, indices):
    """(rows, L, hidden) of the decoder's last layer."""
    batch = samples.batch_of(indices, WINDOWS, conversation)
    del batch["labels"]
    batch |= conversation.inputs(
        torch.stack([torch.from_numpy(WINDOWS.frames(i)) for i in indices])
    )
    with torch.inference_mode():
        return base.model.model(**batch, use_cache=False).last_hidden_state


rows = st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=9), min_size=1, max_size=5)


def sample_of(row):
    ids = np.array(row)
    return Sample(ids, ids * 3, np.arange(3 * len(ids)).reshape(3, -1))


@given(rows)
def test_padding_has_no_labels(token_rows):
    batch = padded([sample_of(row) for row in token_rows], pad_id=0)
    assert "attention_mask" not in batch
    assert batch["position_ids"].shape == (3, *batch["input_ids"].shape)
    for n, row in enumerate(token_rows):
        length = len(row)
        assert batch["input_ids"][n].tolist() == row + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["labels"][n, :length].tolist() == [3 * token for token in row]
        assert (batch["labels"][n, length:] == IGNORED).all()
        assert (batch["position_ids"][:, n, :length].numpy() == sample_of(row).positions).all()


def test_padding_does_not_change_hidden_states(base, conversation):
    """Exactly equal: no window attends to padding or to another window."""
    indices = [0, 5, 9, 2]
    alone = [hidden(base, conversation, [index])[0] for index in indices]
    for row, expected in zip(hidden(base, conversation, indices), alone, strict=True):
        assert torch.equal(row[: len(expected)], expected)


def test_batch_has_no_attention_mask(base, conversation, monkeypatch):
    """For 65,536 tokens a mask would have 4.3e9 entries."""
    from transformers import AttentionInterface

    masks = []
    sdpa = AttentionInterface()["sdpa"]

    def watch(module, query, key, value, attention_mask, **options):
        if module.is_causal:  # the language model's, not the vision tower's
            masks.append(attention_mask)
        return sdpa(module, query, key, value, attention_mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", watch)
    hidden(base, conversation, [0, 1, 2])
    assert masks == [None] * base.model.config.get_text_config().num_hidden_layers
