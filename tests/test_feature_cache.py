"""The feature cache: overlapping windows encode only new frames, and answers do not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avomni_lib.training.model.feature_cache import FeatureCache
from avomni_lib.training.model.generate import generate_texts
from tests import families, training_set

QWEN = training_set.FRAMES, training_set.HEIGHT, training_set.WIDTH


def qwen():
    return training_set.make_model().eval(), training_set.conversation(), QWEN


def of_family(name: str, folder):
    from transformers import AutoModelForImageTextToText

    family = families.FAMILIES[name]
    model = AutoModelForImageTextToText.from_pretrained(family.make_base(folder)).eval()
    conversation = family.conversation()
    conversation.backbone.prepare(model)
    return model, conversation, (families.FRAMES, *family.size)


def drive(shape: tuple[int, ...], hop: int, count: int) -> list[np.ndarray]:
    """Overlapping windows of random frames, each `hop` frames after the last."""
    length = shape[0] + hop * count
    frames = np.random.default_rng(0).integers(0, 256, (length, *shape[1:], 3), np.uint8)
    return [frames[hop * i : hop * i + shape[0]] for i in range(count)]


def answers_of(model, conversation, windows, seen=None):
    rows = []
    for frames in windows:
        (text,) = generate_texts(model, conversation, frames[None], 12)
        rows.append((text, seen and seen.num_frames))
    return [text for text, _ in rows], [num for _, num in rows]


@pytest.mark.parametrize(("hop", "encoded"), [(2, [2, 2, 2]), (1, [None, 2, 2])])
def test_overlapping_windows_encode_only_new_frames_with_equal_answers(hop, encoded):
    model, conversation, shape = qwen()
    windows = drive(shape, hop, 4)
    plain, _ = answers_of(model, conversation, windows)
    seen = FeatureCache(model, conversation.backbone)
    cached, nums = answers_of(model, conversation, windows, seen)
    num_padded = -(-shape[0] // 2) * 2
    # After an odd hop the pairing of frames shifts; it equals that of the window before the last.
    assert nums == [num_padded, *(num or num_padded for num in encoded)]
    assert cached == plain


def test_cached_features_of_all_levels_are_bit_equal():
    model, conversation, shape = qwen()
    windows = drive(shape, 2, 3)

    def features(frames):
        output = model.model.visual(
            conversation.inputs(torch.from_numpy(frames[None].copy()))["pixel_values_videos"],
            grid_thw=conversation.inputs(torch.from_numpy(frames[None].copy()))["video_grid_thw"],
        )
        return [output.last_hidden_state, output.pooler_output, *output.deepstack_features]

    with torch.inference_mode():
        plain = [features(frames) for frames in windows]
        FeatureCache(model, conversation.backbone)
        cached = [features(frames) for frames in windows]
    assert len(plain[0]) > 2, "there are levels of DeepStack"
    assert all(map(torch.equal, sum(plain, []), sum(cached, [])))


def test_identical_frames_are_encoded_once_and_equal_sums_are_distinguished():
    model, conversation, shape = qwen()
    black = np.zeros((*shape, 3), np.uint8)
    turned = drive(shape, 2, 1)[0]
    turned[2:4] = turned[0:2, ::-1]  # the same values in other positions
    plain, _ = answers_of(model, conversation, [black, turned])
    seen = FeatureCache(model, conversation.backbone)
    cached, nums = answers_of(model, conversation, [black, turned], seen)
    assert cached == plain and nums[0] == 2


@pytest.mark.parametrize("name", families.FAMILIES)
def test_other_families_give_the_same_answers_with_fewer_encoded_frames(name, tmp_path):
    model, conversation, shape = of_family(name, tmp_path)
    windows = drive(shape, 2, 3)
    plain, _ = answers_of(model, conversation, windows)
    seen = FeatureCache(model, conversation.backbone)
    cached, nums = answers_of(model, conversation, windows, seen)
    assert cached == plain and nums[1] < nums[0]
