"""The model card follows from the record and the figures and is reproducible."""

import copy
import json
import re
import shlex
from types import SimpleNamespace

import pytest
import yaml

from avomni_lib import files
from avomni_lib.params import CONFIDENTIAL
from avomni_lib.training.export.card import LEARNED, MEASURED, card, commands
from avomni_lib.training.model import adapter
from tests import training_set

REVISION = "0123456789abcdef0123456789abcdef01234567"
FIGURES = {
    "optimizer_steps": 240,
    "first_loss": 2.5123,
    "last_loss": 0.4321,
    "trainable_parameters": 61_341_696,
    "tokens_per_sample": 3755,
    "train_seconds": 1234.5,
    "seconds_per_step": 5.14,
    "data_wait_share": 0.001,
    "peak_memory": {"host_gb": 12.25, "device_gb": 40.5},
    "gpu_busy_pct": 91.5,
    "gpu_watts": 640.0,
    "gpu_celsius": 71.0,
    "energy_kwh": 0.2195,
    "joules_per_sample": 205.8,
    "resumed_from_step": 50,
    "headline": "loss 2.51 -> 0.43",
}
SCORE = {
    "ladder": [
        {"name": "mean", "metric": "speed_mae_mps", "value": 6.7, "low": 5.6, "high": 7.7},
        {"name": "adapted", "metric": "speed_mae_mps", "value": 1.05, "low": None, "high": None},
    ],
    "split_sha256": "5" * 64,
    "valid_share": 0.995,
    "num_windows": 270,
    "num_clips": 30,
}


class Recorded(training_set.Stripes):
    """Windows of a cache whose header names the source."""

    cache = SimpleNamespace(
        digest="stripes", header={"source": {"repo_id": "owner/drives", "revision": REVISION}}
    )


def record_of(tmp_path, windows=None, kind="adapter", **changes):
    p = training_set.params(tmp_path, "owner/base-bnb-4bit", **changes)
    conversation = training_set.conversation()
    choices = {
        name: SimpleNamespace(value=value)
        for name, value in (("device", "cuda:1"), ("dtype", "bfloat16"), ("quantisation", "nf4"))
    }
    record = adapter.record_of(p, windows or Recorded(9), conversation, "digest", choices)
    return record | ({"kind": "merged", "dtype": "bfloat16"} if kind == "merged" else {})


@pytest.fixture(params=["adapter", "merged"])
def kind(request):
    return request.param


@pytest.fixture(params=["world", "hub", "folder"])
def source(request):
    return request.param


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_and_banner_follow_the_source(tmp_path, kind, source):
    text = card(record_of(tmp_path, kind=kind, dataset={"source": source}), FIGURES, kind, SCORE)
    assert text.startswith("---\n")
    values = front_matter(text)
    assert values["base_model"] == "owner/base-bnb-4bit"
    assert values["library_name"] == {"adapter": "peft", "merged": "transformers"}[kind]
    assert {"lora", "qwen3_vl"} <= set(values["tags"])
    # A merged model contains the base model's weights, which we cannot license.
    ours = source == "world" and kind == "adapter"
    assert values["license"] == ("mit" if ours else "other")
    body = text.split("---\n", 2)[2].strip().splitlines()
    if source == "world":
        assert CONFIDENTIAL not in text and body[0].startswith("# ")
    else:
        assert body[0] == f"**{CONFIDENTIAL}**"
        assert "does not state that a use complies with them" in text
    assert not re.search(r"\b(is|are) (allowed|permitted)\b", text)


def test_merged_tiny_base_has_the_mit_license(tmp_path):
    record = record_of(tmp_path, kind="merged", model={"base_model": "tiny"})
    assert front_matter(card(record, kind="merged"))["license"] == "mit"


def test_card_names_the_question_data_and_hyperparameters(tmp_path, kind):
    record = record_of(tmp_path, kind=kind)
    text = card(record, FIGURES, kind)
    for part in (
        record["question"],
        "summary_v1",
        "4-cam, one grid of 96×64 px a frame",
        "4 at 10 Hz",
        "owner/drives",
        REVISION,
        "3 of the split train",
        "9, one every 2 frames",
        "| learning_rate | 0.01 |",
        "| lora_rank | 64 |",
        "| loss, first steps | 2.5123 |",
        "| loss, last steps | 0.4321 |",
        "| optimizer steps | 240 |",
        "| trainable parameters | 61,341,696 |",
    ):
        assert part in text, part


def test_card_says_when_the_revision_is_not_recorded(tmp_path):
    record = record_of(tmp_path, training_set.Stripes(9))
    assert (record["source"], record["repo_id"], record["revision"]) == ("world", None, None)
    assert "| revision | not recorded |" in card(record)
    old = {name: value for name, value in record.items() if name not in ("prompt", "revision")}
    assert "| revision | not recorded |" in card(old)


def test_adapter_card_does_not_depend_on_interruptions(tmp_path):
    record = record_of(tmp_path)
    before, digest = copy.deepcopy(record), files.hash_json(record)
    other = FIGURES | {"train_seconds": 9.0, "seconds_per_step": 1.0, "data_wait_share": 0.5}
    other |= {"peak_memory": {"host_gb": 1.0}, "resumed_from_step": 0}
    assert card(record, FIGURES) == card(record, other) == card(record, other, score=SCORE)
    assert card(record, FIGURES | {"last_loss": 0.5}) != card(record, FIGURES)
    card(record | {"dtype": "float16"}, FIGURES, "merged", SCORE)
    assert record == before, "a card changes nothing about the record"
    assert digest == files.hash_json(record_of(tmp_path)), "and the record is a function too"


