import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone, qwen3_vl_layers
from avomni_lib.training.feed.loader import Loader, Order
from avomni_lib.training.forecast.memory import LOGIT_TOKENS, memory
from avomni_lib.training.forecast.model_size import Anatomy, Language, Vision, anatomy_of
from avomni_lib.training.model import load
from avomni_lib.training.prompt.tokens import Tokens, grid_size, tokens_per_sample

DEMO = PROJECT_ROOT / "params" / "demo.yaml"
# Fresh: what was allocated before would be used again. It prints what the process held before the
# model was loaded and the most that it held, after three steps of a batch of noise.
STEPS_OF_NOISE = """
import json, sys
import numpy as np, peft, torch, bitsandbytes as bnb
from trl import SFTTrainer
from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head
from avomni_lib import hardware
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone, qwen3_vl_layers
from avomni_lib.training.model import load
from avomni_lib.training.prompt import samples
from tests import training_set

p = Params.from_files(sys.argv[1:2], sys.argv[2:])
program = hardware.resident_bytes()
base = load.load_base(p)
kind = backbone(p.model.backbone, base.model.config)
shape = (p.processing.sequence_length, *json.loads(sys.stdin.read()))
windows = training_set.Stripes(64, shape)
talk = samples.conversation_of(p, windows, base.tokenizer, kind)
tuned = load.add_adapter(base.model, p, kind).train()
_patch_chunked_ce_lm_head(tuned.get_base_model(), 256)
if p.training.gradient_checkpointing:
    tuned.gradient_checkpointing_enable()
    tuned.enable_input_require_grads()
learning = [weights for weights in tuned.parameters() if weights.requires_grad]
optimizer = bnb.optim.AdamW8bit(learning, lr=1e-3)
size, rng = p.training.batch_size, np.random.default_rng(0)
ring = [torch.zeros((size, *shape, 3), dtype=torch.uint8) for _ in range(4)]
for step in range(3):
    batch = samples.batch_of(range(step, step + size), windows, talk)
    for frames in ring:
        frames.numpy()[:] = rng.integers(0, 256, frames.shape, dtype=np.uint8)
    tuned(**batch, **kind.inputs(ring[step])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
peak = hardware.peak_memory()["host_gb"] * 1e9
print(json.dumps({"program": program, "peak": peak, "tokens": batch["input_ids"].shape[1]}))
"""


def demo(*changes):
    return Params.from_files([DEMO], changes)


def on_cpu(p, tokens=None, **arguments):
    return memory(
        p,
        anatomy_of(p.model.base_model),
        tokens or tokens_per_sample(p),
        device="cpu",
        dtype_bytes=4,
        **arguments,
    )


