"""The `torch` backend of the selective scan: chunks of time, states recomputed in a hand-written backward.

Letters: B batch, L time steps, G groups, E channels a group (innermost), N state size, T steps a chunk,
b batch rows a block.

One chunk holds its decays and states as (b, T, G, N, E), small enough to stay in the processor's cache, and a
time step is one in-place `addcmul_` over (b, G, N, E). Of the forward only the state that enters each chunk is
kept. The backward recomputes a chunk's states, runs the adjoint recurrence

    g_t = C_t dy_t + a_{t+1} g_{t+1}

down the chunk and reads every gradient from g: dC_t = h_t dy_t, dB_t = g_t (delta_t u_t), d(delta_t u_t) = B_t g_t,
and, through the decay a_t = exp(delta_t A), d(delta_t A) = g_t a_t h_{t-1}. There is no division, no logarithm and
no product of decays over time, so nothing overflows where the recurrence itself does not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import BackendError

_LOG2_E = 1.0 / math.log(2.0)
# Elements of one work buffer on a CPU. At most: three of them, in float32, fit a common shared cache (12 MiB).
_CPU_BUFFER_NUMEL = 1 << 20
# And at most a quarter of all states, which bounds the extra memory, but not less than this: 1 MiB is no memory.
_CPU_BUFFER_FLOOR = 1 << 18
_MIN_STEPS = 4
_MAX_STEPS = 32


def chunked_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t h_t; the equal of `scan_loop`.

    First-order gradients only: a second derivative raises. Bit-reproducible for the same shapes and threads.

    Args:
        u: (B, L, G, E) float32 or float64, the input.
        delta: (B, L, G, E), the step sizes as they are applied.
        A: (G, N, E), the real diagonal of the state matrix.
        B: (B, L, G, N), the input vectors.
        C: (B, L, G, N), the output vectors.

    Returns:
        y (B, L, G, E) and the last state (B, G, N, E), in the data type of `u`.
    """
    inputs = (u, delta, A, B, C)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return _ChunkedScan.apply(*(x.contiguous() for x in inputs), keep)


