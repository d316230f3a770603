"""The merged model has the logits of base model and adapter and is a plain checkpoint."""

import re
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file

from avomni_lib import files, hardware
from avomni_lib.__main__ import main
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Memory
from avomni_lib.notebook.run import runs
from avomni_lib.params import CONFIDENTIAL
from avomni_lib.training.backbones import backbone
from avomni_lib.training.export import merge
from avomni_lib.training.fit import checkpoints
from avomni_lib.training.model import adapter, load
from tests import killed_training, training_set
from tests.training_set import apart, make_adapter

WINDOWS = (0, 3, 7, 12)
# RMS difference of the logits over four windows, in units of their spread, after one rounding to
# 16 bit. Measured over three bases: 0.0041 to 0.0063 in bfloat16, 0.0005 to 0.0008 in float16;
# merged into the unquantised weights 0.066 to 0.078; without the adapter above 1.
TOLERANCE = {"bfloat16": 0.01, "float16": 0.0015}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base_folder):
    """Parameters of a run in 4 bit with an adapter."""
    p = training_set.params(tmp_path_factory.mktemp("run"), base_folder)
    make_adapter(p)
    return p


@pytest.fixture
def p(trained, tmp_path, base_folder):
    """A copy of the trained run in its own folder."""
    shutil.copytree(trained.run_dir, tmp_path / "test")
    return training_set.params(tmp_path, base_folder)


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    return {dtype: merge.merge(trained, folder / dtype, dtype=dtype) for dtype in TOLERANCE}


def plain(folder):
    """The model loaded by transformers alone, in the dtype of the training."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def frames_of(indices):
    windows = training_set.Stripes(24)
    return np.stack([windows.frames(index) for index in indices])


def logits(tuned):
    return training_set.logits(
        tuned, training_set.conversation(), training_set.Stripes(24), WINDOWS
    )


def files_in_run(p):
    return sorted(path.name for path in p.run_dir.iterdir())


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def expected(trained):
    base = load.load_base(trained).model
    return logits(load.load_adapter(base, adapter.adapter_dir(trained), trained))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_merged_model_has_the_logits_of_base_and_adapter(merged, expected, dtype):
    assert apart(logits(plain(merged[dtype])), expected) < TOLERANCE[dtype]


def test_adapter_on_unquantised_weights_is_refused_and_differs(trained, expected):
    original = trained.model_copy(
        update={"model": trained.model.model_copy(update={"load_in_4bit": False})}
    )
    base = load.load_base(original).model
    with pytest.raises(AvomniError, match="quantisation: trained with 'nf4', now 'none'"):
        load.load_adapter(base, adapter.adapter_dir(trained), original)
    tuned = PeftModel.from_pretrained(base, str(adapter.adapter_dir(trained))).eval()
    assert apart(logits(tuned), expected) > 3 * TOLERANCE["bfloat16"]
    assert apart(logits(load.load_base(trained).model), expected) > 1


def test_merged_weights_differ_only_by_rounding(trained, merged):
    """The merged weights before rounding equal base plus adapter exactly."""
    from avomni_lib.training.export.merge import _fold

    base = load.load_base(trained).model
    folded = _fold(base, adapter.adapter_dir(trained), trained, "float32")
    stored = tensors_of(merged["bfloat16"])
    state = folded.state_dict()
    assert set(state) - set(stored) == {"lm_head.weight"}, "the tied one is not stored twice"
    assert all(torch.equal(state[name].bfloat16(), stored[name]) for name in stored)


def test_merged_models_readme_snippet_loads_it(merged, monkeypatch):
    (snippet,) = re.findall(
        r"```python\n(.*?)```", (merged["float16"] / "README.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(merged["float16"])
    names = {}
    exec(snippet, names)
    assert {weight.dtype for weight in names["model"].parameters()} == {torch.float16}
    assert names["tokenizer"].chat_template == training_set.make_words().chat_template


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_merged_folder_is_a_plain_16_bit_checkpoint(merged, trained, dtype):
    folder = merged[dtype]
    config = files.read_json(folder / "config.json")
    assert "quantization_config" not in config
    assert {config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]} == {
        dtype
    }
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is True
    loaded = plain(folder)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    stored = tensors_of(folder)
    assert {str(weight.dtype) for weight in stored.values()} == {f"torch.{dtype}"}
    assert not [name for name in stored if "lora" in name or "absmax" in name]
    assert merge.count_numbers(trained) == sum(weight.numel() for weight in stored.values())
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "record.json", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("preprocessor_config.json", "video_preprocessor_config.json"),
    }
    record = files.read_json(folder / "record.json")
    assert record["kind"] == "merged" and record["dtype"] == dtype
    weights = adapter.adapter_dir(trained) / "adapter_model.safetensors"
    assert record["adapter_sha256"] == files.sha256_file(weights)


def test_servers_do_not_resize_a_window(merged):
    """The video processor has the config's values and keeps the size of a window."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    values = files.read_json(merged["bfloat16"] / "video_preprocessor_config.json")
    num_frames, height, width = training_set.FRAMES, training_set.HEIGHT, training_set.WIDTH
    size = smart_resize(
        num_frames=num_frames,
        height=height,
        width=width,
        temporal_factor=values["temporal_patch_size"],
        factor=values["patch_size"] * values["merge_size"],
        min_pixels=values["size"]["shortest_edge"],
        max_pixels=values["size"]["longest_edge"],
    )
    assert size == (height, width)
    kind = backbone("qwen3_vl")
    assert (values["patch_size"], values["merge_size"]) == (kind.patch_size, kind.merge_size)


