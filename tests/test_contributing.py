"""CONTRIBUTING's recipes work: their code blocks are read out of the page and used."""

import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from avomni_lib import files, sections
from avomni_lib.dataset import cameras
from avomni_lib.dataset.own.pack import pack
from avomni_lib.evaluation import metrics, scores
from avomni_lib.params import Params
from avomni_lib.training import backbones, targets
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


def test_a_target_is_added_by_its_recipe(tmp_path, monkeypatch):
    short = written("Add a target", tmp_path, monkeypatch).SHORT_V1
    monkeypatch.setitem(targets.TARGETS, short.name, short)
    entries = re.findall(r'`(PARTS|PRIMARY)\["short_v1"\] = ([^`]+)`', recipe("Add a target"))
    assert [name for name, _ in entries] == ["PARTS", "PRIMARY"]
    for name, value in entries:
        monkeypatch.setitem(getattr(scores, name), short.name, eval(value))
    asked, _ = drives(3)
    right = [short.render(each.truth) for each in asked]
    wrong = [short.write(targets.Said(1.0, 1.5, 1.5))] * len(asked)
    assert all(re.fullmatch(short.pattern, text) for text in right)
    assert short.read("a speed of nothing") is None
    figures = metrics.figures(table(short, asked, {"mean": wrong, "base": right}))
    errors = figures["speed_mae_mps"]
    assert errors["base"] < 0.051 < errors["mean"]


def test_every_target_is_where_the_recipe_says():
    assert set(targets.TARGETS) == set(sections.TARGETS)
    assert set(targets.TARGETS) == set(scores.PARTS) == set(scores.PRIMARY)
    page = (files.PROJECT_ROOT / "docs/evaluation.md").read_text()
    assert set(targets.TARGETS) == set(re.findall(r"^\| `(\w+_v\d)` \|", page, re.MULTILINE))


def test_every_backbone_is_where_the_recipe_says():
    text = recipe("Add a backbone")
    members = {*backbones.Backbone.__annotations__, *vars(backbones.Backbone)}
    for name in sections.BACKBONES:
        kind = backbones.backbone(name)
        for member in (each for each in members if not each.startswith("_")):
            assert hasattr(kind, member), f"{name} lacks {member}"
    for member in re.findall(r"`(lora_\w+|skip_\w+|frames_\w+|vision_\w+)`", text):
        assert member in members


def test_no_other_module_names_a_family():
    for path in (files.PROJECT_ROOT / "avomni_lib").rglob("*.py"):
        if "backbones" in path.parts:
            continue
        text = path.read_text().replace(f'"{Params().model.backbone}",\n        description', "")
        found = [name for name in sections.BACKBONES if re.search(rf"\b{name}\b", text)]
        assert not found, f"{path} names {found}"


def test_a_source_is_added_by_its_recipe(tmp_path, monkeypatch):
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


def test_there_is_a_recipe_for_each():
    assert RECIPES == ["Add a target", "Add a backbone", "Add a source of clips"]


def test_what_the_recipes_name_in_code_is_there():
    for name, path in re.findall(r"`(\w+)` (?:in|of)\s+`(avomni_lib/[\w./]+\.py)`", PAGE):
        assert re.search(rf"\b{name}\b", (files.PROJECT_ROOT / path).read_text()), (name, path)