class _ChunkedScan(torch.autograd.Function):
    """The scan with its adjoint recurrence; `keep` says whether a backward will need the entering states."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool
    ) -> tuple[Tensor, Tensor]:
        batch, length, groups, width = u.shape
        state_size = A.shape[1]
        rows, steps = _tile(u, state_size)
        num_chunks = -(-length // steps)
        y = torch.empty_like(u)
        last = u.new_zeros(batch, groups, state_size, width)
        entering = u.new_empty(max(num_chunks - 1, 0) if keep else 0, batch, groups, state_size, width)
        exponents = A * _LOG2_E
        work = Workspace(u, rows * steps * groups * state_size * width, count=2)
        with torch.autocast(u.device.type, enabled=False):
            for block in _spans(batch, rows):
                state = None
                for index, span in enumerate(_spans(length, steps)):
                    part = (block, span)
                    decay, states = work.chunks(u[part], state_size)
                    _run_chunk(decay, states, delta[part], u[part] * delta[part], exponents, B[part], state)
                    _store(y[part], torch.bmm(_rows(C[part]), _matrices(states.all)))
                    state = last[block].copy_(states.steps[-1])
                    if keep and index < num_chunks - 1:
                        entering[index, block] = state
        if keep:
            ctx.save_for_backward(u, delta, A, B, C, entering)
            ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: what follows would be a constant to it, a silently wrong one
            raise BackendError(
                "backend 'torch' of the scan has first-order gradients, and create_graph asks for more; use 'reference'"
            )
        u, delta, A, B, C, entering = ctx.saved_tensors
        batch, length, groups, width = u.shape
        state_size = A.shape[1]
        rows, steps = _tile(u, state_size)
        dy = torch.zeros_like(u) if dy is None else dy.contiguous()
        du, ddelta, dB, dC = (torch.empty_like(x) for x in (u, delta, B, C))
        dA = torch.zeros_like(A, dtype=torch.float32 if A.device.type == "mps" else torch.float64)  # MPS has no float64
        exponents = A * _LOG2_E
        work = Workspace(u, rows * steps * groups * state_size * width, count=3)
        with torch.autocast(u.device.type, enabled=False):
            for block in _spans(batch, rows):
                carry = None if dlast is None else dlast[block].clone()
                for index, span in reversed(list(enumerate(_spans(length, steps)))):
                    part = (block, span)
                    decay, states, adjoint = work.chunks(u[part], state_size)
                    state = entering[index - 1, block] if index else None
                    inputs = u[part] * delta[part]  # (b, T, G, E)
                    _run_chunk(decay, states, delta[part], inputs, exponents, B[part], state)
                    _run_adjoint(adjoint, decay, C[part], dy[part], carry)
                    _store(dC[part], torch.bmm(_rows(dy[part]), _matrices(states.all).mT))
                    _store(dB[part], torch.bmm(_rows(inputs), _matrices(adjoint.all).mT))
                    dinputs = torch.bmm(_rows(B[part]), _matrices(adjoint.all)).view(inputs.shape)
                    torch.mul(dinputs, delta[part], out=du[part])
                    torch.mul(dinputs, u[part], out=dinputs)
                    product = decay.all.mul_(adjoint.all)
                    carry = decay.steps[0].clone() if index else None
                    product[:, 1:].mul_(states.all[:, :-1])
                    decay.steps[0].mul_(0.0 if state is None else state)  # times zero, not set to it: a NaN stays one
                    torch.mul(product, A, out=adjoint.all)  # product is now g_t a_t h_{t-1}
                    torch.add(dinputs, adjoint.all.sum(-2), out=ddelta[part])
                    torch.mul(product, delta[part].unsqueeze(-2), out=adjoint.all)
                    dA += _sum_rows(adjoint.all).view_as(A)
        return du, ddelta, dA.to(A.dtype), dB, dC, None


def _run_chunk(
    decay: _Chunk, states: _Chunk, delta: Tensor, inputs: Tensor, exponents: Tensor, B: Tensor, state: Tensor | None
) -> None:
    """Fill `decay` with a_t and `states` with h_t, both (b, T, G, N, E), from the entering state (b, G, N, E)."""
    # exp2 of an exponent scaled once: torch's exp goes through MKL on x86, about four times slower on other CPUs.
    torch.mul(delta.unsqueeze(-2), exponents, out=decay.all).exp2_()
    torch.mul(inputs.unsqueeze(-2), B.unsqueeze(-1), out=states.all)
    for a, h in zip(decay.steps, states.steps, strict=True):
        state = h if state is None else h.addcmul_(a, state)


def _run_adjoint(adjoint: _Chunk, decay: _Chunk, C: Tensor, dy: Tensor, carry: Tensor | None) -> None:
    """Fill `adjoint` with g_t (b, T, G, N, E); `carry` is a_{t+1} g_{t+1} of the step after the chunk."""
    torch.mul(C.unsqueeze(-1), dy.unsqueeze(-2), out=adjoint.all)
    after = adjoint.steps[-1] if carry is None else adjoint.steps[-1].add_(carry)
    for t in range(len(adjoint.steps) - 2, -1, -1):
        after = adjoint.steps[t].addcmul_(decay.steps[t + 1], after)


def _sum_rows(x: Tensor) -> Tensor:
    """Sum x (b, T, …) over its first two axes, as a product with ones, which is faster than `sum` on a CPU."""
    flat = x.view(x.shape[0] * x.shape[1], -1)
    return torch.mm(flat.new_ones(1, flat.shape[0]), flat)


def _rows(x: Tensor) -> Tensor:
    """(b, T, G, K) as a batch of row vectors (b T G, 1, K)."""
    return x.reshape(-1, 1, x.shape[-1])


def _matrices(x: Tensor) -> Tensor:
    """(b, T, G, N, E) as a batch of matrices (b T G, N, E)."""
    return x.view(-1, *x.shape[-2:])


def _store(target: Tensor, values: Tensor) -> None:
    """Write a batch of row vectors into the slice (b, T, G, K) that they belong to."""
    target.copy_(values.view(target.shape))


def _spans(length: int, step: int) -> Iterator[slice]:
    """Cut range(length) into slices of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _tile(u: Tensor, state_size: int) -> tuple[int, int]:
    """Return (b, T): how many batch rows and time steps one chunk takes, from the shape and the device alone."""
    batch, length, groups, width = u.shape
    if u.device.type != "cpu":
        # A launch a step costs the same for the whole batch, and a chunk of an eighth bounds the extra memory.
        return max(1, batch), max(1, min(length, _MAX_STEPS, max(_MIN_STEPS, -(-length // 8))))
    numel = max(1, groups * state_size * width)  # of one row at one step
    most = min(_CPU_BUFFER_NUMEL, max(_CPU_BUFFER_FLOOR, batch * length * numel // 4))
    longest = max(_MIN_STEPS, min(_MAX_STEPS, most // numel))
    steps = max(1, -(-length // max(1, -(-length // longest))))  # chunks of nearly equal length
    return max(1, min(batch, most // (numel * steps))), steps


class _Chunk(NamedTuple):
    """A buffer (b, T, G, N, E) and its time steps; making those views costs as much as running a small step."""

    all: Tensor
    steps: tuple[Tensor, ...]


class Workspace:
    """Work buffers of one call. On a CPU they live on with the thread: fresh pages cost more than the arithmetic."""

    kept_buffers = threading.local()

    def __init__(self, like: Tensor, numel: int, *, count: int) -> None:
        self._buffers = [self._buffer(like, numel, index) for index in range(count)]
        self._chunks: dict[tuple[int, ...], list[_Chunk]] = {}

    def _buffer(self, like: Tensor, numel: int, index: int) -> Tensor:
        if like.device.type != "cpu" or numel > _CPU_BUFFER_NUMEL:
            return like.new_empty(numel)
        kept: dict[tuple[torch.dtype, int], Tensor] = self.kept_buffers.__dict__.setdefault("buffers", {})
        buffer = kept.get((like.dtype, index))
        if buffer is None or buffer.numel() < numel:
            with torch.inference_mode(False):  # an inference tensor could not be written by a later training step
                buffer = kept[like.dtype, index] = torch.empty(numel, dtype=like.dtype)
        return buffer

    def chunks(self, part: Tensor, state_size: int) -> list[_Chunk]:
        """Return every buffer as a chunk (b, T, G, N, E) for the slice `part` (b, T, G, E), made once a shape."""
        shape = (*part.shape[:3], state_size, part.shape[3])
        if shape not in self._chunks:
            views = [buffer[: math.prod(shape)].view(shape) for buffer in self._buffers]
            self._chunks[shape] = [_Chunk(view, view.unbind(1)) for view in views]
        return self._chunks[shape]
