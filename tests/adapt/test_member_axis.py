"""Operations on the tensors of several members under vmap: each member's result and gradients, from one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from talik.adapt.adapters.layers import CrossAttention
from talik.adapt.scan.causal_conv import causal_conv
from talik.adapt.scan.mamba_block import MambaBlock
from talik.adapt.scan.selective_scan import selective_scan
from talik.errors import SettingsError

MEMBERS, BATCH, WIDTH, LENGTH, STATE = 3, 2, 4, 7, 5


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_each_alone(call: Callable[..., Tensor], operands: Sequence[Tensor], dims: Sequence[int | None]) -> None:
    """One call of all under vmap equals a call of each, with the gradient of every operand."""
    together = torch.vmap(call, in_dims=tuple(dims))(*operands)
    own = [[x if d is None else x.select(d, i) for x, d in zip(operands, dims, strict=True)] for i in range(MEMBERS)]
    alone = torch.stack([call(*given) for given in own])
    given = torch.randn_like(alone)
    assert torch.allclose(together, alone, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(together, operands, given), torch.autograd.grad(alone, operands, given), strict=True
    ):
        assert a.norm() > 0
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("shared_input", [False, True])
def test_the_scan_of_members_is_one_scan(groups: int, shared_input: bool) -> None:
    torch.manual_seed(groups)
    line = (BATCH, WIDTH, LENGTH)
    state = (BATCH, STATE, LENGTH) if groups == 0 else (BATCH, groups, STATE, LENGTH)
    u = drawn(*line) if shared_input else drawn(MEMBERS, *line)
    operands = [u, drawn(MEMBERS, *line), drawn(MEMBERS, WIDTH, STATE), drawn(MEMBERS, *state), drawn(MEMBERS, *state)]
    operands += [drawn(MEMBERS, WIDTH), drawn(MEMBERS, *line), drawn(MEMBERS, WIDTH)]
    calls: list[int] = []

    def scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        calls.append(1)
        out = selective_scan(u, delta, -a.exp(), b, c, D=d, z=z, delta_bias=bias, delta_softplus=True)
        assert isinstance(out, Tensor)
        return out

    assert_each_alone(scan, operands, [None if shared_input else 0, *[0] * 7])
    assert len(calls) == 1 + MEMBERS


def test_constant_matrices_of_each_member_and_what_the_scan_refuses() -> None:
    torch.manual_seed(0)
    operands = [drawn(MEMBERS, BATCH, WIDTH, LENGTH) for _ in range(2)] + [drawn(WIDTH, STATE, MEMBERS)]
    operands += [drawn(MEMBERS, WIDTH, STATE), drawn(WIDTH, STATE)]

    def scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        out = selective_scan(u, delta.sigmoid(), -a.exp(), b, c)
        assert isinstance(out, Tensor)
        return out

    assert_each_alone(scan, operands, [0, 0, 2, 0, None])
    with pytest.raises(SettingsError, match="return_last_state"):
        torch.vmap(lambda u: selective_scan(u, u, -torch.ones(4, 1), u[:, :1], u[:, :1], return_last_state=True)[0])(
            operands[0].detach()
        )


@pytest.mark.parametrize("dims", [(0, 0, 0), (None, 0, 0), (0, None, 0), (0, 0, None), (2, 1, 1), (None, None, 0)])
def test_the_convolution_of_members_is_one_convolution(dims: tuple[int | None, ...]) -> None:
    torch.manual_seed(1)
    whole = [(BATCH, LENGTH, WIDTH), (WIDTH, 1, 3), (WIDTH,)]
    shapes = [list(s) for s in whole]
    for shape, dim in zip(shapes, dims, strict=True):
        if dim is not None:
            shape.insert(dim, MEMBERS)
    assert_each_alone(causal_conv, [drawn(*shape) for shape in shapes], dims)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_mamba_blocks_of_members_run_as_one(bidirectional: bool, masked: bool) -> None:
    torch.manual_seed(2)
    blocks = [MambaBlock(WIDTH, d_state=STATE, d_conv=3, bidirectional=bidirectional).double() for _ in range(MEMBERS)]
    mask = torch.tensor([[True] * LENGTH, [False] * 3 + [True] * (LENGTH - 3)]) if masked else None
    names = [name for name, _ in blocks[0].named_parameters()]
    weights = [torch.stack([dict(b.named_parameters())[n].detach() for b in blocks]).requires_grad_() for n in names]

    def run(hidden: Tensor, *given: Tensor) -> Tensor:
        out = torch.func.functional_call(blocks[0], dict(zip(names, given, strict=True)), (hidden, mask))
        assert isinstance(out, Tensor)
        return out

    assert_each_alone(run, [drawn(MEMBERS, BATCH, LENGTH, WIDTH), *weights], [0] * (1 + len(weights)))


@pytest.mark.parametrize("masked", [None, "questions", "places"])
def test_attentions_of_members_run_as_one(masked: str | None) -> None:
    torch.manual_seed(3)
    modules: list[nn.Module] = [CrossAttention(WIDTH, 2).double() for _ in range(MEMBERS)]
    keys = 6
    mask = None
    if masked == "questions":
        mask = torch.ones(BATCH, 1, keys, dtype=torch.bool)
        mask[1, 0, 4:] = False
    elif masked == "places":
        mask = torch.rand(LENGTH, keys) > 0.4
        mask[:, 0] = True
    names = [name for name, _ in modules[0].named_parameters()]
    weights = [torch.stack([dict(m.named_parameters())[n].detach() for m in modules]).requires_grad_() for n in names]

    def run(queries: Tensor, tokens: Tensor, *given: Tensor) -> Tensor:
        named = dict(zip(names, given, strict=True))
        out = torch.func.functional_call(modules[0], named, (queries, tokens, mask))
        assert isinstance(out, Tensor)
        return out

    operands = [drawn(MEMBERS, BATCH, LENGTH, WIDTH), drawn(BATCH, keys, WIDTH), *weights]
    assert_each_alone(run, operands, [0, None, *[0] * len(weights)])
