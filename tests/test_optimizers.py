"""An optimizer that cannot run is refused, with alternatives, before a model is loaded."""

import json

import pytest
from transformers.training_args import OptimizerNames

from avomni_lib import hardware
from avomni_lib.__main__ import main
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.doctor import doctor, probes
from avomni_lib.training.fit import trainer, worker
from avomni_lib.training.model import load as model
from tests import training_set

NEEDS_A_PACKAGE = [
    name for name, module in hardware.OPTIMIZERS.items() if hardware.missing_module(name)
]
# For other hardware, or with arguments that are not supported.
NEVER = [
    optimizer.value for optimizer in OptimizerNames if optimizer.value not in hardware.OPTIMIZERS
]


@pytest.fixture
def no_model(monkeypatch):
    def load(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(model, "load_base", load)


def test_optimizer_names_are_known_to_transformers():
    known = {optimizer.value for optimizer in OptimizerNames}
    assert hardware.OPTIMIZERS.keys() <= known
    parts = ("xla", "npu", "galore", "apollo", "lomo")
    assert all(any(part in name for part in parts) for name in NEVER)
    assert NEEDS_A_PACKAGE and len(NEVER) == 12


@pytest.mark.parametrize("name", [*NEVER, "adam", "adamw_9bit", "ADAMW_TORCH"])
def test_unknown_optimizer_is_refused(name, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"training:\n  optimizer: {json.dumps(name)}\n")
    with pytest.raises(AvomniError, match="unknown optimizer") as caught:
        Params.from_files([path])
    assert "choose one of adamw_torch, adamw_torch_fused, adafactor, sgd" in str(caught.value)


@pytest.mark.parametrize("name", NEEDS_A_PACKAGE)
def test_optimizer_with_a_missing_package_is_refused_with_alternatives(name):
    with pytest.raises(AvomniError, match=f"{name} cannot run here: it needs ") as caught:
        doctor.optimizer(name, "cpu")
    assert hardware.missing_module(name) in caught.value.what
    for usable in ("adamw_torch", "adafactor", "lion_8bit", "paged_lion_32bit", "rmsprop_bnb"):
        assert usable in caught.value.fix
    assert name not in caught.value.fix.split(", ")


def test_training_plan_and_doctor_refuse_an_optimizer_before_loading(
    base_folder, tmp_path, no_model, capsys
):
    p = training_set.params(tmp_path, base_folder, training={"optimizer": "grokadamw"})
    for refuse in (
        lambda: worker.work(p, windows=training_set.Stripes(8)),
        lambda: trainer.plan(p),
    ):
        with pytest.raises(AvomniError, match="needs grokadamw, which is not installed"):
            refuse()
    path = tmp_path / "params.yaml"
    path.write_text("training:\n  optimizer: grokadamw\n")
    for command, ended in (("doctor", 1), ("plan", 0)):
        assert main([command, str(path)]) == ended
        printed = " ".join(capsys.readouterr().out.split())
        assert "needs grokadamw, which is not installed" in printed


def test_optimizer_without_a_kernel_is_refused(monkeypatch):
    """An 8-bit optimizer on a device for which its library has no kernel."""
    import bitsandbytes

    def without_a_kernel(*_, **__):
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim, "Lion", without_a_kernel)
    with pytest.raises(AvomniError, match="lion_8bit cannot run here: no kernel") as caught:
        doctor.optimizer("lion_8bit", "cpu")
    assert "adamw_torch" in caught.value.fix and "lion" not in caught.value.fix
    monkeypatch.setattr(bitsandbytes.optim.RMSprop, "step", lambda self, closure=None: None)
    assert probes.optimizer_fault("rmsprop_bnb", "cpu") == "a step of it does not move a weight"


@pytest.mark.parametrize("name", [n for n in hardware.OPTIMIZERS if n not in NEEDS_A_PACKAGE])
def test_each_chosen_optimizer_runs_a_step(name):
    taken = doctor.optimizer(name, "cpu").value
    assert taken == hardware.optimizer(name, "cpu").value
    assert probes.optimizer_fault(taken, "cpu") is None
