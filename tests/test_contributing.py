"""The recipes of CONTRIBUTING.md work: their code blocks are taken from the page and run."""

import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.own.pack import pack
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import metrics, scores
from avomni_lib.params import Params, sections
from avomni_lib.training import backbones, targets
from avomni_lib.training.backbones import Video
from avomni_lib.training.backbones.shared import decoder
from avomni_lib.training.forecast.estimate import plan_run
from avomni_lib.training.forecast.memory import size_of
from avomni_lib.training.prompt.conversation import Conversation, videos_of
from avomni_lib.training.prompt.tokens import tokens_per_sample
from tests import training_set
from tests.answered import drives, table
from tests.streams import NUM_FRAMES, stream_bytes

PAGE = (files.PROJECT_ROOT / "CONTRIBUTING.md").read_text()
RECIPES = re.findall(r"^## (Add .+)$", PAGE, re.MULTILINE)


def recipe(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def written(title: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of a recipe, saved and imported as a contributor would."""
    code = textwrap.dedent(re.search(r" *```python\n(.*?)```", recipe(title), re.DOTALL)[1])
    name = re.match(r"# (\S+\.py)\n", code)[1]
    path = folder / Path(name).name
    path.write_text(code)
    assert not (files.PROJECT_ROOT / name).exists()
    assert (files.PROJECT_ROOT / name).parent.is_dir()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def choices_of(field: str) -> tuple[str, ...]:
    section, _, key = field.partition(".")
    return Params.model_fields[section].annotation.model_fields[key].annotation.__args__


def test_target_recipe_works(tmp_path, monkeypatch):
    short = written("Add a target", tmp_path, monkeypatch).SHORT_V1
    monkeypatch.setitem(targets.TARGETS, short.name, short)
    entries = re.findall(r'`(PARTS|PRIMARY)\["short_v1"\] = ([^`]+)`', recipe("Add a target"))
    assert [name for name, _ in entries] == ["PARTS", "PRIMARY"]
    for name, value in entries:
        monkeypatch.setitem(getattr(scores, name), short.name, eval(value))
    asked, _ = drives(3)
    correct = [short.render(row.truth) for row in asked]
    wrong = [short.write(targets.Content(1.0, 1.5, 1.5))] * len(asked)
    assert all(re.fullmatch(short.pattern, text) for text in correct)
    assert short.read("a speed of nothing") is None
    figures = metrics.figures(table(short, asked, {"mean": wrong, "base": correct}))
    errors = figures["speed_mae_mps"]
    assert errors["base"] < 0.051 < errors["mean"]


def test_every_target_is_registered_and_documented():
    assert set(targets.TARGETS) == set(sections.TARGETS)
    assert set(targets.TARGETS) == set(scores.PARTS) == set(scores.PRIMARY)
    page = (files.PROJECT_ROOT / "docs/evaluation.md").read_text()
    assert set(targets.TARGETS) == set(re.findall(r"^\| `(\w+_v\d)` \|", page, re.MULTILINE))


def test_every_backbone_has_all_members():
    text = recipe("Add a backbone")
    members = {*backbones.Backbone.__annotations__, *vars(backbones.Backbone)}
    for name in sections.BACKBONES:
        kind = backbones.backbone(name)
        for member in (each for each in members if not each.startswith("_")):
            assert hasattr(kind, member), f"{name} lacks {member}"
    for member in re.findall(r"`(lora_\w+|skip_\w+|frames_\w+|vision_\w+)`", text):
        assert member in members


@pytest.fixture
def grey(tmp_path, monkeypatch):
    """The recipe's example family, installed as if its file were in the backbones folder."""
    module = written("Add a backbone", tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, f"{backbones.__name__}.grey", module)
    monkeypatch.setattr(sections, "BACKBONES", (*sections.BACKBONES, "grey"))
    return module.Grey


@pytest.fixture
def grey_params(tmp_path):
    """A run with a base model of that family, of which only config.json exists."""
    config = {
        "model_type": "grey",
        "text_config": decoder.qwen2(64, 2, 2, 1, 128, 512),
        "vision_config": {"hidden_size": 32, "patch_size": 16},
    }
    files.write_json(tmp_path / "base" / "config.json", config)
    model = {"backbone": "grey", "base_model": str(tmp_path / "base")}
    return Params.from_values({"extends": "params/demo.yaml", "model": model})


def test_backbone_recipe_plans_tokens_and_weights(grey, grey_params):
    p = grey_params
    assert backbones.family("grey") is grey
    tokens, size = tokens_per_sample(p), size_of(p)
    # 16 frames of 2×2 tiles of 48×32 px, in squares of 16 px
    assert tokens.vision == 16 * 4 * (3 * 2)
    assert 0 < tokens.text < 300
    assert size.num_weights == 512 * 64 + 2 * (3 * 64 * 128 + 2 * (64 * 64 + 64 * 32) + 256) + (
        64 + 256 * 32 + 32 * 32
    )
    rows = {name: value for name, value, _ in plan_run(p).rows}
    assert rows["tokens a sample"].startswith(f"{tokens.total:,}")
    assert any(name.startswith("memory") for name in rows)


def test_backbone_recipe_makes_samples_and_pixels(grey, grey_params):
    p, videos = grey_params, videos_of(grey_params, backbones.backbone("grey"))
    words = training_set.make_words()
    conversation = Conversation(
        words,
        backbones.backbone("grey"),
        grid=cameras.grid(p.vision.cameras),
        target=targets.target_of(p),
        videos=videos,
        max_seq_length=1024,
    )
    sample = conversation.sample("42")
    is_vision = sample.input_ids == words.convert_tokens_to_ids("<|image_pad|>")
    assert is_vision.sum() == tokens_per_sample(p).vision
    assert sample.positions.tolist() == list(range(len(sample)))
    assert sample.labels[-1] == words.convert_tokens_to_ids("<|im_end|>")
    frames = np.zeros((2, *conversation.frame_shape), np.uint8)
    frames[1, 0, :16, 16:32] = 255  # the second square of the second window
    pixels = conversation.inputs(torch.from_numpy(frames))["pixel_values"]
    assert pixels.shape == (2 * is_vision.sum(), 256)
    assert pixels.sum(1).nonzero().flatten().tolist() == [is_vision.sum() + 1]
    with pytest.raises(AvomniError, match="do not divide into squares of 16 px"):
        conversation.backbone.check(Video((0.0,), 24, 32))


def test_only_backbone_modules_name_a_family():
    for path in (files.PROJECT_ROOT / "avomni_lib").rglob("*.py"):
        if "backbones" in path.parts:
            continue
        text = path.read_text().replace(f'"{Params().model.backbone}",\n        description', "")
        found = [name for name in sections.BACKBONES if re.search(rf"\b{name}\b", text)]
        assert not found, f"{path} names {found}"


def test_source_recipe_packs_a_clip(tmp_path, monkeypatch):
    module = written("Add a source of clips", tmp_path, monkeypatch)
    names = [camera.name for camera in cameras.grid("4-cam").cameras]
    drive = tmp_path / "recordings" / "drive 1"
    drive.mkdir(parents=True)
    for name in names:
        (drive / f"{name}.mp4").write_bytes(stream_bytes("h264 gop 15"))
    t_s = np.arange(NUM_FRAMES) / 30
    poses = np.column_stack([t_s, 8 * t_s, 0 * t_s, 0 * t_s])
    np.savetxt(drive / "poses.csv", poses, delimiter=",", header="t,x,y,heading", comments="")
    packed = pack(tmp_path / "own", module.clips(tmp_path / "recordings", names))
    assert len(packed.clips) == 1 and (packed.folder / "clip_index.parquet").exists()


def test_contributing_has_three_recipes():
    assert RECIPES == ["Add a target", "Add a backbone", "Add a source of clips"]


def test_names_in_the_recipes_exist():
    for name, path in re.findall(r"`(\w+)` (?:in|of)\s+`(avomni_lib/[\w./]+\.py)`", PAGE):
        assert re.search(rf"\b{name}\b", (files.PROJECT_ROOT / path).read_text()), (name, path)
