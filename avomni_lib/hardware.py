"""This machine, and the choices that follow from it, each a (value, reason).

torch is imported only by the functions that look for an accelerator; `provenance` names the device
only in a process that has already imported torch.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

from avomni_lib.errors import AvomniError
from avomni_lib.files import PROJECT_ROOT

PACKAGES = (
    *("avomni", "accelerate", "av", "bitsandbytes", "datasets", "decord", "huggingface_hub"),
    *("numpy", "panda3d", "papermill", "peft", "pyarrow", "torch", "transformers", "trl"),
    "unsloth",
)

CARD = "AVOMNI_CARD"  # index of the GPU that a process without torchrun uses; default 0

# Module needed besides torch and transformers -> names (transformers' `optim`) of the optimizers
# that can train an adapter. Optimizers for other hardware are left out (`…_xla`, `…_npu_fused`), as
# are those that need more than a name: GaLore and APOLLO need the modules to project, LOMO steps
# within the backward pass.
_OPTIMIZERS_BY_MODULE = {
    None: "adamw_torch adamw_torch_fused adafactor sgd adagrad rmsprop",
    "bitsandbytes": "adamw_8bit adamw_bnb_8bit paged_adamw_8bit paged_adamw_32bit "
    "ademamix ademamix_8bit paged_ademamix_8bit paged_ademamix_32bit "
    "lion_8bit lion_32bit paged_lion_8bit paged_lion_32bit "
    "rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit",
    "torchao": "adamw_torch_4bit adamw_torch_8bit",
    "torchdistx": "adamw_anyprecision",
    "grokadamw": "grokadamw",
    "schedulefree": "schedule_free_adamw schedule_free_radam schedule_free_sgd",
    "optimi": "stable_adamw",
}
OPTIMIZERS: dict[str, str | None] = {
    name: module for module, names in _OPTIMIZERS_BY_MODULE.items() for name in names.split()
}

# Paged optimizers whose non-paged variant is not named by dropping `paged_`.
PLAIN = {"paged_adamw_32bit": "adamw_torch", "paged_ademamix_32bit": "ademamix"}


class Choice(NamedTuple):
    """A value that was chosen automatically, and why."""

    value: Any
    reason: str


class Memory(NamedTuple):
    """Total and free bytes."""

    total: int
    free: int


def num_cards() -> int:
    """Number of accelerators that torch sees."""
    import torch

    return int(torch.cuda.device_count())


def device() -> Choice:
    """`cuda:N` if torch sees an accelerator (ROCm devices are named so too), else `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return Choice("cpu", f"torch {torch.__version__} sees no accelerator")
    # A process uses one GPU; torchrun puts its index into LOCAL_RANK.
    variable = "LOCAL_RANK" if "TORCHELASTIC_RUN_ID" in os.environ else CARD
    index = int(os.environ.get(variable, 0))
    card = torch.cuda.get_device_properties(index)
    kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    arch = getattr(card, "gcnArchName", f"sm_{card.major}{card.minor}")
    memory = card.total_memory / 1e9
    return Choice(f"cuda:{index}", f"{card.name} ({arch}, {memory:.0f} GB) by {kind}")


def dtype(on: str) -> Choice:
    """The name of the torch dtype to compute in."""
    if on == "cpu":
        return Choice("float32", "bfloat16 is some 7 times slower on a CPU without AMX")
    import torch

    if torch.cuda.is_bf16_supported():
        reason = "the accelerator computes it natively, and it needs no loss scale"
        return Choice("bfloat16", reason)
    return Choice("float32", "the accelerator has no bfloat16")


def attention(on: str) -> Choice:
    """The name of transformers' attention implementation to use."""
    where = "a CPU" if on == "cpu" else "ROCm and CUDA alike"
    return Choice("sdpa", f"torch's own, it runs on {where} and needs no other package")


def backend(wanted: str, on: str) -> Choice:
    """The library that loads and patches the model: `unsloth` or `transformers`.

    Raises:
        AvomniError: `wanted` is `unsloth`, and it cannot work here.
    """
    installed = util.find_spec("unsloth") is not None
    if wanted == "unsloth" and (on == "cpu" or not installed):
        lacks = "has no accelerator" if on == "cpu" else "has no package unsloth"
        raise AvomniError(
            f"Unsloth trains vision models on an accelerator only, and this machine {lacks}",
            where="model.backend",
            fix="set model.backend: auto"
            + ("" if on == "cpu" else ", or install it: pip install --no-deps unsloth unsloth_zoo"),
        )
    if wanted != "auto":
        return Choice(wanted, "asked for by model.backend")
    if on == "cpu":
        return Choice("transformers", "Unsloth trains no vision model on a CPU; plain PEFT does")
    if not installed:
        return Choice("transformers", "unsloth is not installed; plain PEFT does the same, slower")
    return Choice("unsloth", "an accelerator is there and unsloth is installed")


def installed_optimizers() -> list[str]:
    """Names of the optimizers whose modules are installed here."""
    return [name for name in OPTIMIZERS if missing_module(name) is None]


def missing_module(optimizer: str) -> str | None:
    """The module that an optimizer needs if it is not installed here, else None."""
    module = OPTIMIZERS[optimizer]
    return module if module is not None and util.find_spec(module) is None else None


def unknown_optimizer(name: str) -> tuple[str, str] | None:
    """(mistake, fix) for a name that is no optimizer on any machine; None for a known one."""
    if name in OPTIMIZERS:
        return None
    near = difflib.get_close_matches(name, OPTIMIZERS, n=3, cutoff=0.4)
    hint = f"near it are {', '.join(near)}; " if near else ""
    return f"unknown optimizer {name!r}", f"{hint}choose one of {', '.join(installed_optimizers())}"


def optimizer(wanted: str, on: str) -> Choice:
    """The name of the wanted optimizer, or of the closest one that works here."""
    if "8bit" in wanted and util.find_spec("bitsandbytes") is None:
        return Choice("adamw_torch", f"{wanted} needs bitsandbytes, which is not installed")
    if wanted.startswith("paged_") and on == "cpu":
        plain = PLAIN.get(wanted, wanted.removeprefix("paged_"))
        return Choice(plain, f"{wanted} pages between GPU and host memory; there is no GPU")
    return Choice(wanted, "asked for by training.optimizer")


def host_memory() -> Memory:
    """The machine's memory."""
    import psutil

    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.available)


def device_memory(on: str) -> Memory | None:
    """The accelerator's memory, or None on a CPU."""
    if on == "cpu":
        return None
    import torch

    free, total = torch.cuda.mem_get_info(on)
    return Memory(total, free)


def peak_memory(on: str = "cpu") -> dict[str, float]:
    """Peak memory of this process so far in GB (1e9), on the host and on the device."""
    peak = {"host_gb": _peak_gb(resource.RUSAGE_SELF)}
    # On Linux, ru_maxrss starts with the peak of the parent process.
    with contextlib.suppress(OSError, KeyError):
        text = Path("/proc/self/status").read_text()
        status = dict(line.split(":", 1) for line in text.splitlines())
        peak["host_gb"] = int(status["VmHWM"].split()[0]) * 1024 / 1e9
    if on != "cpu":
        import torch

        peak["device_gb"] = torch.cuda.max_memory_allocated(on) / 1e9
    return peak


def release_memory() -> None:
    """Free unused memory, including the accelerator's, for other processes."""
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_host_gb() -> float:
    """Peak host memory of this process or of a finished child, whichever is larger, GB (1e9)."""
    return max(peak_memory()["host_gb"], _peak_gb(resource.RUSAGE_CHILDREN))


def _peak_gb(who: int) -> float:
    # ru_maxrss counts KiB on Linux and bytes on macOS.
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that a result depends on; None for missing ones."""
    installed: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


@functools.cache
def git_commit() -> str | None:
    """The working tree's commit, with `+changes` if files differ from it; None outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *words]
        return subprocess.check_output(
            command, text=True, timeout=10, stderr=subprocess.DEVNULL
        ).strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> dict[str, Any]:
    """The environment that a result was made in; with the device if torch is in use."""
    made_with = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "host_memory_gb": round(host_memory().total / 1e9, 1),
        "git_commit": git_commit(),
        "packages": versions(),
    }
    if "torch" in sys.modules:
        made_with["device"] = device()._asdict()
    return made_with
