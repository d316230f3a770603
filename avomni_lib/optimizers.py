"""The optimizers that can train an adapter, by transformers' names for them (`optim`).

Left out are those of other hardware (`…_xla`, `…_npu_fused`) and those that need more than a name:
GaLore and APOLLO are told which modules to project, LOMO steps within the backward pass.
"""

from __future__ import annotations

import difflib
from importlib import util

# Name -> the module that it needs besides torch and transformers.
OPTIMIZERS: dict[str, str | None] = {
    "adamw_torch": None,
    "adamw_torch_fused": None,
    "adafactor": None,
    "sgd": None,
    "adagrad": None,
    "rmsprop": None,
    "adamw_8bit": "bitsandbytes",
    "adamw_bnb_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "paged_adamw_32bit": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "ademamix_8bit": "bitsandbytes",
    "paged_ademamix_8bit": "bitsandbytes",
    "paged_ademamix_32bit": "bitsandbytes",
    "lion_8bit": "bitsandbytes",
    "lion_32bit": "bitsandbytes",
    "paged_lion_8bit": "bitsandbytes",
    "paged_lion_32bit": "bitsandbytes",
    "rmsprop_bnb": "bitsandbytes",
    "rmsprop_bnb_8bit": "bitsandbytes",
    "rmsprop_bnb_32bit": "bitsandbytes",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_anyprecision": "torchdistx",
    "grokadamw": "grokadamw",
    "schedule_free_adamw": "schedulefree",
    "schedule_free_radam": "schedulefree",
    "schedule_free_sgd": "schedulefree",
    "stable_adamw": "optimi",
}


def installed() -> list[str]:
    """The names whose modules are installed here."""
    return [name for name in OPTIMIZERS if missing(name) is None]


def missing(name: str) -> str | None:
    """The module that an optimizer needs and that is not installed here, or None."""
    module = OPTIMIZERS[name]
    return module if module is not None and util.find_spec(module) is None else None


def mistake(name: str) -> tuple[str, str] | None:
    """What is wrong with a name, and what to do, on whatever machine; None where nothing is."""
    if name in OPTIMIZERS:
        return None
    near = difflib.get_close_matches(name, OPTIMIZERS, n=3, cutoff=0.4)
    told = f"near it are {', '.join(near)}; " if near else ""
    return f"unknown optimizer {name!r}", f"{told}choose one of {', '.join(installed())}"
