"""A base model that needs remote code is refused in one error, and its code does not run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from avomni_lib import files
from tests import training_set

SPY = """
from pathlib import Path
Path(__file__).with_name("it_ran").write_text("yes")
"""
# Takes (folder, step) pairs and prints each result; one process, because processes start slowly.
LOAD = """
import json, sys
from pathlib import Path
from avomni_lib.errors import AvomniError
from avomni_lib.training.export import merge as merging
from avomni_lib.training.model import load as model
from tests import training_set
printed = []
for folder, step in json.loads(sys.argv[1]):
    p = training_set.params(Path(folder), Path(folder))
    steps = {
        "config": lambda: model.read_config(folder, folder),
        "tokenizer": lambda: model.read_tokenizer(folder, folder),
        "base": lambda: model.load_base(p),
        "numbers": lambda: merging.count_numbers(p),
    }
    try:
        steps[step]()
        printed.append("loaded")
    except AvomniError as error:
        printed.append(str(error))
print(json.dumps(printed))
"""


def change(path: Path, **values: object) -> None:
    files.write_json(path, json.loads(path.read_text()) | values)


def unknown_model(folder: Path) -> None:
    names = {"AutoConfig": "spy.Config", "AutoModelForImageTextToText": "spy.Model"}
    change(folder / "config.json", model_type="spy", auto_map=names)


def known_model(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModelForImageTextToText": "spy.Model"})


def own_tokenizer(folder: Path) -> None:
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="SpyTokenizer",
        auto_map={"AutoTokenizer": ["spy.Tokenizer", "spy.Tokenizer"]},
    )


def pickled_weights(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


CASES = [
    (unknown_model, "config"),
    (known_model, "config"),
    (known_model, "numbers"),
    (own_tokenizer, "tokenizer"),
    (own_tokenizer, "base"),
    (pickled_weights, "base"),
]


def test_remote_code_never_runs_and_no_prompt_is_shown(tmp_path):
    base, jobs = training_set.make_base(tmp_path / "base"), []
    (base / "spy.py").write_text(SPY)
    for number, (spoil, step) in enumerate(CASES):
        folder = shutil.copytree(base, tmp_path / str(number))
        spoil(folder)
        jobs.append((str(folder), step))
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(jobs)],
        input="y\n" * 99,  # answers to possible prompts
        capture_output=True,
        text=True,
        timeout=300,
        cwd=files.PROJECT_ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout.splitlines()[-1])
    for output, (spoil, _) in zip(printed, CASES, strict=True):
        expected = "cannot be loaded" if spoil is pickled_weights else "asks to run code that comes"
        assert expected in output
        assert "where: model.base_model" in output and "what to do: " in output
    assert "[y/N]" not in ran.stdout + ran.stderr
    assert not list(tmp_path.rglob("it_ran"))
