"""environment.yml, the constraints files, the Makefile and pyproject.toml agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from avomni_lib import files

ROOT = files.PROJECT_ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = sorted(ROOT.glob("constraints-*.txt"))
GPU = {
    canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["gpu"]
}


def pins(path: Path) -> dict[str, Version]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    assert all(str(r.specifier).startswith("==") for r in requirements), (
        f"{path.name} holds exact versions"
    )
    return {canonicalize_name(r.name): Version(str(r.specifier)[2:]) for r in requirements}


def ranges() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in PROJECT["dependencies"] + sum(extras.values(), [])]


def test_every_platform_has_a_constraints_file():
    assert [path.stem for path in CONSTRAINTS] == [
        "constraints-cpu",
        "constraints-cuda",
        "constraints-rocm6.4",
        "constraints-rocm7.2",
    ]


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_every_direct_dependency_is_pinned_inside_its_range(path: Path):
    pinned = pins(path)
    for requirement in ranges():
        name = canonicalize_name(requirement.name)
        if name in GPU and path.stem == "constraints-cpu":
            assert name not in pinned
            continue
        assert requirement.specifier.contains(pinned[name]), (
            f"{path.name}: {requirement} {pinned[name]}"
        )


def test_platforms_differ_only_in_torch_and_unsloth():
    common = [
        {n: v for n, v in pins(path).items() if n not in {"torch", "torchvision", *GPU}}
        for path in CONSTRAINTS
    ]
    cpu = common[0]
    for other in common[1:]:
        assert {name: cpu[name] for name in other} == other


def test_cpu_constraints_contain_no_cuda_packages():
    cpu = pins(ROOT / "constraints-cpu.txt")
    assert str(cpu["torch"].local) == "cpu"
    assert not {"torchvision", "triton", "xformers"} & set(cpu)
    assert not [name for name in cpu if name.startswith("nvidia-")]


def test_rocm_constraints_pin_rocm_builds_of_torch():
    for version, torch in (("6.4", "2.9"), ("7.2", "2.13")):
        rocm = pins(ROOT / f"constraints-rocm{version}.txt")
        assert rocm["torch"].local == f"rocm{version}"
        assert str(rocm["torch"]).startswith(torch)
        assert not {"triton", "xformers"} & set(rocm)


def test_pinned_versions_satisfy_unsloths_requirements():
    """The requirements of Unsloth 2026.10.9, from its metadata."""
    caps = [
        Requirement(line)
        for line in (
            "transformers>=4.52.4,<=5.17.0",
            "trl>=0.18.2,<=1.15.0",
            "peft>=0.18.0",
            "datasets>=3.4.1,<5.0.0,!=4.0.*,!=4.1.0,!=4.4.*,!=4.5.0",
            "bitsandbytes>=0.45.5,!=0.46.0,!=0.48.0",
            "accelerate>=0.34.1",
            "torch>=2.4,<2.15",
        )
    ]
    for path in CONSTRAINTS:
        pinned = pins(path)
        for cap in caps:
            assert cap.specifier.contains(pinned[cap.name]), f"{path.name}: {cap}"


def test_conda_environment_installs_the_pinned_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert "-c constraints-cpu.txt" in pip
    assert f"torch=={pins(ROOT / 'constraints-cpu.txt')['torch']}" in pip
    makefile = (ROOT / "Makefile").read_text()
    index = re.search(r"TORCH_CPU_INDEX := (\S+)", makefile).group(1)
    assert f"--extra-index-url {index}" in pip
    [python] = [
        e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python=")
    ]
    assert python.split("=")[1] in {"3.11", "3.12"}
    assert PROJECT["requires-python"] == ">=3.11,<3.13"


MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_pre_commit_runs_the_pinned_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: repo["rev"] for repo in config["repos"] for hook in repo["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "nbstripout", "typos"}
    pinned = pins(ROOT / "constraints-cpu.txt")
    for hook, package in (("ruff-check", "ruff"), ("ruff-format", "ruff"), ("nbstripout",) * 2):
        assert Version(hooks[hook]) == pinned[package], hook


def test_github_workflow_runs_the_ci_commands():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    [job] = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert {command.removeprefix("make ") for command in commands} <= TARGETS
    assert job["env"] == {"PYTHON": "python"} and re.search(r"^PYTHON +\?=", MAKEFILE, re.MULTILINE)
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", step["uses"])


def fast_patterns() -> list[str]:
    [listed] = re.findall(
        r"^FAST := \$\(wildcard \$\(addprefix (\S+), (.*?)\)\)$", MAKEFILE, re.M | re.DOTALL
    )
    return [listed[0] + name for name in listed[1].replace("\\\n", " ").split()]


@pytest.mark.parametrize("pattern", fast_patterns())
def test_fast_tests_import_no_slow_modules(pattern: str):
    slow = (
        r"^(?:import|from) (?:subprocess|multiprocessing|torch|transformers|avomni_world)"
        r"|tests\.(?:cached_\w+|local_hub|answering_server|evicting_run|folder_run|killed_training"
        r"|ranked_training|streams|training_set|tiny_qwen3_vl|published_set|linked_set)"
    )
    paths = sorted(ROOT.glob(pattern))
    assert paths, pattern
    for path in paths:
        assert not re.search(slow, path.read_text(), re.MULTILINE), path


def test_modules_of_the_mypy_overrides_exist():
    """mypy does not report a name in its configuration that matches no module."""
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    modules = [
        name
        for override in mypy["overrides"]
        for name in override["module"]
        if name.startswith("avomni_")
    ]
    assert modules
    for name in modules:
        path = ROOT / name.removesuffix(".*").replace(".", "/")
        assert path.is_dir() if name.endswith(".*") else path.with_suffix(".py").exists(), name
