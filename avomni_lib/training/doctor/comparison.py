"""A probe's run: what a library computes on a device beside what is right, and how far apart.

Inputs come from a generator of its own: torch's random state is as it was before.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from avomni_lib import hardware
from avomni_lib.training.doctor.findings import OK, WRONG, Finding

if TYPE_CHECKING:
    import torch

# Of the norm of what is right: bfloat16 is off by 0.004, a wrong kernel by 0.1 and more.
BOUND = 0.02


class Deviation(NamedTuple):
    """How far a result is from what is right, as a share of its norm, and how far it may be."""

    what: str
    error: float
    bound: float = BOUND


def judge(
    name: str,
    on: str,
    work: Callable[[torch.device], list[Deviation]],
    *,
    why: str,
    fix: str,
) -> Finding:
    """Run `work` on a device, as `cpu` or `cuda:0`, and hold its deviations against their bounds.

    NaN is beyond every bound, and what `work` raises is a finding too.
    """
    import torch

    device = torch.device(on)
    try:
        # Layers draw their first weights on the CPU, whatever the device.
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deviations = work(device)
            wait(device)
    except Exception as error:  # whatever the libraries die of is the answer
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(name, WRONG, f"fails: {reason[:200]}", why, fix)
    finally:
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # after a fault of the card nothing works
                torch.cuda.empty_cache()
    beyond = [each for each in deviations if not each.error <= each.bound]
    if beyond:
        told = ", ".join(f"{each.what} is off by {_percent(each.error)}" for each in beyond)
        return Finding(name, WRONG, told, why, fix)
    tightest = min(each.bound for each in deviations)
    worst = max(each.error for each in deviations if each.bound == tightest)
    return Finding(name, OK, f"right to {_percent(worst)}", why, fix)


def drawer() -> Callable[..., torch.Tensor]:
    """Normal numbers on the CPU, float32: the same ones in every probe and on every machine."""
    import torch

    generator = torch.Generator(device="cpu").manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu")


def dtype_of(device: torch.device) -> torch.dtype:
    """The dtype that training computes in there."""
    import torch

    return getattr(torch, hardware.dtype(str(device)).value)


def apart(made: torch.Tensor, right: torch.Tensor) -> float:
    """The norm of their difference, as a share of the norm of what is right."""
    made, right = (values.detach().float().cpu() for values in (made, right))
    return float((made - right).norm() / right.norm())


def seconds(compute: Callable[[], torch.Tensor], device: torch.device) -> float:
    """How long one call takes, until the device is through with it."""
    wait(device)
    begun = time.perf_counter()
    compute()
    wait(device)
    return time.perf_counter() - begun


def wait(device: torch.device) -> None:
    """Until the device has computed what it was given; its errors are raised here."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _percent(error: float) -> str:
    percent = 100 * max(error, 1e-4) if error == error else error
    return f"{percent:.{0 if percent >= 10 else 2}f} %"
