"""Layers: which package may import which, and which modules may import heavy libraries."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from avomni_lib import files

PACKAGE = files.PROJECT_ROOT / "avomni_lib"
WORLD = files.PROJECT_ROOT / "avomni_world"
MODULES = sorted([*PACKAGE.rglob("*.py"), *WORLD.rglob("*.py")])
# The packages in the order in which data flows; `""` is the top level of avomni_lib.
LAYERS = ["", "params", "dataset", "etl", "training", "evaluation", "live", "driving", "notebook"]
# The only modules that import avomni_world, for `dataset.source: world` and for driving.
WORLD_USERS = {"avomni_lib/notebook/run/runs.py", "avomni_lib/driving/drive.py"}
IMPORTERS = {
    "huggingface_hub": {
        "avomni_lib/training/export/push.py",
        "avomni_lib/dataset/download/hub.py",
        "avomni_lib/dataset/download/xet.py",
    },
    "papermill": {"avomni_lib/notebook/run/pipeline.py"},
    "unsloth": {"avomni_lib/training/model/load.py", "avomni_lib/training/doctor/doctor.py"},
    "peft": {"avomni_lib/training/model/load.py", "avomni_lib/training/doctor/doctor.py"},
    # The probes use its layer and its optimizers; models use it through transformers.
    "bitsandbytes": {
        "avomni_lib/training/model/load.py",
        "avomni_lib/training/doctor/doctor.py",
        "avomni_lib/training/doctor/probes.py",
    },
    "panda3d": {"avomni_world/scene/render.py"},
    "gymnasium": {"avomni_world/driving/__init__.py", "avomni_world/driving/env.py"},
    "grpc": {"avomni_lib/driving/alpasim/service.py"},
    "decord": {"avomni_lib/etl/video/decord_reader.py"},
    "ray": {"avomni_lib/etl/run/engines.py"},
    "llguidance": {"avomni_lib/training/model/constrained.py"},
}


def name_of(path: Path) -> str:
    return path.relative_to(files.PROJECT_ROOT).as_posix()


def layer_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if path.name in ("__main__.py", "cli.py"):  # they use all packages
        return "notebook"
    return parts[0] if len(parts) > 1 else ""


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of everything the module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_import_only_from_earlier_packages(path: Path):
    if path.is_relative_to(WORLD):
        return
    highest = LAYERS.index(layer_of(path))
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "avomni_lib":
            layer = parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""
            assert LAYERS.index(layer) <= highest, f"{path.name} ({layer_of(path)}) imports {name}"


def test_only_listed_modules_import_avomni_world():
    users = {
        name_of(path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if any(name.split(".")[0] == "avomni_world" for name in imports_of(path))
    }
    assert users == WORLD_USERS


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=name_of)
def test_every_package_docstring_lists_its_modules(folder: Path):
    """A line for each module and each folder in it."""
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    named = {line.split()[0].rstrip("/") for line in doc.splitlines()[1:] if line.strip()}
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    assert modules | {path.parent.name for path in folder.glob("*/__init__.py")} <= named


@pytest.mark.parametrize(("library", "allowed"), IMPORTERS.items(), ids=IMPORTERS)
def test_heavy_libraries_are_imported_only_by_listed_modules(library: str, allowed: set[str]):
    users = {
        name_of(path)
        for path in MODULES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert users <= allowed
    assert users


# torch.load and numpy.load, with the argument that each must be given.
LOADERS = {"torch": {"weights_only": True}, "np": {"allow_pickle": False}}
# PEFT's loads weights and no code; `kind` is a class of this package.
NO_CODE = {"PeftModel", "kind"}


def calls_of(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """(receiver, method, call) of each call of a method in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            receiver = node.func.value
            yield receiver.id if isinstance(receiver, ast.Name) else "", node.func.attr, node


def test_loading_calls_forbid_code_execution():
    seen = set()
    for path in MODULES:
        for receiver, method, call in calls_of(path):
            required = {}
            if method in ("from_pretrained", "from_config") and receiver not in NO_CODE:
                required = {"trust_remote_code": False}
            elif method == "load" and receiver in LOADERS:
                required = LOADERS[receiver]
            arguments = {
                keyword.arg: keyword.value.value
                for keyword in call.keywords
                if isinstance(keyword.value, ast.Constant)
            }
            for name, value in required.items():
                seen.add(name)
                assert arguments.get(name, ...) is value, (
                    f"{path}:{call.lineno}: say {name}={value}"
                )
        assert not {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & {
            name.split(".")[0] for name in imports_of(path)
        }, path
    assert seen == {"trust_remote_code", "weights_only", "allow_pickle"}


@pytest.mark.parametrize(
    "module",
    ["", ".params", ".__main__", ".cli", ".etl.run.build", ".etl.cache.windows"]
    + [".dataset.audit.audit"],
)
def test_light_modules_do_not_import_torch(module: str):
    heavy = "{'torch', 'matplotlib', 'pandas'} & sys.modules.keys()"
    code = f"import sys, avomni_lib{module}; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_modules_are_short_and_none_is_named_utils():
    for path in MODULES:
        assert path.stem not in {"utils", "helpers", "common", "core", "misc"}
        assert len(path.read_text().splitlines()) <= 500, path


def test_packages_can_be_imported_in_any_order():
    """A circular import fails only for some of the modules that can be imported first."""
    modules = (
        "training.export.merge",
        "training.fit.job",
        "training.prompt.samples",
        "live.subject",
    )
    for name in modules:
        code = f"import avomni_lib.{name}"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=files.PROJECT_ROOT)


def test_class_names_are_unique():
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