def test_stored_4_bit_and_unquantised_bases_can_be_merged(base_folder, tmp_path):
    base = load.load_base(training_set.params(tmp_path, base_folder))
    base.model.save_pretrained(tmp_path / "bnb-4bit")
    base.tokenizer.save_pretrained(tmp_path / "bnb-4bit")
    for name, section in (
        ("stored", {"base_model": str(tmp_path / "bnb-4bit")}),
        ("plain", {"base_model": str(base_folder), "load_in_4bit": False}),
    ):
        p = training_set.params(tmp_path / name, base_folder, model=section)
        make_adapter(p)
        base = load.load_base(p).model
        expected = logits(load.load_adapter(base, adapter.adapter_dir(p), p))
        folder = merge.merge(p)
        assert apart(logits(plain(folder)), expected) < TOLERANCE["bfloat16"]
        assert "quantization_config" not in files.read_json(folder / "config.json")


def test_progress_bar_counts_each_step(p, kept_bars):
    progress, bars = kept_bars
    merge.merge(p, progress=progress)
    assert [(bar.total, bar.count) for bar in bars] == [(3, 3)]


def test_second_export_replaces_only_the_first(p):
    first = merge.merge(p, dtype="float16")
    assert merge.merge(p) == first == p.run_dir / "merged"
    assert files.read_json(first / "config.json")["dtype"] == "bfloat16"
    assert files_in_run(p) == [".merged.lock", "adapter", "merged"]
    with pytest.raises(AvomniError, match="no merged model") as caught:
        merge.merge(p, adapter.adapter_dir(p))
    assert "--out" in str(caught.value)
    note = p.run_dir / "notes" / "mine.txt"
    files.write_text(note, "mine")
    with pytest.raises(AvomniError, match="no merged model"):
        merge.merge(p, note.parent)
    assert note.read_text() == "mine"


def test_merge_refuses_impossible_requests_before_loading(p, monkeypatch):
    with pytest.raises(AvomniError, match="unknown dtype 'float8'"):
        merge.merge(p, dtype="float8")
    other = p.model_copy(update={"run": p.run.model_copy(update={"name": "other"})})
    with pytest.raises(AvomniError, match="no trained adapter") as caught:
        merge.merge(other)
    assert "run 05_train first" in str(caught.value)

    def never(_):
        raise AssertionError("the base model is loaded in vain")

    monkeypatch.setattr(load, "load_base", never)
    with monkeypatch.context() as patch:
        patch.setattr(files, "free_bytes", lambda _: 1 << 20)
        with pytest.raises(AvomniError, match="no room on the disk for a merged model in bfloat16"):
            merge.merge(p)
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "host_memory", lambda: Memory(1 << 20, 1 << 16))
        patch.setattr(hardware, "device_memory", lambda _: None)
        with pytest.raises(AvomniError, match="merging takes .* of memory"):
            merge.merge(p)
    assert not list(p.run_dir.glob("*merged*"))


def test_weights_that_overflow_float16_are_refused(p):
    path = adapter.adapter_dir(p) / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    weights[name] = weights[name] * 1e8
    save_file(weights, path)
    checkpoints.write_checksums(path.parent)
    with pytest.raises(AvomniError, match="not finite in float16"):
        merge.merge(p, dtype="float16")
    assert not list(p.run_dir.glob("*merged"))
    assert merge.merge(p).is_dir()


