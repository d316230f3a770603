"""What fits what: torch, bitsandbytes and triton for each kind of machine, as data.

Nothing here imports torch. `fit` judges what was found on a machine by the table; what can only be
judged by running it is in `probes.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from avomni_lib.training.doctor.findings import NOTE, OK, WRONG, Finding

# As in pyproject.toml. Above the last Unsloth 2026.10.9 refuses it.
TORCH_FROM, TORCH_BELOW = (2, 9), (2, 15)
BITSANDBYTES_FROM, BITSANDBYTES_BELOW = (0, 50), (0, 51)
# cuDNN is left out of torch 2.9's Conv3d (pytorch/pytorch #166122, #174051).
SLOW_CONV3D = (2, 9)
PYTORCH_INDEX = "https://download.pytorch.org/whl"
# Distributions that all unpack to the one folder site-packages/triton.
NVIDIA_TRITONS = ("triton", "pytorch-triton")
ROCM_TRITONS = ("triton-rocm", "pytorch-triton-rocm")
TRITONS = (*NVIDIA_TRITONS, *ROCM_TRITONS)

_CDNA_WHY = (
    "up to 0.49 its 4-bit product of one row assumed warps of 32, an MI300X has 64: answers came "
    "out as NaN (bitsandbytes #1885, #1887)"
)


@dataclass(frozen=True, slots=True)
class Platform:
    """One row of the table.

    Attributes:
        name: As in the name of its constraints file.
        constraints: The file of exact versions at the project root.
        command: What sets it up.
        index: pip's index of its torch; None is PyPI.
        torch: The version of that file.
        torchvision: Likewise; None where it must be left out.
        bitsandbytes_why: Why not an older one than `BITSANDBYTES_FROM`.
        tritons: Distributions that may own site-packages/triton there.
        is_conv3d_slow: Whether this torch takes 10 to 20 times as long for a patch embedding.
        note: What else to know.
    """

    name: str
    constraints: str
    command: str
    index: str | None
    torch: str
    torchvision: str | None
    bitsandbytes_why: str
    tritons: tuple[str, ...]
    is_conv3d_slow: bool
    note: str


PLATFORMS = {
    row.name: row
    for row in (
        Platform(
            name="cpu",
            constraints="constraints-cpu.txt",
            command="make setup",
            index=f"{PYTORCH_INDEX}/cpu",
            torch="2.13.0+cpu",
            torchvision=None,
            bitsandbytes_why="its optimizers run on a CPU from 0.50 on (bitsandbytes #1901)",
            tritons=(),
            is_conv3d_slow=False,
            note="torchvision of PyPI is linked with CUDA and keeps Qwen3-VL from being imported",
        ),
        Platform(
            name="rocm6.4",
            constraints="constraints-rocm6.4.txt",
            command="make rocm ROCM=6.4",
            index=f"{PYTORCH_INDEX}/rocm6.4",
            torch="2.9.1+rocm6.4",
            torchvision="0.24.1+rocm6.4",
            bitsandbytes_why=_CDNA_WHY,
            tritons=ROCM_TRITONS,
            is_conv3d_slow=True,
            note="the oldest ROCm that bitsandbytes has a library for",
        ),
        Platform(
            name="rocm7.2",
            constraints="constraints-rocm7.2.txt",
            command="make rocm",
            index=f"{PYTORCH_INDEX}/rocm7.2",
            torch="2.13.0+rocm7.2",
            torchvision="0.28.0+rocm7.2",
            bitsandbytes_why=_CDNA_WHY,
            tritons=ROCM_TRITONS,
            is_conv3d_slow=False,
            note="later ROCm than 7.2 was not tried",
        ),
        Platform(
            name="cuda",
            constraints="constraints-cuda.txt",
            command="make cuda",
            index=None,
            torch="2.13.0",
            torchvision="0.28.0",
            bitsandbytes_why="the versions before were not tried with this transformers and PEFT",
            tritons=NVIDIA_TRITONS,
            is_conv3d_slow=False,
            note="torch is PyPI's own build",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Triton:
    """An installed distribution of triton.

    Attributes:
        name, version: The distribution's.
        is_owner: Whether the library in site-packages/triton is the one that it brought.
    """

    name: str
    version: str
    is_owner: bool

    @property
    def is_for_rocm(self) -> bool:
        # AMD's own images bring a distribution `triton` of version 3.4.0+rocm7.0.0.git…
        return self.name in ROCM_TRITONS or "rocm" in self.version

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Installed:
    """Versions as found.

    Attributes:
        torch: `torch.__version__`, as 2.9.1+rocm6.4.
        hip, cuda: `torch.version`'s; None where torch is not built for it.
        torch_wheel: The distribution's version: PyPI's wheel of 2.13.0+cu130 is called 2.13.0.
        triton_wanted: What torch's own metadata requires, as pytorch-triton-rocm==3.5.1.
    """

    torch: str
    hip: str | None = None
    cuda: str | None = None
    torch_wheel: str | None = None
    bitsandbytes: str | None = None
    tritons: tuple[Triton, ...] = ()
    triton_wanted: str | None = None


def platform_of(found: Installed) -> Platform:
    """The row of the table that is nearest to this torch."""
    if found.hip:
        return PLATFORMS["rocm6.4" if _release(found.hip) < (7, 0) else "rocm7.2"]
    return PLATFORMS["cuda" if found.cuda else "cpu"]


def origin(found: Installed) -> str:
    """Where a torch comes from, by its version's local part."""
    local = found.torch.partition("+")[2]
    # The wheel's name tells PyPI's from the index's; where it has none, only the index knows.
    wheel = found.torch_wheel if found.torch_wheel is not None else found.torch
    if re.fullmatch(r"cpu|cu\d+|rocm\d+(\.\d+){1,2}", local):
        if "+" not in wheel:
            return "PyPI"
        return f"{PYTORCH_INDEX}/{local}"
    if local:
        return "an image's own build"
    return "PyPI or conda"


