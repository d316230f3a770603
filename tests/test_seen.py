"""Windows that overlap: the vision tower sees new pieces only, and answers stay what they were."""

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
    talk = family.conversation()
    talk.backbone.prepare(model)
    return model, talk, (families.FRAMES, *family.size)


def drive(shape: tuple[int, ...], hop: int, count: int) -> list[np.ndarray]:
    """Overlapping windows of a drive of noise, each `hop` frames after the last."""
    length = shape[0] + hop * count
    frames = np.random.default_rng(0).integers(0, 256, (length, *shape[1:], 3), np.uint8)
    return [frames[hop * i : hop * i + shape[0]] for i in range(count)]


def asked(model, talk, windows, seen=None):
    told = []
    for frames in windows:
        (text,) = generate_texts(model, talk, frames[None], 12)
        told.append((text, seen and seen.num_frames))
    return [text for text, _ in told], [num for _, num in told]


@pytest.mark.parametrize(("hop", "each"), [(2, [2, 2, 2]), (1, [None, 2, 2])])
def test_a_hop_encodes_only_new_pairs_and_answers_stay_equal(hop, each):
    model, talk, shape = qwen()
    windows = drive(shape, hop, 4)
    plain, _ = asked(model, talk, windows)
    seen = FeatureCache(model, talk.backbone)
    told, nums = asked(model, talk, windows, seen)
    whole = -(-shape[0] // 2) * 2
    # After an odd hop frames are paired anew: the pairs are those of the window before the last.
    assert nums == [whole, *(num or whole for num in each)]
    assert told == plain


def test_all_levels_of_features_are_bit_equal():
    model, talk, shape = qwen()
    windows = drive(shape, 2, 3)

    def features(frames):
        made = model.model.visual(
            talk.inputs(torch.from_numpy(frames[None].copy()))["pixel_values_videos"],
            grid_thw=talk.inputs(torch.from_numpy(frames[None].copy()))["video_grid_thw"],
        )
        return [made.last_hidden_state, made.pooler_output, *made.deepstack_features]

    with torch.inference_mode():
        plain = [features(frames) for frames in windows]
        FeatureCache(model, talk.backbone)
        kept = [features(frames) for frames in windows]
    assert len(plain[0]) > 2, "there are levels of DeepStack"
    assert all(map(torch.equal, sum(plain, []), sum(kept, [])))


def test_black_frames_are_seen_once_and_pieces_of_one_sum_are_told_apart():
    model, talk, shape = qwen()
    black = np.zeros((*shape, 3), np.uint8)
    turned = drive(shape, 2, 1)[0]
    turned[2:4] = turned[0:2, ::-1]  # the same values in other places
    plain, _ = asked(model, talk, [black, turned])
    seen = FeatureCache(model, talk.backbone)
    told, nums = asked(model, talk, [black, turned], seen)
    assert told == plain and nums[0] == 2


@pytest.mark.parametrize("name", families.FAMILIES)
def test_other_families_answer_the_same_and_see_less(name, tmp_path):
    model, talk, shape = of_family(name, tmp_path)
    windows = drive(shape, 2, 3)
    plain, _ = asked(model, talk, windows)
    seen = FeatureCache(model, talk.backbone)
    told, nums = asked(model, talk, windows, seen)
    assert told == plain and nums[1] < nums[0]
