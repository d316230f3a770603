"""The memory formula beside what torch's profiler counts, and the sizes that it is fed with."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from avomni_lib.training.backbones import Video, backbone
from avomni_lib.training.backbones.qwen3_vl import Qwen3VL
from avomni_lib.training.backbones.shared import layers
from avomni_lib.training.backbones.shared.size import VisionWork
from avomni_lib.training.feed.loader import Loader, Order
from avomni_lib.training.forecast.memory import LOGIT_TOKENS, memory, size_of
from avomni_lib.training.model import load, place
from avomni_lib.training.prompt.conversation import grid_size
from avomni_lib.training.prompt.tokens import Tokens, tokens_per_sample
from tests.test_model import qwen3_vl_8b

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


class Built:
    """A Qwen3-VL of middle size with random weights, and batches for it."""

    LAYERS, DEEPSTACK = 6, 2
    ANSWER, BATCH, RANK = 40, 2, 16

    def __init__(self, dtype, checkpointing, size, num_words):
        from transformers import Qwen3VLConfig, set_seed
        from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

        config = Qwen3VLConfig(
            text_config={
                "vocab_size": 1024,
                "hidden_size": 256,
                "intermediate_size": 768,
                "num_hidden_layers": self.LAYERS,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [12, 10, 10],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 3,
                "hidden_size": 512,
                "intermediate_size": 1024,
                "num_heads": 8,
                "out_hidden_size": 256,
                "num_position_embeddings": 256,
                "deepstack_visual_indexes": list(range(self.DEEPSTACK)),
            },
            tie_word_embeddings=False,
            image_token_id=1,
            video_token_id=2,
            vision_start_token_id=3,
            vision_end_token_id=4,
        )
        self.sizes = Qwen3VL.size(config.to_dict())
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
        seen = [Video(tuple(range(size[0])), *size[1:])]
        vision = self.kind.num_vision_tokens(seen)
        self.tokens = Tokens(vision, num_words, self.ANSWER, self.kind.vision_work(seen))
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
        inputs = self.batch | self.kind.inputs([self.frames.clone()], self.dtype)
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
def test_as_many_bytes_of_tensors_live_at_once_as_estimated(
    dtype, checkpointing, size, num_words, tmp_path, monkeypatch
):
    # PEFT asks about a GPU's autocast, and would convert to float32 beside a CPU's.
    asked = torch.is_autocast_enabled
    if dtype == torch.bfloat16:
        monkeypatch.setattr(layers, "_normalise", as_a_gpu_normalises)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *of: asked(*(of or ("cpu",))))
    built = Built(dtype, checkpointing, size, num_words)
    estimate = memory(built.p, built.sizes, built.tokens, dtype_bytes=dtype.itemsize)
    most = max(estimate.moments.values())
    if dtype == torch.bfloat16 and not checkpointing:
        most += 2 * built.sizes.num_adapter(
            built.RANK, Qwen3VL.lora_targets
        )  # autocast's copies of the adapter
    assert most == pytest.approx(most_allocated(built.step, tmp_path), rel=0.06)


def test_weights_adapter_and_optimizer_hold_what_was_estimated():
    import bitsandbytes as bnb

    p = demo()
    base = load.load_base(p)
    estimate = on_cpu(p)
    held = 0
    for weights in base.model.parameters():
        held += weights.nbytes
        if state := getattr(weights, "quant_state", None):
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    assert estimate.weights == pytest.approx(held, rel=0.01)

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
        if torch.is_tensor(value) and not name.startswith("qmap")  # one code for all of them
    ]
    assert estimate.optimizer == pytest.approx(sum(moments), rel=0.01)


@pytest.mark.parametrize("accumulation", [1, 8])
def test_the_loaders_ring_is_the_loaders(accumulation):
    p = demo(f"training.gradient_accumulation_steps={accumulation}")

    class Windows:
        frame_shape = (p.processing.sequence_length, *grid_size(p), 3)

        def __len__(self):
            return 64

    for pin, needed in (
        (False, on_cpu(p)),
        (True, memory(p, size_of(named("tiny")), Tokens(1, 1, 1, VisionWork(4, 4)))),
    ):
        order = Order(64, p.training.batch_size, 8, 0)
        depth = max(2, accumulation)
        ring = Loader(Windows(), order, dict, depth=depth, held=accumulation, pin=pin)
        assert needed.loader == ring.memory_bytes


def test_the_8b_fits_a_small_part_of_its_card_and_fills_what_was_expected_without_checkpoints():
    needed = on_gpu()
    assert needed.weights / 1e9 == pytest.approx(7.2, abs=0.1)
    assert 11e9 < needed.peak_bytes < 13e9
    assert 40e9 < on_gpu(training={"gradient_checkpointing": False}).peak_bytes < 60e9


def test_the_largest_moment_counts():
    for needed in (on_gpu(), on_cpu(demo())):
        always = needed.weights + needed.adapter + needed.optimizer
        assert needed.peak_bytes == always + max(needed.moments.values())
        assert needed.peak_bytes < always + sum(needed.moments.values())


def test_a_plan_says_of_a_cpu_that_tensors_are_not_all():
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
    vision = settings["vision"]
    tokens = Tokens(vision, settings["text"], 1, VisionWork(4 * vision, vision))
    return memory(p, size_of(named(base)), tokens, device=device, dtype_bytes=size)


def tiny_on_meta():
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(place.TINY_FOLDER))


def numbers(module):
    return sum(weights.numel() for weights in module.parameters())


@pytest.mark.parametrize("make", [qwen3_vl_8b, tiny_on_meta])
def test_every_part_has_as_many_weights_as_the_modules(make):
    built = make()
    size = Qwen3VL.size(built.config.to_dict())
    language, visual = built.model.language_model, built.model.visual
    linears = [m for m in language.modules() if isinstance(m, torch.nn.Linear)]
    norms = [m for m in language.modules() if type(m).__name__ == "Qwen3VLTextRMSNorm"]
    mergers = numbers(visual.merger) + numbers(visual.deepstack_merger_list)
    assert size.language.num_linears == sum(map(numbers, linears))
    assert size.language.num_others == sum(map(numbers, norms))
    assert size.language.num_embeddings == numbers(language.embed_tokens)
    assert size.vision.num_mergers == mergers
    assert size.vision.num_tower == numbers(visual) - mergers
    tied = size.language.tied
    assert size.language.num_head == (0 if tied else numbers(built.lm_head))
    assert size.num_weights == numbers(built), "a tied head is counted once"


def test_the_released_8b_is_known_by_its_name():
    known = size_of(named("unsloth/Qwen3-VL-8B-Instruct-bnb-4bit"))
    built = Qwen3VL.size(qwen3_vl_8b().config.to_dict())
    assert (known.language, known.vision) == (built.language, built.vision)
    assert known.stored_4bit and not built.stored_4bit
    # LoRA adds rank × (in + out) to q, k, v and o of 36 layers: as tests/test_model.py builds it.
    assert known.num_adapter(64, Qwen3VL.lora_targets) == 61_341_696


@pytest.mark.parametrize(
    ("name", "billions"),
    # What the hub says of the checkpoints: bytes of their bfloat16 weights, halved.
    [("2B", 2.13), ("4B", 4.44), ("8B", 8.77), ("32B", 33.36)],
)
def test_the_released_sizes_have_the_published_numbers_of_weights(name, billions):
    size = size_of(named(f"Qwen/Qwen3-VL-{name}-Instruct"))
    assert size.num_weights / 1e9 == pytest.approx(billions, abs=0.01)
    assert size_of(named(f"qwen/qwen3-vl-{name.lower()}-thinking")) == size


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen3-VL-235B-A22B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-8B", "x"],
)
def test_what_is_not_in_the_table_is_not_guessed(name):
    assert size_of(named(name)) is None


def test_a_base_model_on_the_disk_is_read_from_its_config(tmp_path):
    tiny = size_of(named("tiny"))
    assert (tiny.language.hidden, tiny.language.layers, tiny.vision.hidden) == (128, 4, 96)

    config = files.read_json(place.TINY_FOLDER / "config.json")
    quantised = config | {"quantization_config": {"load_in_4bit": True, "quant_method": "bnb"}}
    files.write_json(tmp_path / "config.json", quantised)
    assert size_of(named(str(tmp_path))).stored_4bit

    files.write_json(tmp_path / "config.json", config | {"model_type": "llama"})
    with pytest.raises(AvomniError, match="'llama', not a 'qwen3_vl'"):
        size_of(named(str(tmp_path)))


def test_a_config_that_lacks_a_number_says_which(tmp_path):
    config = files.read_json(place.TINY_FOLDER / "config.json")
    del config["vision_config"]["num_position_embeddings"]
    files.write_json(tmp_path / "config.json", config)
    with pytest.raises(AvomniError, match="does not say 'num_position_embeddings'"):
        size_of(named(str(tmp_path)))
