"""Compared with transformers' Qwen3-VL processor, which works without torchvision if nothing is
resized."""

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones import Video, backbone
from tests import training_set

KIND = backbone("qwen3_vl")
TEXT = "How fast does the car drive?"


class Processor(Qwen3VLProcessor):
    def check_argument_for_proper_class(self, *_):
        """Without torchvision the base class of the video processor is a dummy."""


@functools.cache
def processor():
    words = training_set.make_words()
    # Normalising needs torchvision; `processed` uses the same formula.
    video = Qwen3VLVideoProcessor(
        do_resize=False,
        do_sample_frames=False,
        do_rescale=False,
        do_normalize=False,
        do_convert_rgb=False,
        cap_pixels_per_frame=False,
    )
    return Processor(Qwen2VLImageProcessorPil(), words, video, chat_template=words.chat_template)


def processed(parts, sample_hz, tokenizer=None, **template):
    """Output of the real processor for TEXT and videos: (T, H, W, 3) frames and their indices."""
    real = copy.copy(processor())
    real.tokenizer = tokenizer or real.tokenizer
    content = [{"type": "video"} for _ in parts] + [{"type": "text", "text": TEXT}]
    chat = real.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=False,
        **template,
    )
    videos = [(frames.permute(0, 3, 1, 2).float() - 127.5) / 127.5 for frames, _ in parts]
    metadata = [VideoMetadata(len(x), fps=sample_hz, frames_indices=list(x)) for _, x in parts]
    return real(text=[chat], videos=videos, video_metadata=metadata, return_tensors="pt")


def random_frames(*shape):
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


def video(num_frames, height, width, sample_hz=2.0):
    return Video(tuple(number / sample_hz for number in range(num_frames)), height, width)


@pytest.mark.parametrize(
    ("shape", "sample_hz"),
    [((16, 64, 96), 10.0), ((16, 128, 64), 2.0), ((15, 32, 32), 8.0), ((1, 64, 64), 3.0)],
)
def test_pixels_and_tokens_equal_the_transformers_processor(shape, sample_hz):
    frames = random_frames(*shape)
    expected = processed([(frames, range(len(frames)))], sample_hz)

    ours = KIND.inputs([frames[None]])
    assert torch.equal(ours["pixel_values_videos"], expected["pixel_values_videos"])
    assert torch.equal(ours["video_grid_thw"], expected["video_grid_thw"])
    chat = KIND.chat(TEXT, [video(*shape, sample_hz)])
    words = training_set.make_words()
    ids = words.encode(chat, add_special_tokens=False)
    assert ids == expected["input_ids"][0].tolist()
    types = [2 if token == words.convert_tokens_to_ids("<|video_pad|>") else 0 for token in ids]
    assert types == expected["mm_token_type_ids"][0].tolist()


@given(st.integers(1, 40), st.floats(0.1, 60, allow_nan=False))
def test_timestamps_equal_the_transformers_processor(length, sample_hz):
    calculate = Qwen3VLProcessor._calculate_timestamps
    expected = calculate(None, list(range(length)), sample_hz, 2)
    times = video(length, 32, 32, sample_hz).times_s
    assert KIND.timestamps_s(times) == expected


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8))
def test_chat_has_one_placeholder_per_vision_token(length, rows, cols):
    seen = [video(length, 32 * rows, 32 * cols, 2.0)]
    chat = KIND.chat(TEXT, seen)
    assert chat.count("<|video_pad|>") == KIND.num_vision_tokens(seen)
    assert chat.count("seconds>") == -(-length // 2)


def test_batch_pixels_are_the_windows_concatenated():
    windows = random_frames(3, 5, 32, 64)
    batch = KIND.inputs([windows])
    alone = [KIND.inputs([window[None]])["pixel_values_videos"] for window in windows]
    assert torch.equal(batch["pixel_values_videos"], torch.cat(alone))
    assert batch["video_grid_thw"].tolist() == [[3, 2, 4]] * 3


def test_pixels_have_the_dtype_of_the_model():
    frames = random_frames(1, 2, 32, 32)
    exact, rounded = KIND.inputs([frames]), KIND.inputs([frames], torch.bfloat16)
    assert torch.equal(
        rounded["pixel_values_videos"], exact["pixel_values_videos"].to(torch.bfloat16)
    )


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((16, 512, 896), 3584), ((16, 768, 1344), 8064), ((16, 2176, 3840), 65280)],
)
def test_large_window_is_not_shrunk(size, tokens):
    # The released processor's "longest_edge" limits T·H·W and would shrink the last two.
    assert KIND.num_vision_tokens([video(*size)]) == tokens


