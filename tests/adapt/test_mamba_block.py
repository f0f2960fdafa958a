"""MambaBlock: transformers' weights and outputs, both directions, padding without influence, initial values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from talik.adapt.scan.causal_conv import causal_conv
from talik.adapt.scan.mamba_block import MambaBlock
from talik.adapt.scan.token_order import ScanOrder
from talik.errors import SettingsError


def make_block(*, seed: int = 0, **settings: Any) -> MambaBlock:
    torch.manual_seed(seed)
    return MambaBlock(24, **({"d_state": 4} | settings))


def gradients(module: nn.Module, out: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random functional of `out`."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return dict(zip(names, torch.autograd.grad(out, parameters, weights), strict=True))


@pytest.mark.parametrize(("use_bias", "use_conv_bias"), [(False, True), (True, False)])
def test_equals_transformers_mixer_with_its_weights(use_bias: bool, use_conv_bias: bool) -> None:
    modeling = pytest.importorskip(
        "transformers.models.mamba.modeling_mamba",
        reason="transformers has no Mamba here: pip install 'transformers>=5'",
    )
    config = modeling.MambaConfig(
        hidden_size=24, state_size=4, num_hidden_layers=1, use_bias=use_bias, use_conv_bias=use_conv_bias
    )
    torch.manual_seed(0)
    mixer = modeling.MambaMixer(config, layer_idx=0)
    block = make_block(seed=1, bias=use_bias, conv_bias=use_conv_bias)
    block.load_state_dict(mixer.state_dict())
    hidden = torch.randn(3, 37, 24)
    out, expected = block(hidden), mixer(hidden)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
    found, wanted = gradients(block, out), gradients(mixer, expected)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5 * grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_anywhere_equals_the_line_alone(bidirectional: bool) -> None:
    block = make_block(bidirectional=bidirectional).double()
    hidden = torch.randn(5, 16, 24, dtype=torch.float64)
    mask = torch.rand(5, 16, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[0], mask[1] = True, False  # nothing padded, nothing valid
    mask[2] = torch.arange(16) < 9  # the usual case
    hidden = hidden.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    out = block(hidden, mask)
    assert torch.equal(out[~mask], torch.zeros_like(out[~mask]))
    (grad,) = torch.autograd.grad(out.square().sum(), hidden, retain_graph=True)
    assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))
    total = gradients(block, out)
    assert all(value.isfinite().all() for value in total.values())
    for row in (0, 2, 3, 4):
        alone = hidden[row][mask[row]].detach()[None].requires_grad_()
        alone_out = block(alone)
        torch.testing.assert_close(out[row][mask[row]], alone_out[0], rtol=1e-12, atol=1e-13)
        (alone_grad,) = torch.autograd.grad(alone_out.square().sum(), alone)
        torch.testing.assert_close(grad[row][mask[row]], alone_grad[0], rtol=1e-10, atol=1e-13)


def test_padding_adds_nothing_to_weight_gradients() -> None:
    block = make_block(bidirectional=True, bias=True).double()
    hidden = torch.randn(2, 9, 24, dtype=torch.float64)
    padded = torch.cat([hidden, torch.randn(2, 5, 24, dtype=torch.float64)], dim=1)
    mask = torch.arange(14).expand(2, 14) < 9
    alone = torch.autograd.grad(block(hidden).square().sum(), tuple(block.parameters()))
    with_padding = torch.autograd.grad(block(padded, mask).square().sum(), tuple(block.parameters()))
    for found, expected in zip(with_padding, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_bidirectional_is_two_blocks_one_on_the_reversed_line() -> None:
    both = make_block(bidirectional=True).double()
    state = both.state_dict()
    shared = {name: state[name] for name in ("in_proj.weight", "out_proj.weight")}
    forward, backward = make_block(seed=1).double(), make_block(seed=2).double()
    own = [name for name in forward.state_dict() if name not in shared]

    def theirs(name: str) -> str:  # conv1d.weight -> conv1d_b.weight, A_log -> A_b_log, D -> D_b
        head, dot, tail = name.partition(".")
        return "A_b_log" if name == "A_log" else f"{head}_b{dot}{tail}"

    forward.load_state_dict(shared | {name: state[name] for name in own})
    backward.load_state_dict(shared | {name: state[theirs(name)] for name in own})
    hidden = torch.randn(3, 13, 24, dtype=torch.float64)
    expected = forward(hidden) + backward(hidden.flip(1)).flip(1)
    torch.testing.assert_close(both(hidden), expected, rtol=1e-12, atol=1e-13)


def test_causal_one_way_and_not_both_ways() -> None:
    hidden = torch.randn(1, 10, 24)
    changed = hidden.clone()
    changed[0, 6] += 1.0
    one_way, both = make_block(), make_block(bidirectional=True)
    assert torch.equal(one_way(hidden)[0, :6], one_way(changed)[0, :6])
    assert (both(hidden)[0, :6] != both(changed)[0, :6]).any(dim=-1).all()


def test_every_parameter_learns_and_results_repeat() -> None:
    block = make_block(bidirectional=True)
    hidden, mask = torch.randn(4, 12, 24), torch.arange(12) < torch.tensor([[12], [7], [1], [9]])
    first = gradients(block, block(hidden, mask))
    again = gradients(block, block(hidden, mask))
    for name, grad in first.items():
        assert grad.abs().max() > 0, name
        assert torch.equal(grad, again[name]), name


def test_permuting_the_batch_permutes_the_result() -> None:
    block = make_block(bidirectional=True)
    hidden, mask = torch.randn(4, 12, 24), torch.arange(12) < torch.tensor([[12], [7], [1], [9]])
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(block(hidden[order], mask[order]), block(hidden, mask)[order], rtol=1e-6, atol=1e-7)


def test_initial_values_are_those_of_mamba() -> None:
    block = make_block(d_state=16, expand=2, dt_min=0.002, dt_max=0.05)
    assert (block.d_inner, block.dt_rank) == (48, 2)
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 17.0).repeat(48, 1))
    assert torch.equal(block.D, torch.ones(48))
    steps = torch.nn.functional.softplus(block.dt_proj.bias)
    assert steps.min() >= 0.002 * (1 - 1e-4)
    assert steps.max() <= 0.05 * (1 + 1e-4)
    assert block.dt_proj.weight.abs().max() <= 2**-0.5
    assert block.no_weight_decay() == {"A_log", "D"}
    assert make_block(bidirectional=True).no_weight_decay() == {"A_log", "D", "A_b_log", "D_b"}


def test_one_seed_draws_one_forward_direction() -> None:
    one, both = make_block().state_dict(), make_block(bidirectional=True).state_dict()
    assert all(torch.equal(value, both[name]) for name, value in one.items())


def test_autocast_keeps_the_scan_in_float32() -> None:
    block = make_block(bidirectional=True)
    hidden = torch.randn(2, 12, 24)
    plain = block(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = block(hidden)
        grads = gradients(block, cast)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), plain, rtol=0.1, atol=0.05 * plain.abs().max().item())
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())


def test_bfloat16_block_runs() -> None:
    block = make_block(bidirectional=True).bfloat16()
    hidden = torch.randn(2, 12, 24)
    out = block(hidden.bfloat16())
    expected = block.float()(hidden.bfloat16().float())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize(("length", "taps"), [(1, 4), (2, 4), (9, 4), (9, 1), (5, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_convolution_equals_conv1d(length: int, taps: int, with_bias: bool) -> None:
    conv1d = nn.Conv1d(6, 6, taps, groups=6, padding=taps - 1, bias=with_bias).double()
    x = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    parameters = (x, *conv1d.parameters())
    found = causal_conv(x, conv1d.weight, conv1d.bias)
    expected = conv1d(x.mT)[..., :length].mT
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, parameters, weights), torch.autograd.grad(expected, parameters, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_order_reads_valid_tokens_first_and_reverses_them_in_place() -> None:
    mask = torch.tensor([[True, False, True, True, False]])
    order = ScanOrder(mask, bidirectional=True)
    tokens = torch.arange(5.0).view(1, 5, 1)
    lines = order.spread(tokens)[0, :, :, 0]
    assert lines[:3].T.tolist() == [[0.0, 2.0, 3.0], [3.0, 2.0, 0.0]]
    assert torch.equal(order.merge(order.spread(tokens)), 2 * tokens)
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    scans = torch.randn(1, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(order.spread, x)
    assert torch.autograd.gradcheck(order.merge, scans)
    assert torch.autograd.gradgradcheck(order.spread, x)


@pytest.mark.parametrize(
    ("hidden", "mask", "message"),
    [
        (torch.zeros(2, 5, 23), None, r"\(2, 5, 23\), expected \(B, L, 24\)"),
        (torch.zeros(2, 5, 24), torch.ones(2, 4, dtype=torch.bool), "the mask is"),
        (torch.zeros(2, 5, 24), torch.ones(2, 5), r"torch\.float32"),
    ],
)
def test_inputs_that_do_not_fit_are_named(hidden: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_block()(hidden, mask)


@pytest.mark.parametrize("settings", [{"d_state": 0}, {"dt_rank": "large"}, {"dt_min": 0.2}, {"expand": 0}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        make_block(**settings)
