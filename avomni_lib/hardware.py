"""This machine, and the choices that follow from it: each one a (value, reason).

torch is imported only by the functions that look for an accelerator, and only `provenance` of a
process that already uses torch names it: counting and planning work without.
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

CARD = "AVOMNI_CARD"  # which card a process without torchrun drives, if not the first

# The optimizers that can train an adapter, by transformers' names for them (`optim`) -> the module
# that each needs besides torch and transformers. Left out are those of other hardware (`…_xla`,
# `…_npu_fused`) and those that need more than a name: GaLore and APOLLO need the modules to
# project, LOMO steps within the backward pass.
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

# Optimizers whose names without pages are not their own without `paged_`.
PLAIN = {"paged_adamw_32bit": "adamw_torch", "paged_ademamix_32bit": "ademamix"}


class Choice(NamedTuple):
    """A value that was chosen for the user, and why."""

    value: Any
    reason: str


class Memory(NamedTuple):
    """Bytes in all and bytes free."""

    total: int
    free: int


def num_cards() -> int:
    """Accelerators that torch sees."""
    import torch

    return int(torch.cuda.device_count())


def device() -> Choice:
    """`cuda` where torch sees an accelerator (ROCm's too, it bears that name), else `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return Choice("cpu", f"torch {torch.__version__} sees no accelerator")
    # One process drives one card, whose number torchrun puts into LOCAL_RANK.
    by = "LOCAL_RANK" if "TORCHELASTIC_RUN_ID" in os.environ else CARD
    index = int(os.environ.get(by, 0))
    card = torch.cuda.get_device_properties(index)
    kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    arch = getattr(card, "gcnArchName", f"sm_{card.major}{card.minor}")
    memory = card.total_memory / 1e9
    return Choice(f"cuda:{index}", f"{card.name} ({arch}, {memory:.0f} GB) by {kind}")


def dtype(on: str) -> Choice:
    """The dtype of the arithmetic, by torch's name for it."""
    if on == "cpu":
        return Choice("float32", "bfloat16 is some 7 times slower on a CPU without AMX")
    import torch

    if torch.cuda.is_bf16_supported():
        reason = "the accelerator computes it natively, and it needs no loss scale"
        return Choice("bfloat16", reason)
    return Choice("float32", "the accelerator has no bfloat16")


def attention(on: str) -> Choice:
    """The attention implementation, by transformers' name for it."""
    where = "a CPU" if on == "cpu" else "ROCm and CUDA alike"
    return Choice("sdpa", f"torch's own, it runs on {where} and needs no other package")


def backend(wanted: str, on: str) -> Choice:
    """Who loads and patches the model: `unsloth` or `transformers`.

    Raises:
        AvomniError: Unsloth is asked for by name where it cannot work.
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
    """The names of `OPTIMIZERS` whose modules are installed here."""
    return [name for name in OPTIMIZERS if missing_module(name) is None]


def missing_module(optimizer: str) -> str | None:
    """The module that an optimizer needs and that is not installed here, or None."""
    module = OPTIMIZERS[optimizer]
    return module if module is not None and util.find_spec(module) is None else None


def unknown_optimizer(name: str) -> tuple[str, str] | None:
    """What is wrong with a name, and what to do, on whatever machine; None if it is known."""
    if name in OPTIMIZERS:
        return None
    near = difflib.get_close_matches(name, OPTIMIZERS, n=3, cutoff=0.4)
    hint = f"near it are {', '.join(near)}; " if near else ""
    return f"unknown optimizer {name!r}", f"{hint}choose one of {', '.join(installed_optimizers())}"


def optimizer(wanted: str, on: str) -> Choice:
    """The optimizer by transformers' name for it, or the nearest one that works here."""
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
    """The most that this process held so far in GB (1e9), on the host and on the device."""
    peak = {"host_gb": _peak_gb(resource.RUSAGE_SELF)}
    # Linux lets ru_maxrss begin with what the process that started this one held.
    with contextlib.suppress(OSError, KeyError):
        text = Path("/proc/self/status").read_text()
        status = dict(line.split(":", 1) for line in text.splitlines())
        peak["host_gb"] = int(status["VmHWM"].split()[0]) * 1024 / 1e9
    if on != "cpu":
        import torch

        peak["device_gb"] = torch.cuda.max_memory_allocated(on) / 1e9
    return peak


def release_memory() -> None:
    """Give back what nothing uses: another process may want the accelerator's."""
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_of_children() -> float:
    """The most that one of this process's ended children held, GB (1e9), on the host."""
    return _peak_gb(resource.RUSAGE_CHILDREN)


def _peak_gb(who: int) -> float:
    # ru_maxrss counts KiB on Linux and bytes on macOS.
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that a result depends on; None where one is missing."""
    installed: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


@functools.cache
def git_commit() -> str | None:
    """The working tree's commit, `+changes` where files differ from it; None outside git."""

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
    """What a result was made with; the device is named where torch is in use."""
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
