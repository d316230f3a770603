"""The table agrees with the constraints files, the Makefile and pyproject.toml, and it judges."""

import dataclasses
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from avomni_lib import files
from avomni_lib.training.doctor import platforms
from avomni_lib.training.doctor.platforms import PLATFORMS, Installed, Triton

ROOT = files.PROJECT_ROOT
MAKEFILE = (ROOT / "Makefile").read_text()
ROWS = pytest.mark.parametrize("row", PLATFORMS.values(), ids=PLATFORMS)

# What a machine that was set up by `command` reports.
AS_SET_UP = {
    "cpu": Installed("2.13.0+cpu", torch_wheel="2.13.0+cpu"),
    "rocm6.4": Installed(
        "2.9.1+rocm6.4",
        hip="6.4.43484-123eb5128",
        torch_wheel="2.9.1+rocm6.4",
        tritons=(Triton("pytorch-triton-rocm", "3.5.1", True),),
    ),
    "rocm7.2": Installed(
        "2.13.0+rocm7.2",
        hip="7.2.26015-fc0010cf6a",
        torch_wheel="2.13.0+rocm7.2",
        tritons=(Triton("triton-rocm", "3.9.0", True),),
    ),
    "cuda": Installed(
        "2.13.0+cu130",
        cuda="13.0",
        torch_wheel="2.13.0",
        tritons=(Triton("triton", "3.9.0", True),),
    ),
}
MI300X = dataclasses.replace(
    AS_SET_UP["rocm6.4"], bitsandbytes="0.50.2", triton_wanted="pytorch-triton-rocm==3.5.1"
)
# AMD's own image, rocm/pytorch.
IMAGE = dataclasses.replace(
    MI300X,
    torch="2.10.0+rocm7.2.0.lw.git7e1940d4",
    torch_wheel="2.10.0+rocm7.2.0.lw.git7e1940d4",
    hip="7.2.26015-fc0010cf6a",
    tritons=(Triton("triton", "3.6.0+rocm7.2.0.gitba5c1517", True),),
    triton_wanted="triton==3.6.0+rocm7.2.0.gitba5c1517",
)


def pinned(row: platforms.Platform) -> dict[str, str]:
    lines = (ROOT / row.constraints).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def bounds(extra: str, name: str) -> list[tuple[int, int]]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in extras["optional-dependencies"][extra]:
        if Requirement(line).name == name:
            return [tuple(map(int, part.split("."))) for part in re.findall(r"[\d.]+", line)]
    raise AssertionError(name)


def judged(found: Installed) -> dict[str, platforms.Finding]:
    return {finding.name: finding for finding in platforms.fit(found)}


def states(found: Installed) -> dict[str, str]:
    return {name: finding.state for name, finding in judged(found).items()}


def test_there_is_a_row_for_each_constraints_file():
    files_there = {path.name for path in ROOT.glob("constraints-*.txt")}
    assert {row.constraints for row in PLATFORMS.values()} == files_there
    assert all(row.constraints == f"constraints-{row.name}.txt" for row in PLATFORMS.values())


@ROWS
def test_a_row_has_the_versions_of_its_file(row: platforms.Platform):
    versions = pinned(row)
    assert row.torch == versions["torch"]
    assert row.torchvision == versions.get("torchvision")
    release = tuple(map(int, versions["bitsandbytes"].split(".")[:2]))
    assert platforms.BITSANDBYTES_FROM <= release < platforms.BITSANDBYTES_BELOW
    is_2_9 = row.torch.startswith("2.9.")
    assert row.is_conv3d_slow == is_2_9 and platforms.SLOW_CONV3D == (2, 9)
    assert ("Conv3d" in judged(AS_SET_UP[row.name])["torch"].why) == row.is_conv3d_slow


