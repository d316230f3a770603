"""What an image for an AMD card must hold, and how long what is compiled on it lasts.

    python -m avomni_lib.training.doctor.image

ends with an error where the image must not be used: `docker/rocm.Dockerfile` runs it as its last
step. No card is needed for it. *Never run on an AMD card.*
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from avomni_lib.training.doctor import machine, probes
from avomni_lib.training.doctor.machine import NOTE, OK, TRITONS, WRONG, Finding

LEAST_OPEN_FILES = 4096
CACHE = "TRITON_CACHE_DIR"
UNINSTALL = "pip uninstall -y"


def faults(hip: str | None, wheels: Iterable[str], bitsandbytes_fault: str | None) -> list[str]:
    """What is wrong with an image for ROCm, in words.

    Args:
        hip: `torch.version.hip`.
        wheels: Names of the installed distributions.
        bitsandbytes_fault: Why it cannot be imported, or None.
    """
    names = {name.lower().replace("_", "-") for name in wheels}
    found = [] if hip else ["torch is not built for ROCm: torch.version.hip is None"]
    if len(tritons := sorted(names.intersection(TRITONS))) != 1:
        found.append(f"not one triton but {', '.join(tritons) or 'none'}")
    if bitsandbytes_fault:
        found.append(f"bitsandbytes cannot be imported: {bitsandbytes_fault}")
    if nvidia := nvidia_wheels(names):
        found.append(f"wheels for NVIDIA's cards: {', '.join(nvidia)}")
    return found


def nvidia_wheels(wheels: Iterable[str]) -> list[str]:
    return sorted(name for name in wheels if name.lower().startswith("nvidia-"))


def installed_wheels() -> list[str]:
    return [name for each in metadata.distributions() if (name := each.metadata["Name"])]


def wheels(hip: str | None) -> Finding:
    """Whether wheels for another maker's cards lie beside ROCm's torch."""
    name, found = "nvidia wheels", nvidia_wheels(installed_wheels())
    text = f"{len(found)} installed" if found else "none"
    if not hip or not found:
        return Finding(name, OK, text)
    why = f"{', '.join(found[:3])} came with a package that is CUDA's, over ROCm's own"
    return Finding(name, WRONG, text, why, f"{UNINSTALL} {' '.join(found)}; then make rocm again")


def open_files() -> Finding:
    """The limit of open files of this process: shards, cameras' zips and workers' pipes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft == resource.RLIM_INFINITY or soft >= LEAST_OPEN_FILES:
        return Finding("open files", OK, text)
    why = f"below {LEAST_OPEN_FILES:,} many workers and cameras at once may run out of them"
    most = "65536" if hard == resource.RLIM_INFINITY else str(min(hard, 65536))
    fix = f"ulimit -n {most}, or docker run --ulimit nofile=65536:65536 …"
    return Finding("open files", NOTE, text, why, fix)


def triton_cache(on: str) -> Finding:
    """Where compiled kernels lie: on a rented machine they should outlive it."""
    name, own = "triton cache", os.environ.get(CACHE)
    if on == "cpu":
        return Finding(name, OK, "a CPU needs none")
    if own is None:
        home = Path("~/.triton/cache").expanduser()
        why = "on a rented machine kernels are compiled again, for minutes, after each new start"
        return Finding(name, NOTE, str(home), why, f"export {CACHE}=… on a disk that stays")
    place = next(path for path in (Path(own), *Path(own).parents) if path.exists())
    if not os.access(place, os.W_OK):
        why = f"{place} cannot be written to, and no kernel can be compiled"
        return Finding(name, WRONG, own, why, f"set {CACHE} to a folder of yours")
    return Finding(name, OK, own)


def main() -> int:
    import torch

    fault = None
    try:
        probes.load_bitsandbytes()
    except Exception as error:  # a library of the wrong kind fails in many ways
        fault = f"{type(error).__name__}: {error}".partition("\n")[0]
    found = faults(torch.version.hip, installed_wheels(), fault)
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if not found:
        kept = [str(each) for each in machine.tritons()]
        print(f"torch {torch.__version__}, HIP {torch.version.hip}, {', '.join(kept)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