def fit(found: Installed) -> list[Finding]:
    """What of this machine's versions fits its row of the table and what does not.

    Returns:
        The lines `torch`, `platform`, `bitsandbytes` and `triton`.
    """
    row = platform_of(found)
    return [
        _torch(found, row),
        _platform(found, row),
        _bitsandbytes(found, row),
        _triton(found, row),
    ]


def _release(version: str) -> tuple[int, int]:
    """(2, 9) of 2.9.0a0+50eac811a6.nv25.09, (7, 2) of 7.2.26015-fc0010cf6a."""
    first, second = re.match(r"(\d+)\.(\d+)", version).groups()
    return int(first), int(second)


def _torch(found: Installed, row: Platform) -> Finding:
    told, release = f"torch {found.torch} from {origin(found)}", _release(found.torch)
    if release < TORCH_FROM:
        return Finding(
            "torch",
            WRONG,
            told,
            f"older than {_dotted(TORCH_FROM)}, the oldest that transformers and TRL of this set "
            "were tried with",
            f"{row.command}, or an image with a newer torch",
        )
    if release >= TORCH_BELOW:
        why = f"Unsloth refuses {_dotted(TORCH_BELOW)} and later; transformers and PEFT take it"
        return Finding("torch", NOTE, told, why, f"{row.command}, or model.backend: transformers")
    if release == SLOW_CONV3D:
        why = "its Conv3d is 10 to 20 times slow; training and answers take one product instead"
        return Finding("torch", OK, told, why)
    return Finding("torch", OK, told)


def _platform(found: Installed, row: Platform) -> Finding:
    told = f"{row.name}: {row.constraints}, torch {row.torch}"
    if found.hip and _release(found.hip) < (6, 4):
        why = f"torch is built for ROCm {_dotted(_release(found.hip))}; bitsandbytes has no "
        return Finding("platform", WRONG, told, f"{why}library below 6.4", row.command)
    # Only ROCm's and the CPU's wheels bear their build in the name that the file pins.
    mine = found.torch if row.index else found.torch.partition("+")[0]
    if mine != row.torch:
        why = f"put together with torch {row.torch}, and this is {found.torch}: not tried together"
        fix = f"trust the lines below, which run it; or {row.command}"
        return Finding("platform", NOTE, told, why, fix)
    return Finding("platform", OK, told, row.note)


def _bitsandbytes(found: Installed, row: Platform) -> Finding:
    pin = f"bitsandbytes>={_dotted(BITSANDBYTES_FROM)},<{_dotted(BITSANDBYTES_BELOW)}"
    # --no-deps: with its dependencies it has replaced ROCm's torch by CUDA's (unsloth #4720).
    fix = f"pip install --no-deps '{pin}'"
    if found.bitsandbytes is None:
        why = "the 4-bit base model and the 8-bit optimizers are its work"
        return Finding("bitsandbytes", WRONG, "not installed", why, fix)
    release, told = _release(found.bitsandbytes), f"bitsandbytes {found.bitsandbytes}"
    if release < BITSANDBYTES_FROM:
        return Finding("bitsandbytes", WRONG, told, row.bitsandbytes_why, fix)
    if release >= BITSANDBYTES_BELOW:
        why = f"{_dotted(BITSANDBYTES_BELOW)} and later were not tried"
        return Finding("bitsandbytes", NOTE, told, why, fix)
    return Finding("bitsandbytes", OK, told, row.bitsandbytes_why)


def _triton(found: Installed, row: Platform) -> Finding:
    if not row.tritons:
        told = "; ".join(map(str, found.tritons)) or "none"
        return Finding("triton", OK, f"{told}; a CPU needs none")
    fix = _right_triton(found, row)
    if not found.tritons:
        why = "torch.compile and Unsloth's kernels need it; plain PEFT does without"
        return Finding("triton", NOTE, "none", why, fix)
    owners = [triton for triton in found.tritons if triton.is_owner]
    told = " and ".join(map(str, found.tritons))
    if not owners:
        why = "site-packages/triton is of none of them: one was installed over the other in part"
        return Finding("triton", WRONG, told, why, fix)
    if any(triton.is_for_rocm != bool(found.hip) for triton in owners):
        has, needs = ("NVIDIA's", "ROCm's") if found.hip else ("ROCm's", "NVIDIA's")
        why = (
            f"site-packages/triton is {has} and torch needs {needs}; unsloth_zoo and "
            "cut_cross_entropy bring PyPI's unless they are installed with --no-deps"
        )
        return Finding("triton", WRONG, f"{owners[0]}", why, fix)
    if len(found.tritons) > 1:
        why = f"the files are of {owners[0]}, but removing the other would remove them too"
        return Finding("triton", NOTE, told, why, fix)
    return Finding("triton", OK, f"{owners[0]}, as this torch needs it")


def _right_triton(found: Installed, row: Platform) -> str:
    wanted = found.triton_wanted or row.tritons[-1 if found.hip else 0]
    remove = f"pip uninstall -y {' '.join(TRITONS)}"
    if origin(found) == "an image's own build":
        return f"{remove}; then {wanted} from where the image took torch, or begin a new container"
    index = f" --index-url {PYTORCH_INDEX}/{found.torch.partition('+')[2]}" if found.hip else ""
    return f"{remove}; pip install --no-deps{index} '{wanted}'"


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