def on_gpu(tokens=None, **changes):
    p = Params.from_values({"extends": "params/mi300x.yaml"} | changes)
    return memory(p, anatomy_of(p.model.base_model), tokens or tokens_per_sample(p))


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("training.gradient_checkpointing=true", "training.batch_size=12"),
        ("processing.tile_width=96", "processing.tile_height=64", "training.batch_size=4"),
    ],
    ids=["demo", "checkpointing", "larger tiles"],
)
def test_a_process_that_trains_on_a_cpu_holds_what_was_told(changes):
    p = demo(*changes)
    ran = subprocess.run(
        [sys.executable, "-c", STEPS_OF_NOISE, str(DEMO), *changes],
        input=json.dumps(grid_size(p)),
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    seen = json.loads(ran.stdout.splitlines()[-1])
    told = tokens_per_sample(p)
    tokens = Tokens(told.vision, seen["tokens"] - told.vision, told.answer)
    needed = on_cpu(p, tokens, program_bytes=seen["program"]).peak_bytes
    assert needed == pytest.approx(seen["peak"], rel=0.15)
    # Most of it is the program: the rest is not far off by itself.
    rest = seen["peak"] - seen["program"]
    assert needed - seen["program"] == pytest.approx(rest, rel=0.35)


class Built:
    """A Qwen3-VL of middle size with random weights, and batches for it."""

    SIZES = Anatomy(
        Language(256, 6, 4, 2, 64, 768, 1024, tied=False),
        Vision(512, 3, 8, 1024, out=256, positions=256, deepstack=2),
    )
    ANSWER, BATCH, RANK = 40, 2, 16

    def __init__(self, dtype, checkpointing, size, num_words):
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, set_seed
        from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

        of, tower = self.SIZES.language, self.SIZES.vision
        config = Qwen3VLConfig(
            text_config={
                "vocab_size": of.vocabulary,
                "hidden_size": of.hidden,
                "intermediate_size": of.intermediate,
                "num_hidden_layers": of.layers,
                "num_attention_heads": of.heads,
                "num_key_value_heads": of.shared_heads,
                "head_dim": of.head_dim,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [12, 10, 10],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": tower.depth,
                "hidden_size": tower.hidden,
                "intermediate_size": tower.intermediate,
                "num_heads": tower.heads,
                "out_hidden_size": tower.out,
                "num_position_embeddings": tower.positions,
                "deepstack_visual_indexes": list(range(tower.deepstack)),
            },
            tie_word_embeddings=of.tied,
            image_token_id=1,
            video_token_id=2,
            vision_start_token_id=3,
            vision_end_token_id=4,
        )
        set_seed(0)
        self.p = Params.from_values(
            {
                "extends": "params/mi300x.yaml",
                "model": {"lora_rank": self.RANK, "load_in_4bit": False},
                "training": {
                    "batch_size": self.BATCH,
                    "gradient_checkpointing": checkpointing,
                    "optimizer": "adamw_torch",
                },
            }
        )
        self.dtype, self.kind = dtype, backbone("qwen3_vl")
        base = Qwen3VLForConditionalGeneration(config).to(dtype)
        self.kind.prepare(base)
        self.tuned = load.add_adapter(base, self.p, self.kind).train()
        _patch_chunked_ce_lm_head(self.tuned.get_base_model(), LOGIT_TOKENS)
        for weights in self.tuned.parameters():
            if weights.requires_grad:
                weights.data = weights.data.float()
        if checkpointing:
            self.tuned.gradient_checkpointing_enable()
            self.tuned.enable_input_require_grads()
        vision = self.kind.num_vision_tokens(*size)
        self.tokens = Tokens(vision, num_words, self.ANSWER)
        shape = (self.BATCH, self.tokens.total)
        ids, labels = torch.full(shape, 7), torch.full(shape, -100)
        ids[:, 10 : 10 + vision] = 2
        labels[:, -self.ANSWER :] = 5
        positions = torch.arange(self.tokens.total).expand(3, *shape).contiguous()
        self.batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
        self.frames = torch.zeros((self.BATCH, *size, 3), dtype=torch.uint8)

    def step(self):
        low = self.dtype == torch.bfloat16
        # As they are copied to a device.
        inputs = self.batch | self.kind.inputs(self.frames.clone(), self.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = self.tuned(**inputs).loss
        del inputs
        loss.backward()


class FusedNorm(torch.autograd.Function):
    """Keeps for its gradient what a GPU's kernel keeps: its input as it came and a scale a row."""

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


def as_a_gpu_normalises(norm, hidden):
    return FusedNorm.apply(hidden, norm.weight, norm.variance_epsilon)


def most_allocated(step, folder):
    """Bytes of tensors that lived at once in a step, above those from before it."""
    step()  # gradients, rotations and the like are made once
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
def test_as_many_bytes_of_tensors_live_at_once_as_was_told(
    dtype, checkpointing, size, num_words, tmp_path, monkeypatch
):
    # PEFT asks about a GPU's autocast, and would convert to float32 beside a CPU's.
    asked = torch.is_autocast_enabled
    if dtype == torch.bfloat16:
        monkeypatch.setattr(qwen3_vl_layers, "_normalise", as_a_gpu_normalises)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *of: asked(*(of or ("cpu",))))
    built = Built(dtype, checkpointing, size, num_words)
    told = memory(built.p, built.SIZES, built.tokens, dtype_bytes=dtype.itemsize)
    most = max(told.moments.values())
    if dtype == torch.bfloat16 and not checkpointing:
        most += 2 * built.SIZES.num_adapter(built.RANK)  # autocast's copies of the adapter
    assert most == pytest.approx(most_allocated(built.step, tmp_path), rel=0.06)


def test_weights_adapter_and_optimizer_hold_what_was_told():
    import bitsandbytes as bnb

    p = demo()
    base = load.load_base(p)
    told = on_cpu(p)
    held = 0
    for weights in base.model.parameters():
        held += weights.nbytes
        if state := getattr(weights, "quant_state", None):
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    assert told.weights == pytest.approx(held, rel=0.01)

    tuned = load.add_adapter(base.model, p, backbone(p.model.backbone, base.model.config))
    learning = [weights for weights in tuned.parameters() if weights.requires_grad]
    assert told.adapter == 2 * sum(weights.nbytes for weights in learning)
    optimizer = bnb.optim.AdamW8bit(learning)
    for weights in learning:
        weights.grad = torch.ones_like(weights)
    optimizer.step()
    moments = [
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and not name.startswith("qmap")  # one code for all of them
    ]
    assert told.optimizer == pytest.approx(sum(moments), rel=0.01)


@pytest.mark.parametrize("accumulation", [1, 8])
def test_the_loaders_ring_is_the_loaders(accumulation):
    p = demo(f"training.gradient_accumulation_steps={accumulation}")

    class Windows:
        frame_shape = (p.processing.sequence_length, *grid_size(p), 3)

        def __len__(self):
            return 64

    for pin, needed in ((False, on_cpu(p)), (True, memory(p, anatomy_of("tiny"), Tokens(1, 1, 1)))):
        order = Order(64, p.training.batch_size, 8, 0)
        depth = max(2, accumulation)
        ring = Loader(Windows(), order, dict, depth=depth, held=accumulation, pin=pin)
        assert needed.loader == ring.memory_bytes


def test_the_8b_fits_a_small_part_of_its_card_and_fills_what_was_expected_without_checkpoints():
    needed = on_gpu()
    assert needed.weights / 1e9 == pytest.approx(7.2, abs=0.1)
    assert 11e9 < needed.peak_bytes < 13e9
    assert 40e9 < on_gpu(training={"gradient_checkpointing": False}).peak_bytes < 60e9


def test_on_a_gpu_the_largest_moment_counts_and_on_a_cpu_all_of_them():
    gpu, cpu = on_gpu(), on_cpu(demo())
    always = gpu.weights + gpu.adapter + gpu.optimizer
    assert gpu.peak_bytes == always + max(gpu.moments.values())
    assert gpu.peak_bytes < always + sum(gpu.moments.values())
    assert gpu.program == 0 and "program" not in gpu.parts()
    assert cpu.peak_bytes > cpu.program + max(cpu.moments.values())


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
def test_more_never_needs_less(base, low, high):
    # More of each, but checkpoints: these are there to need less.
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
    tokens = Tokens(settings["vision"], settings["text"], 1)
    return memory(p, anatomy_of(base), tokens, device=device, dtype_bytes=size)