@ROWS
def test_a_row_has_the_indexes_and_commands_of_the_makefile(row: platforms.Platform):
    target, *settings = row.command.split()[1:]
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    default = re.search(r"^ROCM \?= (\S+)", MAKEFILE, re.MULTILINE).group(1)
    if row.name == "cpu":
        assert row.index == re.search(r"TORCH_CPU_INDEX := (\S+)", MAKEFILE).group(1)
    elif row.name == "cuda":
        recipe = re.search(r"^cuda:\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE).group(1)
        assert row.index is None and "index-url" not in recipe
    else:
        version = dict(part.split("=") for part in settings).get("ROCM", default)
        [address] = set(re.findall(r"index-url (\S+rocm\S+)", MAKEFILE))
        assert row.index == address.replace("$(ROCM)", version)
        assert row.index in (ROOT / row.constraints).read_text()


def test_the_ranges_are_those_of_pyproject():
    assert bounds("train", "torch") == [platforms.TORCH_FROM, platforms.TORCH_BELOW]
    ours = [platforms.BITSANDBYTES_FROM, platforms.BITSANDBYTES_BELOW]
    assert bounds("train", "bitsandbytes") == ours


@ROWS
def test_a_machine_that_was_set_up_by_the_makefile_fits_its_row(row: platforms.Platform):
    found = dataclasses.replace(AS_SET_UP[row.name], bitsandbytes=pinned(row)["bitsandbytes"])
    assert platforms.platform_of(found) is row
    assert set(states(found).values()) == {"ok"}


def test_nvidias_triton_and_an_old_bitsandbytes_on_an_mi300x_are_wrong():
    found = dataclasses.replace(
        MI300X,
        bitsandbytes="0.49.2",
        tritons=(Triton("triton", "3.9.0", True), Triton("pytorch-triton-rocm", "3.5.1", False)),
    )
    lines = judged(found)
    assert [name for name, line in lines.items() if line.state == "wrong"] == [
        "bitsandbytes",
        "triton",
    ]
    assert "NaN" in lines["bitsandbytes"].why
    assert "--no-deps 'bitsandbytes>=0.50,<0.51'" in lines["bitsandbytes"].fix
    assert "NVIDIA's" in lines["triton"].why and "unsloth_zoo" in lines["triton"].why
    fix = lines["triton"].fix
    assert fix.startswith("pip uninstall -y triton ")
    assert (
        "--index-url https://download.pytorch.org/whl/rocm6.4 'pytorch-triton-rocm==3.5.1'" in fix
    )


def test_the_same_bitsandbytes_is_wrong_everywhere_for_a_reason_of_the_platform():
    for found in AS_SET_UP.values():
        line = judged(dataclasses.replace(found, bitsandbytes="0.49.2"))["bitsandbytes"]
        assert line.state == "wrong" and line.why
        row = platforms.platform_of(found)
        assert ("MI300X" in line.why) == row.name.startswith("rocm")
    assert states(dataclasses.replace(MI300X, bitsandbytes=None))["bitsandbytes"] == "wrong"
    assert states(dataclasses.replace(MI300X, bitsandbytes="0.51.0"))["bitsandbytes"] == "note"


def test_an_images_own_torch_and_triton_stay_with_a_note():
    lines = judged(IMAGE)
    assert {name: line.state for name, line in lines.items()} == {
        "torch": "ok",
        "platform": "note",
        "bitsandbytes": "ok",
        "triton": "ok",
    }
    assert "an image's own build" in lines["torch"].found
    replaced = dataclasses.replace(IMAGE, tritons=(Triton("triton", "3.9.0", True),))
    fix = judged(replaced)["triton"].fix
    assert "triton==3.6.0+rocm7.2.0.gitba5c1517 from where the image took torch" in fix


@pytest.mark.parametrize(
    ("found", "place"),
    [
        (AS_SET_UP["cpu"], "https://download.pytorch.org/whl/cpu"),
        (AS_SET_UP["rocm7.2"], "https://download.pytorch.org/whl/rocm7.2"),
        (AS_SET_UP["cuda"], "PyPI"),
        (
            Installed("2.13.0+cu128", cuda="12.8", torch_wheel="2.13.0+cu128"),
            "https://download.pytorch.org/whl/cu128",
        ),
        (IMAGE, "an image's own build"),
        (Installed("2.9.0a0+50eac811a6.nv25.09", cuda="13.0"), "an image's own build"),
        (Installed("2.13.0", cuda="12.9", torch_wheel="2.13.0"), "PyPI or conda"),
    ],
)
def test_a_torchs_origin_is_read_from_its_version(found: Installed, place: str):
    assert platforms.origin(found) == place


@pytest.mark.parametrize(
    ("changes", "line", "state"),
    [
        ({"torch": "2.8.0+rocm6.4"}, "torch", "wrong"),
        ({"torch": "2.9.0a0+50eac811a6.rocm"}, "torch", "ok"),
        ({"torch": "2.15.0+rocm7.2"}, "torch", "note"),
        ({"torch": "2.9.1+rocm6.2", "hip": "6.2.41134-65d174c3e"}, "platform", "wrong"),
        ({"torch": "2.10.0+rocm7.1", "hip": "7.1.25424-4179531dcd"}, "platform", "note"),
        ({"tritons": ()}, "triton", "note"),
        ({"tritons": (Triton("pytorch-triton-rocm", "3.5.1", False),)}, "triton", "wrong"),
        (
            {
                "tritons": (
                    Triton("triton", "3.9.0", False),
                    Triton("pytorch-triton-rocm", "3.5.1", True),
                )
            },
            "triton",
            "note",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict, line: str, state: str):
    finding = judged(dataclasses.replace(MI300X, **changes))[line]
    assert finding.state == state
    assert state == "ok" or (finding.why and finding.fix)


def test_rocms_triton_under_cudas_torch_is_wrong():
    found = dataclasses.replace(AS_SET_UP["cuda"], tritons=(Triton("triton-rocm", "3.9.0", True),))
    line = judged(found)["triton"]
    assert line.state == "wrong" and "index-url" not in line.fix


def test_the_nearest_row_is_taken():
    for hip, name in (("6.2.1", "rocm6.4"), ("7.0.5", "rocm7.2"), ("8.1.0", "rocm7.2")):
        found = dataclasses.replace(MI300X, hip=hip)
        assert platforms.platform_of(found).name == name


def test_the_table_needs_no_torch():
    code = "import sys, avomni_lib.training.doctor.platforms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
