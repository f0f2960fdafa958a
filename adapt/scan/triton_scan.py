"""The `triton` backend of the selective scan: when it can run, and its kernels as one autograd function.

Letters: B batch, d channels, L time steps, N state size, G groups, E channels a group.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import BackendError

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_STATE_SIZE = 256
_MAX_ROW_VALUES = 2**31  # offsets inside a row of the batch have 32 bits
_STEPS = 8  # a chunk; the backward holds its states in registers
_MANY_PROGRAMS = 1024  # warps of 32 channels from which on a program takes many of them
_MANY_VALUES = 1 << 22  # from which on a tensor with time innermost is transposed by a kernel of ours
_TILE = 64  # its tile
_PARTIAL_SUMS_BYTES = 1 << 28  # at most so many at once, or those of one row
_logger = logging.getLogger(__name__)


class Blocks(NamedTuple):
    """Channels a program takes in the forward and in the backward, and the time steps of a chunk."""

    forward: int
    backward: int
    steps: int


@functools.cache
def find_kernels() -> tuple[ModuleType | None, str]:
    """Import the kernels; return (their module, "") or (None, the reason in one line)."""
    try:
        from . import triton_kernels
    except (ImportError, OSError) as error:
        return None, f"triton cannot be imported ({_one_line(error)})"
    return triton_kernels, ""


def obstacle(operands: Sequence[Tensor | None], num_groups: int, *, delta_softplus: bool) -> str:
    """Return why the kernels cannot serve a call with these operands, or "" when they can.

    The first call of its kind (device, data types, options) compiles the kernels and runs them on one time step.

    Args:
        operands: u, delta, A, B, C, D, z, delta_bias as `selective_scan` takes them; the last three may be None.
        num_groups: G.
        delta_softplus: as `selective_scan` takes it.
    """
    u, A = operands[0], operands[2]
    assert u is not None
    assert A is not None
    kernels, reason = find_kernels()
    if kernels is None:
        return reason
    if kernels.INTERPRETED and u.device.type != "cpu":
        return f"the tensors are on {u.device.type}, TRITON_INTERPRET=1 interprets triton's kernels on cpu"
    if not kernels.INTERPRETED and u.device.type != "cuda":
        return f"the tensors are on {u.device.type}, triton's kernels run on cuda (on cpu only with TRITON_INTERPRET=1)"
    dtypes = tuple(None if x is None else x.dtype for x in operands)
    for dtype in dtypes:
        if dtype is not None and dtype not in _KERNEL_DTYPES:
            return f"an input is {dtype}, triton's kernels take float32, float16 and bfloat16"
    state_size = A.shape[1]
    if state_size > _MAX_STATE_SIZE:
        return f"the state size is {state_size}, triton's kernels take at most {_MAX_STATE_SIZE}"
    blocks = choose_blocks(u.shape, num_groups, state_size)
    channels, length = u.shape[1:]
    values = length * max(2 * channels, 2 * num_groups * state_size, channels * state_size // blocks.steps)
    if values >= _MAX_ROW_VALUES:
        return f"a row of the batch has {channels} channels of {length} time steps, too many for triton's kernels"
    return _failure(u.device, dtypes, state_size, delta_softplus, _needs_backward(operands), blocks)


@functools.cache
def _failure(
    device: torch.device,
    dtypes: tuple[torch.dtype | None, ...],
    state_size: int,
    softplus: bool,
    keep: bool,
    blocks: Blocks,
) -> str:
    """Compile the kernels and run them on one time step; return what they raised, in one line, or ""."""
    shapes = [(1, 1, 1), (1, 1, 1), (1, state_size), (1, state_size, 1), (1, state_size, 1), (1,), (1, 1, 1), (1,)]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            operands = [
                None if dtype is None else torch.zeros(shape, dtype=dtype, device=device, requires_grad=keep)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
            out, _ = _TritonScan.apply(*operands, softplus, keep, blocks)
            if keep:
                torch.autograd.grad(out, [x for x in operands if x is not None], torch.zeros_like(out))
    except Exception as error:  # of the compiler, the assembler, the C compiler or the driver: no common base
        reason = f"triton's kernels do not run on {device} ({_one_line(error)})"
        _logger.warning("selective_scan leaves triton out: %s", reason)
        return reason
    return ""


def choose_blocks(shape: torch.Size, groups: int, state_size: int) -> Blocks:
    """Return the blocks for u of `shape` (B, d, L), from a fixed table: tuning would cost seconds at each new shape.

    A warp's lanes hold BLOCK_E channels, and where those are fewer than 32, several states of each beside one another.
    Where enough warps are left, the forward takes 32 channels, each in a lane of its own, and the backward 16, which
    halves the partial sums, with chunks of 4 steps, whose states fit beside them in registers (on an H200 at (32, 2000,
    1024, 16) 5.8 ms forward and backward, with 8 steps 7.9; `benchmarks/scan_gpu.py`); otherwise both take 8, for four
    times the warps. Above 16 states they take fewer, as the registers of a chunk allow.
    """
    batch, channels, _ = shape
    width = _power_of_2(channels // groups)
    wide = batch * channels // 32 >= _MANY_PROGRAMS
    fit = max(1, 512 // _power_of_2(state_size))
    forward, backward = (32, 16) if wide else (8, 8)
    steps = _STEPS // 2 if wide else _STEPS
    return Blocks(min(width, forward, fit), min(width, backward, max(1, fit // (2 if wide else 4))), steps)


def triton_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the scan on tensors that `obstacle` found no fault with; first-order gradients only.

    Args:
        u, delta, z: (B, d, L). A: (d, N). B, C: both (B, N, L) or both (B, G, N, L). D, delta_bias: (d,). Data types
            may differ. Tensors with d (of B and C: N) innermost in memory are read where they are, others copied.
        delta_softplus: whether softplus is applied to delta + delta_bias.
        blocks: None means those of `choose_blocks`.

    Returns:
        the output (B, d, L) in the data type of u, with d innermost, and the last state (B, d, N) float32.
    """
    operands = (u, delta, A, B, C, D, z, delta_bias)
    if blocks is None:
        blocks = choose_blocks(u.shape, B.shape[1] if B.dim() == 4 else 1, A.shape[1])
    return _TritonScan.apply(*operands, delta_softplus, _needs_backward(operands), blocks)