def test_card_shows_the_held_out_error_of_the_best_checkpoint(tmp_path, kind):
    history = [{"step": 50, "speed_mae_mps": 3.0}, {"step": 100, "speed_mae_mps": 1.25}]
    text = card(record_of(tmp_path, kind=kind), FIGURES | {"heldout": history}, kind)
    assert "| speed error on held-out windows, m/s | 1.250 after step 100 |" in text
    assert "held-out windows, m/s" not in card(record_of(tmp_path, kind=kind), FIGURES, kind)


def test_merged_models_card_has_times_memory_and_score(tmp_path):
    text = card(record_of(tmp_path, kind="merged"), FIGURES, "merged", SCORE)
    for words in (LEARNED | MEASURED).values():
        assert f"| {words} |" in text
    assert "| peak memory, GB | host 12.25, device 40.5 |" in text
    assert "| mean | 6.700 | 5.600 to 7.700 |" in text and "| adapted | 1.050 | none |" in text
    assert "99.5% of its answers can be read" in text and "5" * 64 in text
    bare = card(record_of(tmp_path, kind="merged"), None, "merged")
    assert "## Score" not in bare and "loss, first steps" not in bare


def test_card_shows_the_prompt_with_placeholders_counted(tmp_path, kind):
    conversation = training_set.conversation()
    record = record_of(tmp_path, kind=kind)
    assert record["prompt_tokens"] == len(conversation.prompt())
    # 2 temporal patches of 2 × 3 tokens.
    assert record["prompt"].count("<|video_pad|>×6") == 2
    assert record["prompt"].replace("<|video_pad|>×6", "<|video_pad|>" * 6) == conversation.text
    text = card(record, kind=kind)
    assert record["prompt"] in text and f"{record['prompt_tokens']:,} tokens" in text
    assert "before 5.10" in text.lower() and "vLLM follows the transformers version" in text


def test_only_repeated_placeholders_are_shortened():
    assert adapter.shortened("a<x>b<x><x><x>c<x>", "<x>") == "a<x>b<x>×3c<x>"


def test_code_blocks_are_valid_python_and_json(tmp_path, kind):
    text = card(record_of(tmp_path, kind=kind), FIGURES, kind, SCORE)
    blocks = re.findall(r"```(\w*)\n(.*?)\n```", text, re.DOTALL)
    languages = [language for language, _ in blocks]
    assert {"python", "bash", "json"} <= set(languages)
    assert text.count("```") == 2 * len(blocks)
    for language, content in blocks:
        if language == "python":
            compile(content, "card", "exec")
        if language == "json":
            request = json.loads(content)
            (message,) = request["messages"]
            assert [part["type"] for part in message["content"]] == ["video_url", "text"]
            assert request["media_io_kwargs"]["video"] == {"fps": 10.0, "num_frames": -1}
            assert request["temperature"] == 0
            assert not any(request["mm_processor_kwargs"].values())


def test_snippet_loads_the_base_as_in_training(tmp_path):
    record = record_of(tmp_path)
    text = card(record)
    assert 'base = "owner/base-bnb-4bit"' in text and "dtype=torch.bfloat16" in text
    assert 'device_map={"": "cuda"}' in text
    assert 'llm_int8_skip_modules=["model.visual", "lm_head"]' in text
    stored = record | {"choices": record["choices"] | {"quantisation": "stored"}}
    assert "BitsAndBytesConfig" not in card(stored)
    tiny = card(record | {"base_model": "tiny"})
    names = {}
    lines = tiny.split("```python\n")[1].splitlines()
    exec("\n".join(line for line in lines if line.startswith(("from importlib", "base ="))), names)
    assert files.read_json(files.resolve(names["base"]) / "config.json")["model_type"] == "qwen3_vl"


def test_serving_commands_name_the_folder_and_a_sufficient_lora_rank(tmp_path):
    for rank, max_rank in ((64, 64), (12, 16), (100, 128), (512, 512)):
        record = record_of(tmp_path, model={"lora_rank": rank, "max_seq_length": 4096})
        (serve,) = commands(record, folder="/run/my adapter")["vllm"]
        words = shlex.split(serve)
        assert words[:3] == ["vllm", "serve", "owner/base-bnb-4bit"]
        assert words[words.index("--lora-modules") + 1] == "avomni=/run/my adapter"
        assert words[words.index("--max-lora-rank") + 1] == str(max_rank)
        assert words[words.index("--max-model-len") + 1] == "4096"
    (convert,) = commands(record, folder="/x")["llama.cpp"]
    assert shlex.split(convert)[:4] == ["python", "convert_lora_to_gguf.py", "/x", "--base"]
    merged = record_of(tmp_path, kind="merged") | {"dtype": "float16"}
    lines = commands(merged, "merged", "/m")
    assert lines["vllm"][0].startswith("vllm serve /m --served-model-name avomni --dtype float16 ")
    text, vision = map(shlex.split, lines["llama.cpp"])
    assert text[:5] == ["python", "convert_hf_to_gguf.py", "/m", "--outtype", "f16"]
    assert "--mmproj" in vision and "--mmproj" not in text
