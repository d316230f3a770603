"""The memory estimate against the bytes that torch's profiler counts."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForImageTextToText,
    InternVLConfig,
    LlavaOnevisionConfig,
    Qwen3VLConfig,
    set_seed,
)
from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from avomni_lib.training.backbones import Video, backbone, llava_onevision
from avomni_lib.training.backbones.qwen3_vl import Qwen3VL
from avomni_lib.training.backbones.shared import layers
from avomni_lib.training.backbones.shared.size import VisionWork
from avomni_lib.training.feed.loader import Loader, Order
from avomni_lib.training.forecast.memory import LOGIT_TOKENS, memory, size_of
from avomni_lib.training.model import load
from avomni_lib.training.prompt.conversation import grid_size
from avomni_lib.training.prompt.tokens import Tokens, tokens_per_sample

DEMO = PROJECT_ROOT / "params" / "demo.yaml"


def demo(*changes):
    return Params.from_files([DEMO], changes)


def named(base_model):
    return Params.from_values({"model": {"base_model": base_model}})


def on_cpu(p, tokens=None, **arguments):
    return memory(
        p,
        size_of(p),
        tokens or tokens_per_sample(p),
        device="cpu",
        dtype_bytes=4,
        **arguments,
    )


def on_gpu(tokens=None, **changes):
    p = Params.from_values({"extends": "params/mi300x.yaml"} | changes)
    return memory(p, size_of(p), tokens or tokens_per_sample(p))


class BuiltModel:
    """A model of middle size with random weights, and batches for it.

    Args:
        config: Its video tokens must have the id 2.
        videos: All frames are of one size.
    """

    ANSWER, BATCH, RANK = 40, 2, 16

    def __init__(self, params, config, videos, num_words, checkpointing, dtype=torch.float32):
        model = {"lora_rank": self.RANK, "load_in_4bit": False}
        training = {"batch_size": self.BATCH, "gradient_checkpointing": checkpointing}
        training |= {"optimizer": "adamw_torch"}
        values = {"extends": params, "model": model, "training": training}
        self.p = Params.from_values(values)
        self.dtype, self.videos = dtype, videos
        self.kind = backbone(self.p.model.backbone, config)
        self.size = self.kind.size(config.to_dict())
        set_seed(0)
        base = AutoModelForImageTextToText.from_config(config).to(dtype)
        self.kind.prepare(base)
        self.tuned = load.add_adapter(base, self.p, self.kind).train()
        _patch_chunked_ce_lm_head(self.tuned.get_base_model(), LOGIT_TOKENS)
        for weights in self.tuned.parameters():
            if weights.requires_grad:
                weights.data = weights.data.float()
        if checkpointing:
            self.tuned.gradient_checkpointing_enable()
            self.tuned.enable_input_require_grads()
        vision = self.kind.num_vision_tokens(videos)
        self.tokens = Tokens(vision, num_words, self.ANSWER, self.kind.vision_work(videos))
        shape = (self.BATCH, self.tokens.total)
        ids, labels = torch.full(shape, 7), torch.full(shape, -100)
        ids[:, 10 : 10 + vision] = 2
        labels[:, -self.ANSWER :] = 5
        axes = self.kind.positions(np.zeros(1, bool), videos).shape[:-1]
        positions = torch.arange(self.tokens.total).expand(*axes, *shape).contiguous()
        self.batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
        (video,) = videos
        size = video.num_frames, video.height, video.width
        self.frames = torch.zeros((self.BATCH, *size, 3), dtype=torch.uint8)

    def step(self):
        is_bfloat16 = self.dtype == torch.bfloat16
        # Copied, as to a device.
        seen = self.kind.inputs([self.frames.clone()], self.dtype, self.videos)
        inputs = self.batch | seen
        del seen
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
            loss = self.tuned(**inputs).loss
        del inputs
        loss.backward()


TEXT = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER = {"hidden_size": 512, "intermediate_size": 1024}
ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10]}
QWEN = Qwen3VLConfig(
    text_config=TEXT | {"head_dim": 64, "rope_parameters": ROPE | {"mrope_interleaved": True}},
    vision_config=TOWER
    | {
        "depth": 3,
        "num_heads": 8,
        "out_hidden_size": 256,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0, 1],
    },
    tie_word_embeddings=False,
    image_token_id=1,
    video_token_id=2,
    vision_start_token_id=3,
    vision_end_token_id=4,
)
IN_SQUARES = TOWER | {"num_hidden_layers": 2, "num_attention_heads": 8}
INTERNVL = InternVLConfig(
    text_config=TEXT | {"model_type": "qwen3", "head_dim": 64},
    vision_config=IN_SQUARES | {"image_size": [224, 224], "attention_bias": True},
    image_token_id=2,
    tie_word_embeddings=False,
)
SIGLIP = {"model_type": llava_onevision.TOWER, "image_size": 224, "patch_size": 14}
LLAVA = LlavaOnevisionConfig(
    text_config=TEXT | {"model_type": "qwen2"},
    vision_config=IN_SQUARES | SIGLIP | {"vision_use_head": False},
    video_token_index=2,
    image_token_index=1,
)


class FusedNorm(torch.autograd.Function):
    """Saves for its gradient what a GPU kernel saves: the input and one scale a row."""

    @staticmethod
    def forward(context, hidden, weight, epsilon):
        scale = torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + epsilon)
        context.save_for_backward(hidden, weight, scale)
        return (hidden * scale).to(hidden.dtype) * weight

    @staticmethod
    def backward(context, gradient):
        hidden, weight, scale = context.saved_tensors
        gradient = gradient * weight
        along = (gradient * hidden).mean(-1, keepdim=True, dtype=torch.float32) * scale.pow(3)
        return gradient * scale.to(gradient.dtype) - hidden * along.to(hidden.dtype), None, None


def fused_norm(norm, hidden):
    return FusedNorm.apply(hidden, norm.weight, norm.variance_epsilon)


def most_allocated(step, folder):
    """Peak bytes of tensors during a step, above those allocated before it."""
    step()  # allocates gradients, rotary embeddings and the like
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [event for event in events if event.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("size", "num_words"), [((4, 64, 64), 400), ((8, 128, 256), 60)], ids=["words", "frames"]
)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_estimated_peak_equals_the_profiled_peak(
    dtype, checkpointing, size, num_words, tmp_path, monkeypatch
):
    # PEFT asks for the GPU's autocast and would convert to float32 under the CPU's.
    is_enabled = torch.is_autocast_enabled
    if dtype == torch.bfloat16:
        monkeypatch.setitem(layers.FUSED, "Qwen3VLTextRMSNorm", fused_norm)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *of: is_enabled(*(of or ("cpu",))))
    videos = [Video(tuple(range(size[0])), *size[1:])]
    built = BuiltModel("params/mi300x.yaml", QWEN, videos, num_words, checkpointing, dtype)
    estimate = memory(built.p, built.size, built.tokens, dtype_bytes=dtype.itemsize)
    expected = max(estimate.moments.values())
    if dtype == torch.bfloat16 and not checkpointing:
        expected += 2 * built.size.num_adapter(
            built.RANK, Qwen3VL.lora_targets
        )  # autocast's copies of the adapter
    assert expected == pytest.approx(most_allocated(built.step, tmp_path), rel=0.06)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("params", "config"), [("params/internvl.yaml", INTERNVL), ("params/llava.yaml", LLAVA)]
)
def test_estimated_peak_of_tiled_vision_towers_equals_the_profiled_peak(
    params, config, checkpointing, tmp_path
):
    """With checkpointing the peak is in the vision tower, without it in the loss."""
    built = BuiltModel(params, config, [Video((0.0, 0.5, 1.0), 224, 448)], 60, checkpointing)
    needed = memory(built.p, built.size, built.tokens, dtype_bytes=4).moments
    largest = max(needed, key=needed.__getitem__)
    assert largest == ("the vision tower runs" if checkpointing else "the loss is computed")
    assert needed[largest] == pytest.approx(most_allocated(built.step, tmp_path), rel=0.15)


def test_weights_adapter_and_optimizer_have_the_estimated_size():
    import bitsandbytes as bnb

    p = demo()
    base = load.load_base(p)
    estimate = on_cpu(p)
    num_bytes = 0
    for weights in base.model.parameters():
        num_bytes += weights.nbytes
        if state := getattr(weights, "quant_state", None):
            num_bytes += state.absmax.nbytes + state.state2.absmax.nbytes
    assert estimate.weights == pytest.approx(num_bytes, rel=0.01)

    tuned = load.add_adapter(base.model, p, backbone(p.model.backbone, base.model.config))
    learning = [weights for weights in tuned.parameters() if weights.requires_grad]
    assert estimate.adapter == 2 * sum(weights.nbytes for weights in learning)
    optimizer = bnb.optim.AdamW8bit(learning)
    for weights in learning:
        weights.grad = torch.ones_like(weights)
    optimizer.step()
    moments = [
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and not name.startswith("qmap")  # shared by all
    ]
    assert estimate.optimizer == pytest.approx(sum(moments), rel=0.01)


@pytest.mark.parametrize("accumulation", [1, 8])
def test_estimated_loader_memory_equals_its_buffers(accumulation):
    p = demo(f"training.gradient_accumulation_steps={accumulation}")

    class Windows:
        frame_shape = (p.processing.sequence_length, *grid_size(p), 3)

        def __len__(self):
            return 64

        def read_into(self, index, out):
            pass

    order, depth = Order(64, p.training.batch_size, 8, 0), max(2, accumulation)
    with Loader(Windows(), order, lambda _: {}, depth=depth, held=accumulation) as batches:
        batches[0]
        sizes = [buffer.frames.nbytes for buffer in batches._ring]
    assert on_cpu(p).loader == sum(sizes)
    # PyTorch rounds page-locked memory up to a power of two.
    pinned = memory(p, size_of(p), Tokens(1, 1, 1, VisionWork(4, 4))).loader
    assert pinned == len(sizes) * 2 ** math.ceil(math.log2(sizes[0]))


def test_8b_takes_12_gb_with_and_50_gb_without_checkpointing():
    needed = on_gpu()
    assert needed.weights / 1e9 == pytest.approx(7.2, abs=0.1)
    assert 11e9 < needed.peak_bytes < 13e9
    assert 40e9 < on_gpu(training={"gradient_checkpointing": False}).peak_bytes < 60e9


def test_peak_is_that_of_the_largest_phase():
    for needed in (on_gpu(), on_cpu(demo())):
        always = needed.weights + needed.adapter + needed.optimizer
        assert needed.peak_bytes == always + max(needed.moments.values())
        assert needed.peak_bytes < always + sum(needed.moments.values())


def test_cpu_memory_row_is_a_lower_bound():
    [(name, value, note)] = on_cpu(demo()).rows("the first steps took 850.0 MB")
    assert (name, value.split()[0]) == ("memory", "over")
    assert note.startswith("of tensors; weights") and note.endswith("took 850.0 MB")
    assert [row[0] for row in on_gpu().rows()] == ["memory on the GPU", "memory on the host"]


SETTINGS = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 32),
        "rank": st.integers(1, 256),
        "vision": st.integers(1, 20_000),
        "text": st.integers(1, 2_000),
        "checkpointing": st.booleans(),
    }
)


@pytest.mark.parametrize("base", ["Qwen3-VL-8B", "tiny"])
@given(low=SETTINGS, high=SETTINGS)
def test_memory_grows_with_every_setting(base, low, high):
    # Checkpointing is the exception: it lowers memory.
    low, high = ({name: pick(low[name], high[name]) for name in low} for pick in (min, max))
    low["checkpointing"], high["checkpointing"] = high["checkpointing"], low["checkpointing"]
    for device, size in (("cpu", 4), ("cuda", 2)):
        less, more = (needed_by(settings, base, device, size) for settings in (low, high))
        assert less.peak_bytes <= more.peak_bytes
        assert all(less.moments[name] <= most for name, most in more.moments.items())
        assert all(math.isfinite(part) and part >= 0 for part in less.parts().values())


def needed_by(settings, base, device, size):
    p = Params.from_values(
        {
            "extends": "params/mi300x.yaml",
            # 8-bit moments need less from a matrix of 4,096 weights on.
            "training": {"optimizer": "adamw_torch", "batch_size": settings["batch"]}
            | {"gradient_checkpointing": settings["checkpointing"]},
            "model": {"lora_rank": settings["rank"]},
        }
    )
    vision = settings["vision"]
    tokens = Tokens(vision, settings["text"], 1, VisionWork(4 * vision, vision))
    return memory(p, size_of(named(base)), tokens, device=device, dtype_bytes=size)