class _TritonScan(torch.autograd.Function):
    """The forward kernel with the backward kernel; `keep` says whether a backward will need the entering states."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        bias: Tensor | None,
        softplus: bool,
        keep: bool,
        blocks: Blocks,
    ) -> tuple[Tensor, Tensor]:
        batch, channels, length = u.shape
        state_size = A.shape[1]
        lines = (
            _line(u),
            _line(delta),
            A.T.contiguous(),
            _vectors(B),
            _vectors(C),
            _weight(D),
            _gate(z),
            _weight(bias),
        )
        out = u.new_empty(batch, length, channels)
        last = u.new_empty(batch, state_size, channels, dtype=torch.float32)
        num_chunks = -(-length // blocks.steps) if keep else 0
        states = u.new_empty(batch, num_chunks, state_size, channels, dtype=torch.float32)
        if out.numel():
            _launch("forward_kernel", lines, (out, last, states if keep else None), blocks.forward, blocks, softplus)
        else:
            last.zero_()
        if keep:
            ctx.save_for_backward(*lines, states)
            ctx.set_materialize_grads(False)
            ctx.softplus, ctx.blocks, ctx.grouped = softplus, blocks, B.dim() == 4
        return out.mT, last.mT

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: what follows would be a constant to it, a silently wrong one
            raise BackendError(
                "backend 'triton' of the scan has first-order gradients, and create_graph asks for more; "
                "use 'reference'"
            )
        *lines, states = ctx.saved_tensors
        u, delta, A, B, C, D, z, bias = lines
        batch, _, channels = u.shape
        groups, state_size = B.shape[2:]
        dout = torch.zeros_like(u) if dout is None else _line(dout)
        dlast = None if dlast is None else dlast.mT.contiguous()
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
        weights = A.new_empty(batch, state_size + 2, channels, dtype=torch.float32)
        num_blocks = -(-channels // groups // ctx.blocks.backward)
        num_rows = _rows_at_once(B, num_blocks)
        vectors = []
        for start in range(0, max(1, batch), num_rows):
            given: Any = lines
            rest: Any = (states, dout, dlast, du, ddelta, dz, weights)
            if num_rows < batch:
                rows = slice(start, start + num_rows)
                given = [x if x is None or x.dim() < 3 else x[rows] for x in lines]
                rest = [None if x is None else x[rows] for x in rest]
            sums = A.new_empty(len(given[0]), num_blocks, 2, *B.shape[1:], dtype=torch.float32)
            if sums.numel():
                _launch("backward_kernel", given, (*rest, sums), ctx.blocks.backward, ctx.blocks, ctx.softplus)
            else:
                weights.zero_()
            vectors.append(sums[:, 0] if num_blocks == 1 else sums.sum(1))  # (b, 2, L, G, N)
        dB, dC = (vectors[0] if len(vectors) == 1 else torch.cat(vectors)).permute(1, 0, 3, 4, 2)
        if not ctx.grouped:
            dB, dC = dB.squeeze(1), dC.squeeze(1)
        total = weights[0] if batch == 1 else weights.sum(0)
        return (
            du.mT,
            ddelta.mT,
            total[:state_size].T.to(A.dtype),
            dB.to(B.dtype),
            dC.to(C.dtype),
            None if D is None else total[state_size].to(D.dtype),
            None if dz is None else dz.mT,
            None if bias is None else total[state_size + 1].to(bias.dtype),
            None,
            None,
            None,
        )


def _launch(
    name: str,
    operands: Any,
    results: tuple[Tensor | None, ...],
    block: int,
    blocks: Blocks,
    softplus: bool,
) -> None:
    """Start one program for each row of the batch, group and block of channels."""
    kernels, reason = find_kernels()
    assert kernels is not None, reason
    u, _, _, B, _, _, z, _ = operands
    batch, length, groups, state_size = B.shape
    width = u.shape[2] // groups
    grid = (batch * groups * -(-width // block),)
    # The stride of an axis of length 1 says nothing, and no row of one time step follows another in the same line.
    z_l = 0 if z is None else z.stride(1 if length > 1 else 0)
    sizes = (z_l, length, groups, width)
    constants = (state_size, _power_of_2(state_size), block, blocks.steps, softplus)
    with _on(u.device):
        getattr(kernels, name)[grid](*operands, *results, *sizes, *constants, num_warps=1, enable_fp_fusion=True)


def _line(x: Tensor) -> Tensor:
    """(B, d, L) as (B, L, d), contiguous."""
    if x.numel() < _MANY_VALUES or not x.is_contiguous() or x.mT.is_contiguous():
        return x.mT.contiguous()
    kernels, reason = find_kernels()
    assert kernels is not None, reason
    batch, channels, length = x.shape
    out = x.new_empty(batch, length, channels)
    grid = (batch * -(-channels // _TILE) * -(-length // _TILE),)
    with _on(x.device):
        kernels.transpose_kernel[grid](x, out, channels, length, _TILE, num_warps=4, enable_fp_fusion=True)
    return out


def _gate(x: Tensor | None) -> Tensor | None:
    """(B, d, L) as (B, L, d) with any distance between rows: z is half of a projection's output."""
    if x is None:
        return None
    x = x.mT
    return x if x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1) else _line(x.mT)


def _vectors(x: Tensor) -> Tensor:
    """(B, N, L) or (B, G, N, L) as (B, L, G, N), contiguous."""
    return (x.unsqueeze(1) if x.dim() == 3 else x).permute(0, 3, 1, 2).contiguous()


def _weight(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _rows_at_once(B: Tensor, num_blocks: int) -> int:
    """Return how many rows of the batch a backward may take, so that the partial sums of dB and dC keep their bound."""
    row_bytes = 2 * 4 * num_blocks * B[:1].numel()
    return max(1, _PARTIAL_SUMS_BYTES // max(1, row_bytes))


def _needs_backward(operands: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def _power_of_2(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
