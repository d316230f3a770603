"""Checks of a container image for AMD cards, of open files and of the cache of kernels.

    python -m avomni_lib.training.doctor.image

exits with an error if the image is not usable; `docker/rocm.Dockerfile` runs it as its last step.
It needs no card. *Never run on an AMD card.*
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from avomni_lib.training.doctor import machine, probes
from avomni_lib.training.doctor.machine import NOTE, OK, TRITONS, WRONG, DoctorFinding

LEAST_OPEN_FILES = 4096
CACHE = "TRITON_CACHE_DIR"
UNINSTALL = "pip uninstall -y"


def faults(hip: str | None, wheels: Iterable[str], bitsandbytes_fault: str | None) -> list[str]:
    """Problems of an image for ROCm.

    Args:
        hip: `torch.version.hip`.
        wheels: Names of the installed distributions.
        bitsandbytes_fault: Why it cannot be imported, or None.
    """
    names = {name.lower().replace("_", "-") for name in wheels}
    problems = [] if hip else ["torch is not built for ROCm: torch.version.hip is None"]
    if len(tritons := sorted(names.intersection(TRITONS))) != 1:
        problems.append(f"not one triton but {', '.join(tritons) or 'none'}")
    if bitsandbytes_fault:
        problems.append(f"bitsandbytes cannot be imported: {bitsandbytes_fault}")
    if nvidia := nvidia_wheels(names):
        problems.append(f"wheels for NVIDIA's cards: {', '.join(nvidia)}")
    return problems


def nvidia_wheels(wheels: Iterable[str]) -> list[str]:
    return sorted(name for name in wheels if name.lower().startswith("nvidia-"))


def installed_wheels() -> list[str]:
    return [name for wheel in metadata.distributions() if (name := wheel.metadata["Name"])]


def wheels(hip: str | None) -> DoctorFinding:
    """Whether wheels for NVIDIA's cards are installed beside ROCm's torch."""
    name, nvidia = "nvidia wheels", nvidia_wheels(installed_wheels())
    text = f"{len(nvidia)} installed" if nvidia else "none"
    if not hip or not nvidia:
        return DoctorFinding(name, OK, text)
    why = f"{', '.join(nvidia[:3])} came with a package for CUDA, which replaced ROCm's"
    return DoctorFinding(
        name, WRONG, text, why, f"{UNINSTALL} {' '.join(nvidia)}; then make rocm again"
    )


def open_files() -> DoctorFinding:
    """The limit of open files of this process, for shards, zip files and workers' pipes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft == resource.RLIM_INFINITY or soft >= LEAST_OPEN_FILES:
        return DoctorFinding("open files", OK, text)
    why = f"below {LEAST_OPEN_FILES:,} many workers and cameras at once may run out of them"
    most = "65536" if hard == resource.RLIM_INFINITY else str(min(hard, 65536))
    fix = f"ulimit -n {most}, or docker run --ulimit nofile=65536:65536 …"
    return DoctorFinding("open files", NOTE, text, why, fix)


def triton_cache(on: str) -> DoctorFinding:
    """The folder of compiled kernels, which should be on a persistent disk."""
    name, folder = "triton cache", os.environ.get(CACHE)
    if on == "cpu":
        return DoctorFinding(name, OK, "a CPU needs none")
    if folder is None:
        home = Path("~/.triton/cache").expanduser()
        why = "on a rented machine kernels are compiled again, for minutes, after each new start"
        return DoctorFinding(name, NOTE, str(home), why, f"export {CACHE}=… on a disk that stays")
    place = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    if not os.access(place, os.W_OK):
        why = f"{place} cannot be written to, and no kernel can be compiled"
        return DoctorFinding(name, WRONG, folder, why, f"set {CACHE} to a folder of yours")
    return DoctorFinding(name, OK, folder)


def main() -> int:
    import torch

    fault = None
    try:
        probes.load_bitsandbytes()
    except Exception as error:  # a wrong library fails in many ways
        fault = f"{type(error).__name__}: {error}".partition("\n")[0]
    problems = faults(torch.version.hip, installed_wheels(), fault)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if not problems:
        tritons = ", ".join(map(str, machine.tritons()))
        print(f"torch {torch.__version__}, HIP {torch.version.hip}, {tritons}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
