"""The probes run on the real CPU, pass there, and detect planted faults."""

import functools
import gc
import time

import pytest
import torch
from torch.nn import functional

from avomni_lib.training.doctor import machine, probes

bitsandbytes = probes.load_bitsandbytes()
SDPA = functional.scaled_dot_product_attention
BY_NAME = {
    "4-bit linear": probes.four_bit_linear,
    "paged_adamw_8bit step": functools.partial(probes.optimizer_step, "paged_adamw_8bit"),
    "adamw_8bit step": functools.partial(probes.optimizer_step, "adamw_8bit"),
    "attention, vision tower": probes.vision_attention,
    "attention, language model": probes.text_attention,
}


def num_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.fixture
def sdpa(monkeypatch):
    return lambda broken: monkeypatch.setattr(functional, "scaled_dot_product_attention", broken)


@pytest.fixture
def matmul_4bit(monkeypatch):
    return lambda broken: monkeypatch.setattr(bitsandbytes, "matmul_4bit", broken)


def test_probes_pass_on_this_cpu_within_three_seconds():
    begun = time.process_time()
    findings = probes.run("cpu")
    assert time.process_time() - begun < 3
    assert [finding.name for finding in findings] == list(BY_NAME)
    for finding in findings:
        assert finding.state == "ok", finding
        assert finding.found and finding.why and finding.fix


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_probes_pass_on_this_gpu():
    findings = probes.run("cuda:0")
    assert not [finding for finding in findings if finding.state == "wrong"]


@pytest.mark.parametrize("name", BY_NAME)
def test_probe_is_repeatable_and_leaves_no_state(name: str):
    probe = BY_NAME[name]
    first = probe("cpu")
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    before = num_tensors()
    with torch.no_grad():  # gradients may be turned off by the caller
        again = probe("cpu")
    assert num_tensors() <= before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert again == first


def test_probe_detects_nan_in_one_row_products(matmul_4bit):
    """The fault of bitsandbytes 0.49 on an MI300X: training worked, generation did not."""
    original = bitsandbytes.matmul_4bit

    def of_one_row(rows, *arguments, **named):
        product = original(rows, *arguments, **named)
        return product * float("nan") if len(rows) == 1 else product

    matmul_4bit(of_one_row)
    finding = probes.four_bit_linear("cpu")
    assert finding.state == "wrong"
    assert finding.found == "a product of 1 row(s) is off by nan%"
    low, high = machine.BITSANDBYTES_FROM, machine.BITSANDBYTES_BELOW
    assert f"bitsandbytes>={low[0]}.{low[1]},<{high[0]}.{high[1]}" in finding.fix


def test_probe_detects_a_wrong_4_bit_gradient(matmul_4bit):
    original = bitsandbytes.matmul_4bit

    def with_a_gradient_too_long(rows, *arguments, **named):
        product = original(rows, *arguments, **named)
        return product + 0.2 * (product - product.detach()) if product.requires_grad else product

    matmul_4bit(with_a_gradient_too_long)
    finding = probes.four_bit_linear("cpu")
    assert (finding.state, finding.found) == ("wrong", "backward is off by 20%")


def test_probe_detects_a_lost_block_of_weights(monkeypatch):
    original = bitsandbytes.functional.dequantize_4bit

    def without_a_block(*arguments, **named):
        weight = original(*arguments, **named).clone()
        weight[3, 64:128] = 0
        return weight

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", without_a_block)
    finding = probes.four_bit_linear("cpu")
    assert finding.state == "wrong" and "a block of weights is off by 100%" in finding.found


def test_probe_reports_the_error_of_the_library(matmul_4bit):
    def die(*_, **__):
        raise RuntimeError("HIP error: invalid device function\nCompile with `TORCH_USE_HIP_DSA`")

    matmul_4bit(die)
    finding = probes.four_bit_linear("cpu")
    assert finding.state == "wrong"
    assert finding.found == "fails: HIP error: invalid device function"


@pytest.mark.parametrize("name", probes.OPTIMIZERS)
def test_probe_detects_an_optimizer_without_updates(name: str, monkeypatch):
    monkeypatch.setattr(
        bitsandbytes.functional, "optimizer_update_8bit_blockwise", lambda *_, **__: None
    )
    finding = probes.optimizer_step(name, "cpu")
    assert (finding.state, finding.found) == ("wrong", "the way of four steps is off by 100%")
    assert finding.fix.endswith("adamw_torch")


def test_probe_detects_32_bit_optimizer_moments(monkeypatch):
    original = bitsandbytes.optim.AdamW

    def of_32_bits(parameters, optim_bits, **named):
        return original(parameters, optim_bits=32, **named)

    monkeypatch.setattr(bitsandbytes.optim, "AdamW", of_32_bits)
    finding = probes.optimizer_step("adamw_8bit", "cpu")
    assert finding.state == "wrong" and "the width of its moments" in finding.found


@pytest.mark.parametrize("probe", [probes.vision_attention, probes.text_attention])
def test_probe_detects_random_attention_output(probe, sdpa):
    sdpa(lambda q, k, v, **options: SDPA(q, k, v, **options) * 0 + torch.rand_like(q))
    assert probe("cpu").state == "wrong"


def test_only_the_text_probe_detects_attention_that_ignores_strides(sdpa):
    """The fault of ROCm/pytorch #3230 and vLLM #27744; the vision tower uses copies."""

    def blind_to_strides(q, k, v, **options):
        strides = torch.empty(v.shape, device="meta").stride()
        return SDPA(q, k, v.as_strided(v.shape, strides), **options)

    sdpa(blind_to_strides)
    finding = probes.text_attention("cpu")
    assert finding.state == "wrong" and "is off by" in finding.found
    assert probes.vision_attention("cpu").state == "ok"


def test_probe_detects_non_causal_attention(sdpa):
    sdpa(lambda q, k, v, is_causal=False, **options: SDPA(q, k, v, **options))
    finding = probes.text_attention("cpu")
    assert finding.state == "wrong"
    assert "causal forward" in finding.found and "masked" not in finding.found


def test_probe_detects_attention_without_the_mask(sdpa):
    def without_mask(q, k, v, attn_mask=None, is_causal=False, **options):
        return SDPA(q, k, v, is_causal=True, **options)

    sdpa(without_mask)
    finding = probes.text_attention("cpu")
    assert "masked forward" in finding.found and "causal" not in finding.found