@pytest.mark.parametrize("size", [(504, 896), (512, 900), (0, 32)])
def test_grid_that_does_not_divide_into_patches_is_refused(size):
    with pytest.raises(AvomniError, match="multiples of 32"):
        KIND.num_vision_tokens([video(16, *size)])


def test_only_uint8_batches_are_accepted():
    with pytest.raises(AvomniError, match="expected"):
        KIND.inputs([random_frames(2, 32, 32)[None].float()])
    with pytest.raises(AvomniError, match="expected"):
        KIND.inputs([random_frames(2, 32, 32)])


def test_patch_size_comes_from_the_models_config():
    config = Qwen3VLConfig(vision_config={"patch_size": 14, "spatial_merge_size": 2})
    assert backbone("qwen3_vl", config).side_multiple == 28
    with pytest.raises(AvomniError, match="'llama', not a 'qwen3_vl'"):
        backbone("qwen3_vl", LlamaConfig())
    with pytest.raises(AvomniError, match="qwen3_vl"):
        backbone("qwen4_vl")


@pytest.fixture(scope="module")
def original_model():
    """An unmodified transformers Qwen3-VL with random weights."""
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(training_set.config(training_set.make_words())).eval()


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=9, max_size=9),
)
def test_positions_equal_the_models(original_model, num_patches, rows, cols, words):
    """With any text before, between and after the temporal patches."""
    patch = rows * cols
    types = [0] * words[-1]
    for count in words[:num_patches]:
        types += [2] * patch + [0] * count
    types = np.array(types)
    expected, _ = original_model.model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.int64),
        torch.from_numpy(types)[None],
        video_grid_thw=torch.tensor([[num_patches, 2 * rows, 2 * cols]]),
    )
    ours = KIND.positions(types == 2, [video(2 * num_patches, 32 * rows, 32 * cols)])
    assert (ours == expected[:, 0].numpy()).all()


def test_positions_of_a_sample_equal_the_models(original_model):
    conversation = training_set.conversation()
    sample = conversation.sample("42")
    expected, _ = original_model.model.get_rope_index(
        torch.from_numpy(sample.input_ids)[None],
        2 * torch.from_numpy(sample.input_ids == conversation.vision_id)[None].long(),
        video_grid_thw=torch.tensor([KIND.grid_thw(*conversation.frame_shape[:3])]),
    )
    assert (sample.positions == expected[:, 0].numpy()).all()


@pytest.fixture
def model_copy(original_model):
    """A copy of the model that a test may change."""
    return copy.deepcopy(original_model)


def seen(model, frames):
    """Features of the vision tower for windows of frames."""
    inputs = KIND.inputs([frames])
    with torch.inference_mode():
        return model.model.visual(
            inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]
        ).pooler_output


@pytest.mark.parametrize("fuse", [True, False])
def test_prepare_keeps_vision_features_and_weight_names(model_copy, fuse):
    frames = random_frames(2, 5, 64, 96)
    pixels, before = KIND.inputs([frames])["pixel_values_videos"], seen(model_copy, frames)
    names, embedded = list(model_copy.state_dict()), model_copy.model.visual.patch_embed(pixels)
    KIND.prepare(model_copy, fuse)
    torch.testing.assert_close(model_copy.model.visual.patch_embed(pixels), embedded)
    torch.testing.assert_close(seen(model_copy, frames), before)
    assert list(model_copy.state_dict()) == names


def test_images_of_different_sizes_attend_separately(model_copy):
    grid = torch.tensor([[2, 4, 6], [1, 8, 8]])
    pixels = torch.randn(int(grid.prod(dim=1).sum()), 1536)
    with torch.inference_mode():
        before = model_copy.model.visual(pixels, grid_thw=grid).pooler_output
        KIND.prepare(model_copy)
        torch.testing.assert_close(
            model_copy.model.visual(pixels, grid_thw=grid).pooler_output, before
        )


@pytest.mark.parametrize("fuse", [True, False])
def test_vision_tower_attends_to_contiguous_copies(model_copy, monkeypatch, fuse):
    """ROCm's kernels gave wrong results on views of a fused projection."""
    layouts = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def watch(*tensors, **options):
        layouts.append(
            ([tensor.is_contiguous() for tensor in tensors[:3]], tuple(tensors[0].shape))
        )
        return sdpa(*tensors, **options)

    KIND.prepare(model_copy, fuse)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    seen(model_copy, random_frames(2, 4, 64, 96))
    assert all(contiguous == [True] * 3 for contiguous, _ in layouts)
    # Four images of 4 × 6 patches in each of two blocks: as a batch, or one by one.
    at_once, alone = [(4, 2, 24, 16)] * 2, [(1, 2, 24, 16)] * 8
    assert [shape for _, shape in layouts] == (at_once if fuse else alone)
