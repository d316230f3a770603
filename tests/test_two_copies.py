"""Two copies of the project in one environment: all processes import the command's own copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from avomni_lib import files
from tests import folder_run
from tests.published_set import write_published_set

# A stage must never import this. It leaves a file even if the error is caught.
OTHER = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
raise ImportError("this is the other copy")
"""
# An editable install by setuptools: a finder that Python asks last.
FINDER = """
import importlib.machinery, importlib.util, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "avomni_lib":
            folder = {folder!r}
            return importlib.util.spec_from_file_location(
                name, folder + "/__init__.py", submodule_search_locations=[folder]
            )

sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder) + 1, Finder)
"""
BY_MODULE = ["-m", "avomni_lib"]
BY_SCRIPT = [
    "-c",
    "import sys; sys.path.insert(0, {copy!r})\n"
    "from avomni_lib.__main__ import main; sys.exit(main(sys.argv[1:]))",
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The working copy, with braces in its path, which papermill would take for parameters."""
    folder = tmp_path_factory.mktemp("worked in") / "{AV-Omni}"
    for name in ("avomni_lib", "avomni_world", "notebooks", "params"):
        no_pyc = shutil.ignore_patterns("__pycache__")
        shutil.copytree(files.PROJECT_ROOT / name, folder / name, ignore=no_pyc)
    return folder


@pytest.fixture
def other(tmp_path) -> Path:
    """The package folder of the installed copy."""
    folder = tmp_path / "installed" / "avomni_lib"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(OTHER)
    return folder


def installed(other: Path, how: str) -> dict[str, str]:
    """Environment variables that install the other copy: on PYTHONPATH or by a finder."""
    if how == "path":
        return os.environ | {"PYTHONPATH": str(other.parent)}
    finder = other.parent.parent / "finder"
    finder.mkdir()
    (finder / "sitecustomize.py").write_text(FINDER.format(folder=str(other)))
    return os.environ | {"PYTHONPATH": str(finder)}


def write_params(folder: Path, values: dict) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def python(folder: Path, environment: dict[str, str], *arguments: str | Path):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )


def in_notebook(copy: Path, code: str) -> str:
    """A script that runs code as a notebook cell would, with the import path of a kernel."""
    lines = code.replace("\n", "\n    ")
    start = f"import sys; sys.path.insert(0, {str(copy)!r})"
    return f'if __name__ == "__main__":\n    {start}\n    {lines}\n'


def assert_only_ours(other: Path) -> None:
    """Checks that nothing has imported the other copy or written into it."""
    names = [path.name for path in other.parent.rglob("*") if "__pycache__" not in path.parts]
    assert sorted(names) == ["__init__.py", "avomni_lib"]


@pytest.mark.parametrize(
    ("how", "start"),
    [("finder", BY_MODULE), ("path", BY_SCRIPT)],
    ids=["finder", "path, by a script elsewhere"],
)
def test_stage_imports_the_commands_copy(copy, other, tmp_path, how, start):
    """01 on a rendered world: kernel, renderers and relative output paths belong to the copy."""
    world = {"num_chunks": 1, "clips_per_chunk": 2, "clip_seconds": 1.0, "width": 64, "height": 36}
    values = {
        "run": {"name": f"{tmp_path.name}"},
        "dataset": {"source": "world", "world": world, "local_dir": "outputs/data/small"},
        "download": {"target_chunks": 1},
    }
    start = [part.format(copy=str(copy)) for part in start]
    folder = tmp_path if start[0] == "-c" else copy
    command = [*start, "run", write_params(tmp_path, values), "--only", "01", "--json"]
    shutil.rmtree(copy / "outputs" / "world", ignore_errors=True)
    done = python(folder, installed(other, how), *command)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert Path(output["run"]) == copy / "outputs" / tmp_path.name
    assert output["stages"][0]["figures"]["num_clips"] == 2
    assert (copy / "outputs" / tmp_path.name / "01_audit" / "result.json").exists()
    assert list((copy / "outputs" / "world").iterdir())
    assert_only_ours(other)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_etl_workers_import_the_commands_copy(copy, other, tmp_path, engine):
    published = write_published_set(tmp_path / "set", 1, 2, 1.0)
    values = folder_run.values(tmp_path / "outputs", published, engine=engine, num_workers=2)
    code = (
        "from avomni_lib import params\nfrom avomni_lib.dataset.download import download\n"
        "from avomni_lib.etl.run import build\n"
        "p = params.Params.from_files([sys.argv[1]])\ndownload.fetch(p, None)\n"
        "print(build.build(p).figures['num_clips_read'])"
    )
    environment = installed(other, "path")
    if engine == "ray":
        environment["RAY_ADDRESS"] = "local"
    command = ["-c", in_notebook(copy, code), write_params(tmp_path, values)]
    done = python(copy / "notebooks", environment, *command)
    assert done.stdout.split()[-1:] == ["2"], done.stderr
    assert_only_ours(other)


@pytest.mark.parametrize("processes", [1, 2])
def test_training_process_imports_the_commands_copy(copy, other, tmp_path, processes):
    """Its error is the missing cache, not the failing import of the other copy."""
    published = write_published_set(tmp_path / "set", 1, 2, 1.0)
    values = folder_run.values(tmp_path / "outputs", published)
    values["training"] = {"num_processes": processes, "gradient_accumulation_steps": 2}
    code = (
        "from avomni_lib import params\nfrom avomni_lib.training.fit import job\n"
        "p = params.Params.from_files([sys.argv[1]])\n"
        "process, _ = job.start_or_attach(p)\nprocess.wait()\njob.follow(p, process)"
    )
    # PYTHONSAFEPATH: Python does not import from the folder that it is started in.
    environment = installed(other, "path") | {"PYTHONSAFEPATH": "1"}
    command = ["-c", in_notebook(copy, code), write_params(tmp_path, values)]
    done = python(copy / "notebooks", environment, *command)
    log = (tmp_path / "outputs" / "test" / "checkpoints" / "train.log").read_text()
    assert "what to do: run 03_etl" in done.stderr, f"{done.stderr}\n{log}"
    assert_only_ours(other)


def test_notebook_of_another_copy_is_refused(copy, tmp_path):
    """As opened in a Jupyter whose environment has another copy installed."""
    code = (
        "from avomni_lib import params\nfrom avomni_lib.notebook.run import runs\n"
        "runs.start(params.Params.from_files([sys.argv[1]]), '01_audit')"
    )
    values = {"run": {"name": "x", "outputs_dir": str(tmp_path / "outputs")}}
    command = ["-c", in_notebook(copy, code), write_params(tmp_path, values)]
    done = python(files.PROJECT_ROOT / "notebooks", dict(os.environ), *command)
    assert f"AvomniError: this notebook is of {files.PROJECT_ROOT}, and" in done.stderr
    assert f"the package of {copy}" in done.stderr
    for folder in (copy / "notebooks", tmp_path):
        assert python(folder, dict(os.environ), *command).returncode == 0


def test_command_notes_that_the_working_folder_is_another_copy(copy, tmp_path):
    """The installed `avomni`, started in the folder of another copy."""
    values = {"run": {"name": "x", "outputs_dir": str(tmp_path / "outputs")}}
    start = [part.format(copy=str(copy)) for part in BY_SCRIPT]
    command = [*start, "status", write_params(tmp_path, values), "--json"]
    noted = f"note: this is {copy}'s copy of AV-Omni, the working folder is {files.PROJECT_ROOT}'s"
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    for folder, expected in ((files.PROJECT_ROOT, True), (copy, False)):
        done = python(folder, environment, *command)
        assert (noted in done.stderr) is expected
        assert json.loads(done.stdout)["run"] == str(tmp_path / "outputs" / "x")
