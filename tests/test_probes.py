"""The probes run for real on the CPU, find it right, and find out what is broken under them."""

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


def test_this_cpu_is_right_and_is_found_so_in_time():
    begun = time.process_time()
    findings = probes.run("cpu")
    assert time.process_time() - begun < 3
    assert [finding.name for finding in findings] == list(BY_NAME)
    for finding in findings:
        assert finding.state == "ok", finding
        assert finding.found and finding.why and finding.fix


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_this_accelerator_is_right():
    findings = probes.run("cuda:0")
    assert not [finding for finding in findings if finding.state == "wrong"]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_probe_leaves_no_trace_and_finds_the_same_again(name: str):
    probe = BY_NAME[name]
    first = probe("cpu")
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    kept = num_tensors()
    with torch.no_grad():  # whatever the caller is about
        again = probe("cpu")
    assert num_tensors() <= kept
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert again == first


def test_nan_in_the_product_of_one_row_is_wrong(matmul_4bit):
    """What bitsandbytes 0.49 did on an MI300X: training went well, answers did not."""
    right = bitsandbytes.matmul_4bit

    def of_one_row(rows, *arguments, **named):
        made = right(rows, *arguments, **named)
        return made * float("nan") if len(rows) == 1 else made

    matmul_4bit(of_one_row)
    finding = probes.four_bit_linear("cpu")
    assert finding.state == "wrong"
    assert finding.found == "a product of 1 row(s) is off by nan%"
    low, high = machine.BITSANDBYTES_FROM, machine.BITSANDBYTES_BELOW
    assert f"bitsandbytes>={low[0]}.{low[1]},<{high[0]}.{high[1]}" in finding.fix


def test_a_wrong_gradient_of_the_4_bit_layer_is_wrong(matmul_4bit):
    right = bitsandbytes.matmul_4bit

    def with_a_gradient_too_long(rows, *arguments, **named):
        made = right(rows, *arguments, **named)
        return made + 0.2 * (made - made.detach()) if made.requires_grad else made

    matmul_4bit(with_a_gradient_too_long)
    finding = probes.four_bit_linear("cpu")
    assert (finding.state, finding.found) == ("wrong", "backward is off by 20%")


def test_one_block_of_weights_that_is_lost_is_wrong(monkeypatch):
    right = bitsandbytes.functional.dequantize_4bit

    def without_a_block(*arguments, **named):
        weight = right(*arguments, **named).clone()
        weight[3, 64:128] = 0
        return weight

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", without_a_block)
    finding = probes.four_bit_linear("cpu")
    assert finding.state == "wrong" and "a block of weights is off by 100%" in finding.found


def test_what_a_library_dies_of_is_the_answer(matmul_4bit):
    def die(*_, **__):
        raise RuntimeError("HIP error: invalid device function\nCompile with `TORCH_USE_HIP_DSA`")

    matmul_4bit(die)
    finding = probes.four_bit_linear("cpu")
    assert finding.state == "wrong"
    assert finding.found == "fails: HIP error: invalid device function"


@pytest.mark.parametrize("name", probes.OPTIMIZERS)
def test_an_optimizer_that_does_not_move_is_wrong(name: str, monkeypatch):
    monkeypatch.setattr(
        bitsandbytes.functional, "optimizer_update_8bit_blockwise", lambda *_, **__: None
    )
    finding = probes.optimizer_step(name, "cpu")
    assert (finding.state, finding.found) == ("wrong", "the way of four steps is off by 100%")
    assert finding.fix.endswith("adamw_torch")


def test_an_optimizer_whose_moments_are_not_of_8_bits_is_wrong(monkeypatch):
    right = bitsandbytes.optim.AdamW

    def of_32_bits(parameters, optim_bits, **named):
        return right(parameters, optim_bits=32, **named)

    monkeypatch.setattr(bitsandbytes.optim, "AdamW", of_32_bits)
    finding = probes.optimizer_step("adamw_8bit", "cpu")
    assert finding.state == "wrong" and "the width of its moments" in finding.found


@pytest.mark.parametrize("probe", [probes.vision_attention, probes.text_attention])
def test_attention_that_returns_noise_is_wrong(probe, sdpa):
    sdpa(lambda q, k, v, **options: SDPA(q, k, v, **options) * 0 + torch.rand_like(q))
    assert probe("cpu").state == "wrong"


def test_attention_that_takes_every_v_as_contiguous_is_wrong_but_for_the_vision_tower(sdpa):
    """The fault of ROCm/pytorch #3230 and vLLM #27744; the vision tower attends to copies."""

    def blind_to_strides(q, k, v, **options):
        strides = torch.empty(v.shape, device="meta").stride()
        return SDPA(q, k, v.as_strided(v.shape, strides), **options)

    sdpa(blind_to_strides)
    finding = probes.text_attention("cpu")
    assert finding.state == "wrong" and "is off by" in finding.found
    assert probes.vision_attention("cpu").state == "ok"


def test_attention_that_looks_ahead_is_wrong(sdpa):
    sdpa(lambda q, k, v, is_causal=False, **options: SDPA(q, k, v, **options))
    finding = probes.text_attention("cpu")
    assert finding.state == "wrong"
    assert "causal forward" in finding.found and "masked" not in finding.found


def test_attention_that_forgets_the_mask_is_wrong(sdpa):
    def forgetful(q, k, v, attn_mask=None, is_causal=False, **options):
        return SDPA(q, k, v, is_causal=True, **options)

    sdpa(forgetful)
    finding = probes.text_attention("cpu")
    assert "masked forward" in finding.found and "causal" not in finding.found
