"""The chunked scan equals the sequential recurrence in float64: values, every gradient, extremes and data types."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from talik.adapt.scan import chunk as chunked
from talik.adapt.scan.selective_scan import selective_scan
from talik.adapt.scan.softplus import softplus
from talik.errors import BackendError

OUTPUT_TOLERANCE = 5e-7  # of the largest value, float32 against float64
GRADIENT_TOLERANCE = 5e-6
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

# (B, L, d, N, G): each pair of values of two letters meets in some row, where its size is not over the cap.
SIZES = [
    (1, 1, 8, 8, 1),
    (64, 1, 256, 16, 2),
    (5, 2, 32, 16, 1),
    (64, 2, 8, 8, 2),
    (1, 7, 256, 8, 2),
    (16, 7, 32, 16, 1),
    (5, 63, 8, 16, 2),
    (64, 63, 32, 8, 1),
    (16, 100, 8, 16, 1),
    (2, 100, 256, 8, 2),
    (64, 129, 8, 16, 2),
    (5, 129, 96, 8, 1),
    (2, 777, 32, 8, 1),
    (1, 777, 96, 16, 2),
    (1, 1999, 8, 16, 1),
    (2, 1999, 32, 8, 2),
]


def make_inputs(
    batch: int, length: int, channels: int, states: int, groups: int, *, seed: int = 0
) -> dict[str, Tensor]:
    """Draw operands over the ranges of Mamba's parametrisation: A = -exp(A_log), delta through softplus."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length),
        "A": -torch.exp(draw(channels, states)),
        "B": draw(batch, groups, states, length),
        "C": draw(batch, groups, states, length),
        "D": draw(channels),
        "z": draw(batch, channels, length),
        "delta_bias": draw(channels) - 1.0,
    }