def merge_and_die(outputs: Path, base: Path, death: tuple[str, str] | None, limit: int | None):
    """Merge in this process; it is killed at `death` (audit event, part of a path)."""
    if limit is not None:  # as on a disk that is full after `limit` bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if death is not None:
        killed_training.die_at_event(*death, 1)
    try:
        merge.merge(training_set.params(outputs, base))
    except AvomniError as error:
        sys.exit(3 if "cannot write" in str(error) else 4)


def exit_code(p, base, death=None, limit=None):
    return killed_training.exit_code(merge_and_die, p.run_dir.parent, base, death, limit)


DEATHS = [
    ("open", ".merged.unfinished/config.json"),
    ("open", ".merged.unfinished/tokenizer.json"),  # the weights are written
    ("open", ".record.json"),
    ("os.rename", ".merged.unfinished"),  # complete but not renamed
]


def test_killed_merge_leaves_no_partial_model_and_can_be_repeated(p, merged, base_folder):
    for death in DEATHS:
        assert exit_code(p, base_folder, death) == -signal.SIGKILL, death
        assert not (p.run_dir / "merged").exists()
    folder = merge.merge(p)
    for path in merged["bfloat16"].iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    # A kill during the replacement leaves temporary folders; the next call removes them.
    death = ("os.rename", ".merged.unfinished")
    assert exit_code(p, base_folder, death) == -signal.SIGKILL
    merge.merge(p)
    assert files_in_run(p) == [".merged.lock", "adapter", "merged"]


def test_full_disk_leaves_no_partial_model(p, base_folder):
    # The weights are 0.5 MB.
    assert exit_code(p, base_folder, limit=100_000) == 3
    assert files_in_run(p) == [".merged.lock", "adapter"]


@pytest.fixture
def params_file(p, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(p.values()))
    return str(path)


def test_export_command_prints_the_folder_and_serving_commands(p, params_file, capsys, tmp_path):
    assert main(["export", params_file]) == 0
    output = capsys.readouterr().out
    folder = p.run_dir / "merged"
    assert str(folder) in output and f"vllm serve {folder}" in output
    assert f"convert_hf_to_gguf.py {folder}" in output and "--mmproj" in output
    assert "not run" in output and CONFIDENTIAL not in output
    out = tmp_path / "elsewhere" / "model"
    assert main(["export", params_file, "--out", str(out), "--dtype", "float16"]) == 0
    assert files.read_json(out / "config.json")["dtype"] == "float16"
    assert f"vllm serve {out}" in capsys.readouterr().out


def test_export_command_warns_of_confidential_data(params_file, capsys):
    outputs = []
    for source in ("folder", "hub"):
        assert main(["export", params_file, "--set", f"dataset.source={source}"]) == 0
        outputs.append(capsys.readouterr().out)
    assert all(CONFIDENTIAL in text for text in outputs)


def test_export_command_refuses_an_untrained_run(params_file, capsys):
    assert main(["export", params_file, "--set", "run.name=untrained"]) == 1
    assert "no trained adapter" in capsys.readouterr().err


def test_card_shows_the_score_only_of_this_adapter(p, params_file, capsys, monkeypatch):
    row = {"metric": "speed_mae_mps", "value": 1.5, "low": 1.0, "high": 2.0, "valid_share": 1.0}
    row |= {"num_windows": 12, "num_clips": 3}
    figures = {
        "05_train": {"first_loss": 2.5, "last_loss": 1.25, "train_seconds": 77.7},
        "06_evaluate": {
            "ladder": [row | {"name": name} for name in ("mean", "base", "adapted")],
            "valid_share": 1.0,
            "num_windows": 12,
            "num_clips": 3,
        },
    }
    done = {"05_train": True, "06_evaluate": True}
    monkeypatch.setattr(
        runs,
        "state",
        lambda _, name, **__: SimpleNamespace(done=done[name], result={"figures": figures[name]}),
    )
    assert main(["export", params_file]) == 0
    assert "speed_mae_mps 1.50 (1.00 to 2.00)" in capsys.readouterr().out
    card = (p.run_dir / "merged" / "README.md").read_text()
    assert "| adapted | 1.500 | 1.000 to 2.000 |" in card and "77.7" in card
    done["06_evaluate"] = False
    assert main(["export", params_file]) == 0
    assert "speed_mae_mps" not in capsys.readouterr().out
    assert "## Score" not in (p.run_dir / "merged" / "README.md").read_text()
