"""Omitted keys have the same values under every command, papermill and JupyterLab."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill.iorw
import papermill.parameterize
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.__main__ import main
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.pages import tables
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params, notebook_cell
from tests.notebooks.small_run import environment

PARAMS = files.PROJECT_ROOT / "params"
NOTEBOOKS = sorted((files.PROJECT_ROOT / "notebooks").glob("*.ipynb"))
DEMO, MI300X = PARAMS / "demo.yaml", PARAMS / "mi300x.yaml"

# Some keys of each section, of every type, and the values that a file may give.
KEYS = {
    "run": {"name": st.sampled_from(["own", "2024-01-02", "a.b"]), "seed": st.integers(0, 99)},
    "dataset": {"source": st.sampled_from(["hub", "folder"]), "license_accepted": st.booleans()},
    "download": {
        "chunks": st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4),
        "clips": st.fixed_dictionaries(
            {}, optional={"hours": st.none() | st.lists(st.integers(0, 23), min_size=1)}
        ),
    },
    "processing": {"stride": st.integers(1, 9), "sample_hz": st.floats(0.5, 60)},
    "vision": {"cameras": st.sampled_from(["4-cam", "7-cam"])},
    "prompt": {"ego_history": st.booleans()},
    "model": {"lora_dropout": st.floats(0.01, 0.9), "base_model": st.just('a "quoted" \\folder')},
    "training": {"learning_rate": st.sampled_from([1e-4, "1e-4", 3]), "max_steps": st.none()},
    "evaluation": {"max_windows": st.none() | st.integers(1, 99)},
}
partial_files = st.fixed_dictionaries(
    {},
    optional={
        "extends": st.sampled_from([None, "params/mi300x.yaml", "params/demo_future.yaml"]),
        **{
            section: st.none() | st.fixed_dictionaries({}, optional=keys)
            for section, keys in KEYS.items()
        },
    },
)


def opened(path: Path, parameters: dict[str, Any] | None = None, edit: str = "") -> dict[str, Any]:
    """A notebook's `globals()` before it reads its parameters.

    Args:
        parameters: What papermill injects.
        edit: Lines below the parameters cell's own.
    """
    notebook = papermill.iorw.load_notebook_node(str(path))
    if parameters:
        notebook = papermill.parameterize.parameterize_notebook(notebook, parameters)
    names: dict[str, Any] = {"In": []}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "from_notebook" in cell.source:
            return names
        if cell.cell_type == "code":
            is_edited = cell.metadata.get("tags") == ["parameters"]
            names["In"].append(cell.source + (f"\n{edit}" if is_edited else ""))
            exec(names["In"][-1], names)
    raise AssertionError(f"{path} reads no parameters")


def in_notebook(path: Path, parameters: dict[str, Any] | None = None, edit: str = "") -> Params:
    """`p` in a notebook with papermill's injected cell or an edited parameters cell."""
    return Params.from_notebook(opened(path, parameters, edit))


def differing(a: Params, b: Params) -> dict[str, Any]:
    """Section -> the keys and values of `a` that differ from `b`."""
    others = b.values()
    differences = {
        section: {key: value for key, value in keys.items() if others[section][key] != value}
        for section, keys in a.values().items()
    }
    return {section: keys for section, keys in differences.items() if keys}


