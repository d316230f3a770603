"""Removes environment variables that would silently change training or inference.

Precision, parallelism and compilation are determined by the parameters and by the choices of
`load.choose`, which are shown. A variable left in a shell must not override them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

log = logging.getLogger(__name__)

# Accelerate and transformers read precision, devices, FSDP, DeepSpeed and torch.compile from these.
PREFIX = "ACCELERATE_"
# Variables that lower the precision of float32 products in libraries, and Unsloth's switches.
NAMES = frozenset(
    {
        "NVIDIA_TF32_OVERRIDE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "HIPBLASLT_ALLOW_TF32",
        "TRITON_F32_DEFAULT",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "DNNL_DEFAULT_FPMATH_MODE",
        "UNSLOTH_TP_SIZE",
        "UNSLOTH_PP_SIZE",
        "UNSLOTH_FSDP2",
        "UNSLOTH_FORCE_FLOAT32",
        "UNSLOTH_FORCE_CUSTOM_DTYPE",
        "UNSLOTH_MIXED_PRECISION",
    }
)
# Ranks set by torchrun and MPI, which Accelerate reads.
RANKS = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"})
RANKS |= {"MASTER_PORT", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"}
RANK_PREFIXES = ("PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "MPI_LOCAL")
TORCHRUN = "TORCHELASTIC_RUN_ID"  # set by torchrun in every process that it starts


def clean() -> list[str]:
    """Remove these variables from this process before libraries read them.

    Returns:
        Their names, sorted.
    """
    names = sorted(name for name in os.environ if _is_ignored(name))
    for name in names:
        del os.environ[name]
    if names:
        log.warning("not taken from the environment: %s", ", ".join(names))
    return names


def for_a_training(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for starting a training or torchrun, without ranks of another launcher."""
    return {
        name: value
        for name, value in environ.items()
        if not _is_rank(name) and not name.startswith(("TORCHELASTIC_", "PET_"))
    }


def by_torchrun(name: str, default: int) -> int:
    """A number set by torchrun; the default if torchrun did not start this process."""
    return int(os.environ.get(name, default)) if TORCHRUN in os.environ else default


def _is_ignored(name: str) -> bool:
    if _is_rank(name):
        return TORCHRUN not in os.environ
    if "unsloth" in sys.modules and name.startswith((PREFIX, "UNSLOTH_")):
        return False  # Unsloth sets these itself on import
    return name.startswith(PREFIX) or name in NAMES


def _is_rank(name: str) -> bool:
    return name in RANKS or name.startswith(RANK_PREFIXES)
