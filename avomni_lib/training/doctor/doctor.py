"""Runs all checks of this machine and reports what works, what does not, and why.

`examine` runs everything; `check` runs before a training; `optimizer` chooses an optimizer whose
steps are verified.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from avomni_lib import hardware
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.doctor import image, machine, probes
from avomni_lib.training.doctor.machine import OK, WRONG, DoctorFinding, Installed, Report
from avomni_lib.training.forecast import estimate

GATED = "nvidia/PhysicalAI-Autonomous-Vehicles"


def examine(p: Params | None = None) -> Report:
    """All findings: versions, probes, memory, disk, decoder and token.

    Args:
        p: The run's parameters; None checks only the machine.
    """
    has_run, p = p is not None, p or Params.from_values({"extends": "params/mi300x.yaml"})
    device, versions = hardware.device(), machine.installed()
    on, num_processes = device.value, p.training.num_processes if has_run else 1
    refused, cache_bytes = [], None
    if has_run:
        try:
            optimizer(p.training.optimizer, on)
        except AvomniError as error:
            refused = [DoctorFinding.refusal("optimizer", error)]
        with contextlib.suppress(AvomniError):  # `plan` reports it
            cache_bytes = round(estimate.plan_run(p).figures["cache_gb"] * 1e9)
    return Report(
        (
            machine.python(),
            machine.accelerator(device, versions, p.model.base_model, num_processes),
            *machine.fit(versions),
            native_library(versions, on),
            image.wheels(versions.hip),
            machine.unsloth(p.model.backend, on),
            DoctorFinding("attention", OK, ": ".join(hardware.attention(on))),
            # Before the probes, after whose failure the card may not respond.
            *machine.memory(on),
            *probes.run(on),
            *refused,
            machine.shared_memory(num_processes),
            image.open_files(),
            image.triton_cache(on),
            machine.room(p, cache_bytes),
            machine.decoder(p.processing.decoder),
            machine.token(p.dataset.source if has_run else None, p.dataset.repo_id == GATED),
        )
    )


def check(p: Params, choices: Mapping[str, Choice]) -> list[DoctorFinding]:
    """Run the probes that a training relies on, on its device; takes less than a second.

    Args:
        choices: device, quantisation and optimizer, from `load.load_base` and `optimizer`.

    Raises:
        AvomniError: names every failed probe and what to do.
    """
    on = choices["device"].value
    findings = [probes.vision_attention(on), probes.text_attention(on)]
    if choices["quantisation"].value != "none":
        findings.append(probes.four_bit_linear(on))
    if choices["optimizer"].value in probes.OPTIMIZERS:
        findings.append(probes.optimizer_step(choices["optimizer"].value, on))
    if p.training.num_processes > 1:
        findings.append(machine.shared_memory(p.training.num_processes))
    Report(tuple(findings)).raise_if_wrong()
    return findings


def optimizer(wanted: str, on: str) -> Choice:
    """The optimizer by its name in transformers, or the next one whose steps are correct here.

    The order is `paged_adamw_8bit`, `adamw_8bit`, `adamw_torch`; other names are handled by
    `hardware.optimizer`.

    Raises:
        AvomniError: it is unknown, not installed or cannot run on this device; names those that
            can.
    """
    if mistake := hardware.unknown_optimizer(wanted):
        raise AvomniError(mistake[0], where="training.optimizer", fix=mistake[1])
    choice = hardware.optimizer(wanted, on)
    name, module = choice.value, hardware.missing_module(choice.value)
    if name not in probes.OPTIMIZERS:
        fault = f"it needs {module}, which is not installed" if module else None
        if fault := fault or probes.optimizer_fault(name, on):
            usable = [
                o for o in hardware.installed_optimizers() if not probes.optimizer_fault(o, on)
            ]
            raise AvomniError(
                f"the optimizer {name} cannot run here: {fault}",
                where="training.optimizer",
                fix=f"choose one of {', '.join(usable)}",
            )
        return choice
    names, reasons = list(probes.OPTIMIZERS), [choice.reason]
    for name in names[names.index(choice.value) :]:
        finding = probes.optimizer_step(name, on)
        if finding.state == OK:
            proof = f"{probes.NUM_STEPS} steps of it here are AdamW's, {finding.found}"
            return Choice(name, "; ".join([*reasons, proof]))
        reasons.append(f"{name} does not work here ({finding.found})")
    return Choice("adamw_torch", "; ".join([*reasons, "torch's own needs no other package"]))


def native_library(versions: Installed, on: str) -> DoctorFinding:
    """Whether bitsandbytes has loaded the native library for this device."""
    name = "bitsandbytes' library"
    if versions.bitsandbytes is None:
        return DoctorFinding(name, WRONG, "none", "bitsandbytes is not installed")
    try:
        cextension = probes.load_bitsandbytes().cextension
    except Exception as error:  # a wrong library fails in many ways
        reason = str(error).strip().partition("\n")[0][:200]
        why = "bitsandbytes cannot be imported"
        return DoctorFinding(
            name, WRONG, reason, why, "mend the lines torch and bitsandbytes first"
        )
    library = cextension.lib
    kinds = "CPUs" if on == "cpu" else "ROCm" if versions.hip else "CUDA"
    if isinstance(library, cextension.ErrorHandlerMockBNBNativeLibrary):
        has = cextension.get_available_cuda_binary_versions()
        why = f"bitsandbytes found no library for this {kinds}; it has {has}"
        fix = "BNB_ROCM_VERSION=72 (or BNB_CUDA_VERSION) names one of them"
        return DoctorFinding(name, WRONG, "none was loaded", why, fix)
    file = Path(library._lib._name).name
    if on != "cpu" and not library.compiled_with_cuda:
        why = f"it is the one for CPUs, and training computes by {kinds}"
        return DoctorFinding(name, WRONG, file, why, "mend the lines torch and bitsandbytes first")
    return DoctorFinding(name, OK, f"{file}, for {kinds}")