@settings(max_examples=40)
@given(values=partial_files)
def test_partial_file_means_the_same_for_every_loader(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("partial") / "own.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    p = Params.from_files([path])
    assert Params.from_values(values) == p
    injected = papermill.iorw.read_yaml_file(str(path))
    assert in_notebook(NOTEBOOKS[0], injected) == p
    assert in_notebook(NOTEBOOKS[-1], p.complete()) == p


def keys_of(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value; a section without keys names none."""
    if not isinstance(values, dict):
        return {prefix: values}
    keys: dict[str, Any] = {}
    for name, value in values.items():
        if value is not None or name not in (*KEYS, "clips"):
            keys |= keys_of(value, f"{prefix}.{name}".strip("."))
    return keys


@settings(max_examples=40)
@given(below=partial_files, above=partial_files)
def test_later_file_changes_only_the_keys_it_names(below, above, tmp_path_factory):
    folder = tmp_path_factory.mktemp("laid")
    paths = [folder / "below.yaml", folder / "above.yaml"]
    above = {name: keys for name, keys in above.items() if name != "extends"}
    for path, values in zip(paths, (below, above), strict=True):
        path.write_text(yaml.safe_dump(values))
    merged = Params.from_files(paths)
    assert Params.from_values({"extends": str(paths[0])} | above) == merged
    alone = [keys_of(Params.from_files([path]).values()) for path in paths]
    named = keys_of(above)
    for key, value in keys_of(merged.values()).items():
        assert value == alone[key in named][key], key


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", sorted(PARAMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_file_means_the_same_in_every_notebook(notebook: Path, path: Path):
    assert in_notebook(notebook, yaml.safe_load(path.read_text())) == Params.from_files([path])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_edited_cell_changes_only_the_named_keys(notebook: Path):
    demo = Params.from_files([PARAMS / "demo_drive.yaml" if notebook.stem == "08_drive" else DEMO])
    assert in_notebook(notebook) == demo
    for edit, changed in (
        ('run = {"seed": 1}', {"run": {"seed": 1}}),
        ('training = {"num_epochs": 1}', {"training": {"num_epochs": 1.0}}),
        ("training = {}", {}),
        ("training = None", {}),
        (
            'download = {"clips": {"hours": [7]}}',
            {"download": {"clips": demo.values()["download"]["clips"] | {"hours": [7]}}},
        ),
    ):
        assert differing(in_notebook(notebook, edit=edit), demo) == changed, edit
    real = in_notebook(notebook, edit='extends = "params/mi300x.yaml"\nrun = {"seed": 1}')
    assert differing(real, Params.from_files([MI300X])) == {"run": {"seed": 1}}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_key_of_a_cell_can_be_changed_alone(notebook: Path):
    """The other keys of the cell keep the demo's values and do not override the file."""
    other = {
        str: lambda text: {"4-cam": "7-cam", "test": "val", "full": "quick"}.get(text, f"{text}_x"),
        bool: lambda flag: not flag,
        int: lambda number: number + 16,
        float: lambda number: number * 2,
        type(None): lambda _: 3,
    }
    special_values = {"source": "hub", "target": "future_v1", "fit": "crop", "clock": "arrival"}
    special_values |= {"sources": {"camera_front_wide_120fov": "/dev/video0"}}
    special_values |= {"seconds": 8.0, "traffic": "replay", "events": ["cut_in"], "smoothing": 0.25}
    special_values |= {"server": "http://127.0.0.1:8000/v1"}
    names = opened(notebook)
    for name in notebook_cell.shown(names):
        section, key = name.split(".")
        shown = names[section][key]
        value = special_values[key] if key in special_values else other[type(shown)](shown)
        edit = f"{section}[{key!r}] = {value!r}"
        if name != "download.evict_raw":  # refused for a folder source
            for file in (DEMO, MI300X):
                lines, changes = [f"extends = {str(file)!r}", edit], [f"{name}={json.dumps(value)}"]
                if key == "sequence_length":  # an alias
                    lines.append(f"vision['window_size'] = {value}")
                    changes.append(f"vision.window_size={value}")
                p = in_notebook(notebook, edit="\n".join(lines))
                assert p == Params.from_files([file], changes), edit


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_unedited_cell_does_not_override_another_file(notebook: Path):
    real = Params.from_files([MI300X])
    assert in_notebook(notebook, edit=f"extends = {str(MI300X)!r}") == real
    assert in_notebook(notebook, {"extends": str(MI300X)}) == real
    # Also with `avomni run`, which injects every value.
    assert in_notebook(notebook, real.complete()) == real


def test_injected_value_applies_even_if_it_equals_the_demos():
    """It overrides another value of the file and of an edited cell."""
    notebook, edit = NOTEBOOKS[4], f"extends = {str(MI300X)!r}\ntraining['batch_size'] = 4"
    assert Params.from_files([MI300X]).training.num_epochs != 3
    p = in_notebook(notebook, {"training": {"num_epochs": 3}}, edit)
    assert differing(p, Params.from_files([MI300X])) == {"training": {"num_epochs": 3.0}}
    p = in_notebook(notebook, {"processing": {"stride": 8}}, edit)
    assert p.training.batch_size == 4


def test_table_shows_each_value_and_its_source():
    notebook = NOTEBOOKS[4]

    def set_by(**arguments: Any) -> dict[str, tuple[Any, str]]:
        names = opened(notebook, **arguments)
        table = tables.parameters(Params.from_notebook(names), names)
        return dict(zip(table.index, table.itertuples(index=False, name=None), strict=True))

    demo = set_by()
    assert demo["training.batch_size"] == (5, "params/demo.yaml")
    assert {source for _, source in demo.values()} == {"params/demo.yaml"}
    edited = set_by(edit="extends = 'params/mi300x.yaml'\ntraining['num_epochs'] = 1")
    assert edited["training.num_epochs"] == (1.0, "this notebook")
    assert edited["training.batch_size"] == (2, "params/mi300x.yaml")
    injected = set_by(parameters=Params.from_files([MI300X]).complete())
    assert set(injected) == set(demo)
    assert injected["training.batch_size"] == (2, "papermill")
    one = set_by(parameters={"training": {"num_epochs": 3}})
    assert one["training.num_epochs"] == (3.0, "papermill")
    assert one["model.lora_rank"] == (64, "params/demo.yaml")


def test_mistake_in_the_cell_is_an_error():
    for edit, message in (
        ("training['num_epoch'] = 3", "training.num_epoch: unknown parameter; did you mean"),
        ("training['batch_size'] = True", "training.batch_size: a number is wanted"),
        ("training = 3", "training: a section of keys is wanted"),
    ):
        with pytest.raises(AvomniError, match=message):
            in_notebook(NOTEBOOKS[4], edit=edit)


def test_extends_applies_first_and_may_be_chained(tmp_path: Path):
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text("extends: params/mi300x.yaml\ntraining: {num_epochs: 5, batch_size: 4}\n")
    above.write_text(f"extends: {below}\ntraining: {{num_epochs: 6}}\n")
    p, real = Params.from_files([above]), Params.from_files([MI300X])
    assert differing(p, real) == {"training": {"num_epochs": 6.0, "batch_size": 4}}
    assert Params.from_files([below, above]) == p
    changed = Params.from_files([above], ["training.batch_size=8"])
    assert differing(changed, p) == {"training": {"batch_size": 8}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [a, b]", "names one params file"),
        ("extends: ''", "names one params file"),
        ("extends: $HOME/a.yaml", "names one params file"),
        ("extends: 3", "names one params file"),
        ("extends: params/dem.yaml", "params file not found"),
        ("extends: OTHER", "circle"),
    ],
)
def test_invalid_extends_is_an_error(tmp_path: Path, text: str, message: str):
    path, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text(text.replace("OTHER", str(other)))
    other.write_text(f"extends: {path}\n")
    with pytest.raises(AvomniError, match=message):
        Params.from_files([path])


def test_complete_values_do_not_depend_on_the_demo_file(tmp_path: Path):
    """Complete values extend no file, so that later edits do not affect them."""
    p = Params.from_files([MI300X], ["training.max_steps=3"])
    assert p.complete()["extends"] is None
    assert Params.from_values(json.loads(json.dumps(p.complete()))) == p


def test_plan_status_and_run_name_the_source_of_omitted_sections(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = tmp_path / "own.yaml"
    path.write_text(f"run: {{name: own, outputs_dir: {tmp_path}}}\ntraining: {{max_steps: 3}}\n")
    set_by = {}
    for command in (["plan"], ["status"], ["run", "--dry-run"]):
        assert main([command[0], str(path), *command[1:], "--json"]) == 0
        output = capsys.readouterr()
        set_by[command[0]] = json.loads(output.out)
        assert "own.yaml leaves out" in output.err and "as in params/demo.yaml" in output.err
    assert set_by["plan"]["optimizer_steps"] == 3
    assert set_by["status"]["run"] == set_by["run"]["run"] == str(tmp_path / "own")
    path.write_text("extends: params/demo.yaml\n" + path.read_text())
    assert main(["plan", str(path), "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_real_repo_id_with_the_world_source_is_an_error(tmp_path: Path):
    """A file of a real run that omits dataset.source does not run on the demo's clips."""
    path = tmp_path / "own.yaml"
    path.write_text("dataset: {repo_id: nvidia/PhysicalAI-Autonomous-Vehicles}\n")
    p = Params.from_files([path], [f"run.outputs_dir={tmp_path}"])
    with pytest.raises(AvomniError, match="world, which renders its own clips") as caught:
        runs.open_hub(p)
    assert "extends: params/mi300x.yaml" in caught.value.fix


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notebook 01 up to its parameters, which it prints."""
    opened = nbformat.read(NOTEBOOKS[0], as_version=4)
    end = next(i for i, cell in enumerate(opened.cells) if "from_notebook" in cell.source)
    shown = (
        "import json\nfrom avomni_lib.params import Params\n"
        "print(json.dumps(Params.from_notebook(globals()).values()))"
    )
    opened.cells[end:] = [nbformat.v4.new_code_cell(shown)]
    path = tmp_path_factory.mktemp("cell") / "shown.ipynb"
    nbformat.write(opened, path)
    return path


def by_papermill(notebook: Path, folder: Path, *options: str) -> tuple[dict[str, Any] | str, str]:
    """The parameters in the kernel, or its error's text, and papermill's stderr."""
    out = folder / "executed.ipynb"
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", str(notebook), str(out), "--no-progress-bar"]
        + ["--log-level", "WARNING", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=120,
    )
    [output] = nbformat.read(out, as_version=4).cells[-1].outputs
    if output.output_type == "error":
        assert ran.returncode == 1
        return output.evalue, ran.stderr
    return json.loads(output.text), ran.stderr


OWN = "run: {name: own}\ntraining: {learning_rate: 1e-2, num_epochs: 7}\n"
STEPS = "{training: {max_steps: 3}}"


@pytest.mark.parametrize(
    ("options", "base"),
    [
        (["-b", base64.b64encode(STEPS.encode()).decode()], "demo"),
        (["-f", "own.yaml", "-p", "training.max_steps", "3"], "own"),
        (["-f", "own.yaml", "-y", "{training.max_steps: 3}"], "own"),
        (["-p", "extends", "MI300X", "-y", STEPS], "mi300x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_papermill_changes_only_the_named_key(
    notebook: Path, tmp_path: Path, options: list[str], base: str
):
    own = tmp_path / "own.yaml"
    own.write_text(OWN)
    arguments = [word.replace("MI300X", str(MI300X)) for word in options]
    seen, output = by_papermill(notebook, tmp_path, *arguments)
    path = own if base == "own" else PARAMS / f"{base}.yaml"
    assert seen == Params.from_files([path], ["training.max_steps=3"]).values()
    if "training.max_steps" not in " ".join(options):
        assert "unknown parameter" not in output


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["-f", "own.yaml", "-y", STEPS], ["dropped: training.learning_rate, training.num_epochs"]),
        (["-p", "max_steps", "3"], ["max_steps: unknown parameter; did you mean training.max_st"]),
        (["-f", "twice.yaml"], ["training stands twice, in lines 1 and 2", "YAML reads 010 as 8"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_silent_change_by_papermill_is_refused(
    notebook: Path, tmp_path: Path, options: list[str], messages: list[str]
):
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "twice.yaml").write_text("training: {num_epochs: 1}\ntraining: {max_steps: 010}\n")
    seen, _ = by_papermill(notebook, tmp_path, *options)
    assert isinstance(seen, str), "it ran"
    for message in messages:
        assert message in seen