def run(inputs: dict[str, Tensor], backend: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return out, the last state and every gradient of a fixed random functional of both."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out, last = selective_scan(**leaves, delta_softplus=True, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (out, last)]
    grads = torch.autograd.grad((out, last), list(leaves.values()), weights)
    return out.detach(), last.detach(), dict(zip(leaves, grads, strict=True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_float64_recurrence(size: tuple[int, int, int, int, int]) -> None:
    inputs = make_inputs(*size)
    out, last, grads = run(inputs, "torch")
    exact_out, exact_last, exact_grads = run({name: x.double() for name, x in inputs.items()}, "reference")
    assert out.dtype == last.dtype == torch.float32
    assert relative_error(out, exact_out) < OUTPUT_TOLERANCE
    assert relative_error(last, exact_last) < OUTPUT_TOLERANCE
    for name in NAMES:
        assert relative_error(grads[name], exact_grads[name]) < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("buffer_numel", [1, 300, 2000])
def test_small_chunks_and_blocks_equal_one_chunk(monkeypatch: pytest.MonkeyPatch, buffer_numel: int) -> None:
    inputs = {name: x.double() for name, x in make_inputs(5, 67, 8, 4, 2).items()}
    out, last, grads = run(inputs, "torch")
    monkeypatch.setattr(chunked, "_CPU_BUFFER_NUMEL", buffer_numel)
    small_out, small_last, small_grads = run(inputs, "torch")
    torch.testing.assert_close(small_out, out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small_last, last, rtol=1e-12, atol=1e-12)
    for name in NAMES:
        torch.testing.assert_close(small_grads[name], grads[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("softplus_on", [False, True])
def test_gradcheck_float64(monkeypatch: pytest.MonkeyPatch, softplus_on: bool) -> None:
    monkeypatch.setattr(chunked, "_CPU_BUFFER_NUMEL", 1)  # chunks of at most four steps, one row a block
    inputs = {name: x.double().requires_grad_() for name, x in make_inputs(2, 9, 4, 3, 2).items()}
    if not softplus_on:  # as step sizes they must be positive
        inputs["delta"] = (inputs["delta"].abs() + 1.0).detach().requires_grad_()

    def scan(*values: Tensor) -> tuple[Tensor, ...]:
        operands = dict(zip(NAMES, values, strict=True))
        return selective_scan(**operands, delta_softplus=softplus_on, return_last_state=True, backend="torch")

    assert torch.autograd.gradcheck(scan, tuple(inputs[name] for name in NAMES))


def test_second_derivative_is_refused_not_wrong() -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(1, 5, 4, 2, 1).items()}
    out = selective_scan(**inputs, backend="torch")
    with pytest.raises(BackendError, match="use 'reference'"):
        torch.autograd.grad(out.sum(), inputs["u"], create_graph=True)
    out = selective_scan(**inputs, backend="reference")
    (grad,) = torch.autograd.grad(out.sum(), inputs["u"], create_graph=True)
    assert torch.autograd.grad(grad.sum(), inputs["delta"])[0].abs().max() > 0


@pytest.mark.parametrize(("scale_A", "scale_delta"), [(100.0, 10.0), (1e-7, 1.0), (1e-7, 1e-4), (1e4, 100.0)])
def test_extreme_decays_stay_finite(scale_A: float, scale_delta: float) -> None:
    inputs = make_inputs(1, 4000, 8, 8, 1)
    inputs["A"] *= scale_A
    inputs["delta"] *= scale_delta
    out, last, grads = run(inputs, "torch")
    exact = {name: x.double() for name, x in inputs.items()}
    exact_out = selective_scan(**exact, delta_softplus=True, backend="reference")
    assert last.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads.values())
    assert relative_error(out, exact_out) < 4000 * 2.0**-24  # a decay nearer to 1 than a rounding is lost each step


def test_bfloat16_inputs_err_by_their_rounding_only() -> None:
    inputs = {name: x.bfloat16() for name, x in make_inputs(3, 40, 16, 8, 1).items()}
    out, last, grads = run(inputs, "torch")
    exact_out, exact_last, _ = run({name: x.float() for name, x in inputs.items()}, "torch")
    assert out.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    assert torch.equal(out, exact_out.bfloat16())
    assert torch.equal(last, exact_last)
    assert all(grad.dtype == torch.bfloat16 and grad.isfinite().all() for grad in grads.values())


def test_nan_in_delta_stays_nan_and_stays_in_its_channel() -> None:
    inputs = make_inputs(2, 70, 8, 4, 1)
    clean, _, _ = run(inputs, "torch")
    inputs["delta"][1, 3, 40] = torch.nan
    out, last, grads = run(inputs, "torch")
    hit = torch.zeros_like(out, dtype=torch.bool)
    hit[1, 3, 40:] = True
    assert torch.equal(out.isnan(), hit)
    assert torch.equal(out[~hit], clean[~hit])
    assert last[1, 3].isnan().all()
    assert grads["A"][3].isnan().all()
    assert grads["delta"][1, 3, 40].isnan()


def test_autocast_changes_nothing() -> None:
    inputs = make_inputs(2, 50, 16, 8, 1)
    plain = run(inputs, "torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(inputs, "torch")  # forward and backward both inside
    assert torch.equal(plain[0], cast[0])
    assert all(torch.equal(plain[2][name], cast[2][name]) for name in NAMES)


def test_training_after_inference_mode() -> None:
    inputs = make_inputs(2, 20, 8, 4, 1)
    chunked.Workspace.kept_buffers.__dict__.clear()
    with torch.inference_mode():
        first = selective_scan(**inputs, delta_softplus=True, backend="torch")
    out, _, _ = run(inputs, "torch")
    assert torch.equal(first, out)


def test_threads_do_not_share_buffers_and_repeat_to_the_bit() -> None:
    cases = [make_inputs(4, 60, 16, 8, 1, seed=seed) for seed in range(4)]
    alone = [run(case, "torch") for case in cases]
    found: dict[int, list] = {}

    def work(index: int) -> None:
        found[index] = [run(cases[index], "torch") for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (out, _, grads) in enumerate(alone):
        for again_out, _, again_grads in found[index]:
            assert torch.equal(again_out, out)
            assert all(torch.equal(again_grads[name], grads[name]) for name in NAMES)


@pytest.mark.parametrize("shapes", [("constant", "constant"), ("constant", 2), (1, "constant"), ("line", 4), (2, 4)])
def test_forms_of_input_and_output_vectors(shapes: tuple[str | int, str | int]) -> None:
    batch, length, channels, states = 2, 11, 8, 3
    inputs = {name: x.double() for name, x in make_inputs(batch, length, channels, states, 1).items()}
    full = {}
    for name, form in zip("BC", shapes, strict=True):
        generator = torch.Generator().manual_seed(ord(name))
        if form == "constant":
            inputs[name] = torch.randn(channels, states, generator=generator).double()
            full[name] = inputs[name][None, :, :, None].expand(batch, channels, states, length)
        else:
            groups = 1 if form == "line" else int(form)
            value = torch.randn(batch, groups, states, length, generator=generator).double()
            inputs[name] = value[:, 0] if form == "line" else value
            full[name] = value.repeat_interleave(channels // groups, dim=1)
    out, last, _ = run(inputs, "torch")
    # Written out for each channel, independent of the package's own loop.
    delta = torch.nn.functional.softplus(inputs["delta"] + inputs["delta_bias"][:, None])
    h = torch.zeros(batch, channels, states, dtype=torch.float64)
    for t in range(length):
        step = delta[:, :, t, None]
        h = torch.exp(step * inputs["A"]) * h + step * full["B"][..., t] * inputs["u"][:, :, t, None]
        y = (h * full["C"][..., t]).sum(-1) + inputs["D"] * inputs["u"][:, :, t]
        torch.testing.assert_close(out[:, :, t], y * torch.nn.functional.silu(inputs["z"][:, :, t]))
    torch.testing.assert_close(last, h)


def test_strided_inputs_and_batch_permutation() -> None:
    inputs = make_inputs(4, 33, 8, 4, 2)
    out, _, grads = run(inputs, "torch")
    strided = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in inputs.items()}
    assert not strided["u"].is_contiguous()
    assert torch.equal(run(strided, "torch")[0], out)
    order = torch.tensor([2, 0, 3, 1])
    permuted = {name: x[order] if x.dim() > 2 else x for name, x in inputs.items()}
    permuted_out = selective_scan(**permuted, delta_softplus=True, backend="torch")
    torch.testing.assert_close(permuted_out, out[order], rtol=1e-6, atol=1e-6)
    assert grads["u"].shape == inputs["u"].shape


def test_only_entering_states_are_kept() -> None:
    batch, length, channels, states = 2, 256, 32, 16
    inputs = {name: x.requires_grad_() for name, x in make_inputs(batch, length, channels, states, 1).items()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = selective_scan(**inputs, delta_softplus=True, backend="torch")
    state_bytes = 4 * batch * length * channels * states
    assert sum(kept.values()) < state_bytes  # the lines, and a thirty-second of the states
    assert max(kept.values()) <= max(state_bytes // 16, 4 * batch * length * channels)
    out.sum().backward()


def test_empty_batch_and_no_gradient() -> None:
    inputs = make_inputs(3, 5, 8, 4, 1)
    none = {name: x[:0] if x.dim() > 2 else x for name, x in inputs.items()}
    assert selective_scan(**none, backend="torch").shape == (0, 8, 5)
    assert not selective_scan(**inputs, backend="torch").requires_grad


def test_softplus_is_accurate_on_both_ends() -> None:
    x = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([torch.inf, -torch.inf, torch.nan])])
    exact = torch.nn.functional.softplus(x.double(), threshold=1000.0)
    found = softplus(x).double()
    assert torch.equal(found[-3:].isnan(), torch.tensor([False, False, True]))
    assert found[-3] == torch.inf
    assert found[-2] == 0.0
    assert ((found - exact) / exact)[:-3].abs().max() < 3e-7
    inputs = torch.linspace(-30, 30, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softplus, inputs)
