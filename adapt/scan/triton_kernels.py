"""Triton kernels of the selective scan: forward, and backward with the states recomputed.

Letters: B batch, L time steps, G groups, E channels a group, d = G·E channels, N state size; e and n index a program's
channels and states.

A program takes one row of the batch and BLOCK_E channels of one group with all N states, and walks along time with
the state (BLOCK_N, BLOCK_E) in the registers of one warp: no step needs a barrier, and sums over states and over
channels are shuffles. STEPS time steps are unrolled. Of each only one multiply-add lies on the chain from step to step;
the loads, exponentials and sums around it overlap. A scan over a block of time (`tl.associative_scan`, as mamba-ssm's
CUDA kernel does it) takes several operations and shuffles a state and step where this takes one multiply-add. What it
gains, parallelism along time, is not needed where B·d / BLOCK_E, the number of warps, fills the device: on 132
multiprocessors from some 500 on, and below it a launch from Python takes longer than the scan of an adapter's lines.

With gradients the forward stores the state that enters each STEPS steps, 1 / STEPS of all states. The backward goes
from the last such chunk to the first, recomputes its states into registers, and runs the adjoint recurrence of
`chunk.py` down it. What is summed over the batch or over blocks of channels leaves the program as partial sums that
torch adds up: no atomics, so all gradients are bit-reproducible.

Steps beyond the length and channels and states beyond the sizes read zeros, which leave a state as it is.
"""

# ruff: noqa: ANN001, ANN202, RET505, RUF005 (the compiler knows no star in a tuple)
# The compiler unrolls loops in which a tuple grows, which mypy cannot follow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _step_size(raw, valid, SOFTPLUS: tl.constexpr):
    """Return the step size and its derivative by `raw`, both zero where not `valid`: there a state stays as it is.

    softplus(x) = max(x, 0) + log1p(w), w = exp(-|x|), and log1p(w) = 2 artanh(w / (2 + w)), whose series at an argument
    of at most 1/3 is exact to float32 after eight terms.
    """
    step = raw
    slope = raw * 0.0 + 1.0
    if SOFTPLUS:
        w = tl.exp2(-tl.abs(raw) * _LOG2_E)
        s = w / (2.0 + w)
        q = s * s
        series = 1.0 / 15.0
        series = series * q + 1.0 / 13.0
        series = series * q + 1.0 / 11.0
        series = series * q + 1.0 / 9.0
        series = series * q + 1.0 / 7.0
        series = series * q + 1.0 / 5.0
        series = series * q + 1.0 / 3.0
        series = series * q + 1.0
        step = tl.maximum(raw, 0.0) + 2.0 * s * series
        slope = tl.where(raw >= 0.0, 1.0, w) / (1.0 + w)
    return tl.where(valid, step, 0.0), tl.where(valid, slope, 0.0)


@triton.jit
def _sigmoid(x):
    """Return the logistic function, without overflow."""
    w = tl.exp2(-tl.abs(x) * _LOG2_E)
    return tl.where(x >= 0.0, 1.0, w) / (1.0 + w)


_TENSORS = ["u", "delta", "A", "B", "C", "D", "z", "bias", "out", "last", "states"]
_GRADIENTS = ["dout", "dlast", "du", "ddelta", "dz", "dweights", "dvectors"]
_SIZES = ["z_l", "length", "groups", "width"]


@triton.jit
def _place(groups, width, BLOCK_E: tl.constexpr):
    """Return this program's block of channels, its group and its row of the batch."""
    blocks = tl.cdiv(width, BLOCK_E)
    program = tl.program_id(0)
    return program % blocks, program // blocks % groups, (program // blocks // groups).to(tl.int64)


@triton.jit
def _at_row(u, delta, B, C, row, group, length, channels, vectors, N):
    """Return the pointers at the first time step of a row: inside it offsets have 32 bits, half the arithmetic."""
    line = row * length
    at_vector = line * vectors + group * N
    return u + line * channels, delta + line * channels, B + at_vector, C + at_vector


@triton.jit
def _read(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _read_if(pointer, offsets, mask):
    """Return the values as float32, zeros for a pointer that is None."""
    if pointer is None:
        return tl.zeros(offsets.shape, tl.float32)
    else:
        return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_TENSORS)
def forward_kernel(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    out,
    last,
    states,
    z_l,
    length,
    groups,
    width,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
) -> None:
    """Write out (B, L, d), last (B, N, d) and, unless None, states (B, chunks, N, d), which enter the chunks.

    Args:
        u, delta, z: (B, L, d) with d innermost; the rows of z are z_l apart. A: (N, d). B, C: (B, L, G, N).
        D, bias: (d,). D, z, bias and states may be None.
    """
    block, group, row = _place(groups, width, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]
    has_n, has_e = n < N, e < width
    has = has_n[:, None] & has_e
    channels = groups * width
    d = group * width + e
    tile = n[:, None] * channels + d
    exponents = _read(A + tile, has) * _LOG2_E
    skip = _read_if(D, d, has_e)
    shift = _read_if(bias, d, has_e)
    h = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    u, delta, B, C = _at_row(u, delta, B, C, row, group, length, channels, groups * N, N)
    if z is not None:  # here, for a function of the compiler returns no None
        z += row * length * z_l
    out += row * length * channels
    if states is not None:
        states += row * tl.cdiv(length, STEPS) * N * channels
    for start in range(0, length, STEPS):
        if states is not None:
            tl.store(states + start // STEPS * N * channels + tile, h, mask=has)
        outs = ()
        for i in tl.static_range(STEPS):
            inside = start + i < length
            valid_e, valid_n = e < tl.where(inside, width, 0), n < tl.where(inside, N, 0)
            x = _read(u + (start + i) * channels + d, valid_e)
            raw = _read(delta + (start + i) * channels + d, valid_e) + shift
            b = _read(B + (start + i) * groups * N + n, valid_n)
            c = _read(C + (start + i) * groups * N + n, valid_n)
            step, _ = _step_size(raw, valid_e, SOFTPLUS)
            h = tl.exp2(step * exponents) * h + (step * x) * b[:, None]
            y = tl.sum(c[:, None] * h, axis=0, keep_dims=True) + skip * x
            if z is not None:
                gate = _read(z + (start + i) * z_l + d, valid_e)
                y = y * gate * _sigmoid(gate)
            outs = outs + (y,)
        for i in tl.static_range(STEPS):
            y = outs[i].to(out.dtype.element_ty)
            tl.store(out + (start + i) * channels + d, y, mask=e < tl.where(start + i < length, width, 0))
    tl.store(last + row * N * channels + tile, h, mask=has)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=[*_TENSORS[:8], "states", *_GRADIENTS])
def backward_kernel(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    states,
    dout,
    dlast,
    du,
    ddelta,
    dz,
    dweights,
    dvectors,
    z_l,
    length,
    groups,
    width,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
) -> None:
    """Write du, ddelta, dz (B, L, d) and the partial sums of the other gradients.

    Args:
        u … states: as the forward has them. dout: (B, L, d). dlast: (B, N, d) or None.
        dweights: (B, N + 2, d), dA, dD and dbias of each row. dvectors: (B, blocks, 2, L, G, N), dB and dC of each
            block of channels.
    """
    block, group, row = _place(groups, width, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]
    has_n, has_e = n < N, e < width
    has = has_n[:, None] & has_e
    channels = groups * width
    d = group * width + e
    tile = n[:, None] * channels + d
    rates = _read(A + tile, has)
    skip = _read_if(D, d, has_e)
    shift = _read_if(bias, d, has_e)
    chunks = tl.cdiv(length, STEPS)
    u, delta, B, C = _at_row(u, delta, B, C, row, group, length, channels, groups * N, N)
    if z is not None:  # here, for a function of the compiler returns no None
        z += row * length * z_l
    dout += row * length * channels
    du += row * length * channels
    ddelta += row * length * channels
    if z is not None:
        dz += row * length * channels
    states += row * chunks * N * channels
    dweights += row * (N + 2) * channels
    dB_at = dvectors + (row * tl.cdiv(width, BLOCK_E) + block) * 2 * length * groups * N + group * N
    dC_at = dB_at + length * groups * N
    dA = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    dD = tl.zeros((1, BLOCK_E), tl.float32)
    dbias = tl.zeros((1, BLOCK_E), tl.float32)
    start = (chunks - 1) * STEPS
    carry = _read_if(dlast, row * N * channels + tile, has)  # a_{t+1} g_{t+1} of the step after
    for _ in range(chunks):
        h = tl.load(states + start // STEPS * N * channels + tile, mask=has, other=0.0)
        hs = (h,)
        decays, xs, steps, slopes, dys, dzs = (), (), (), (), (), ()
        for i in tl.static_range(STEPS):
            inside = start + i < length
            valid_e, valid_n = e < tl.where(inside, width, 0), n < tl.where(inside, N, 0)
            x = _read(u + (start + i) * channels + d, valid_e)
            raw = _read(delta + (start + i) * channels + d, valid_e) + shift
            dy = _read(dout + (start + i) * channels + d, valid_e)
            b = _read(B + (start + i) * groups * N + n, valid_n)
            step, slope = _step_size(raw, valid_e, SOFTPLUS)
            a = tl.exp2(step * _LOG2_E * rates)
            h = a * h + (step * x) * b[:, None]
            if z is not None:
                c = _read(C + (start + i) * groups * N + n, valid_n)
                gate = _read(z + (start + i) * z_l + d, valid_e)
                open_ = _sigmoid(gate)
                y = tl.sum(c[:, None] * h, axis=0, keep_dims=True) + skip * x
                dzs = dzs + (dy * y * open_ * (1.0 + gate * (1.0 - open_)),)
                dy = dy * gate * open_
            hs, decays, xs, steps = hs + (h,), decays + (a,), xs + (x,), steps + (step,)
            slopes, dys = slopes + (slope,), dys + (dy,)
        valid_n = n < tl.where(start + STEPS - 1 < length, N, 0)
        next_b = _read(B + (start + STEPS - 1) * groups * N + n, valid_n)
        next_c = _read(C + (start + STEPS - 1) * groups * N + n, valid_n)
        for i in tl.static_range(STEPS - 1, -1, -1):
            inside = start + i < length
            valid_e, valid_n = e < tl.where(inside, width, 0), n < tl.where(inside, N, 0)
            b, c = next_b, next_c
            if i > 0:
                next_n = n < tl.where(start + i - 1 < length, N, 0)
                next_b = _read(B + (start + i - 1) * groups * N + n, next_n)
                next_c = _read(C + (start + i - 1) * groups * N + n, next_n)
            g = carry + c[:, None] * dys[i]
            dC = tl.sum(hs[i + 1] * dys[i], axis=1)
            dB = tl.sum(g * (steps[i] * xs[i]), axis=1)
            dinput = tl.sum(g * b[:, None], axis=0, keep_dims=True)  # of delta_t u_t
            carry = g * decays[i]
            product = carry * hs[i]
            dA += product * steps[i]
            ddelta_i = (dinput * xs[i] + tl.sum(product * rates, axis=0, keep_dims=True)) * slopes[i]
            du_i = dinput * steps[i] + dys[i] * skip
            dD += dys[i] * xs[i]
            dbias += ddelta_i
            at = (start + i) * channels + d
            tl.store(du + at, du_i.to(du.dtype.element_ty), mask=valid_e)
            tl.store(ddelta + at, ddelta_i.to(ddelta.dtype.element_ty), mask=valid_e)
            if z is not None:
                tl.store(dz + at, dzs[i].to(dz.dtype.element_ty), mask=valid_e)
            tl.store(dB_at + (start + i) * groups * N + n, dB, mask=valid_n)
            tl.store(dC_at + (start + i) * groups * N + n, dC, mask=valid_n)
        start -= STEPS
    tl.store(dweights + tile, dA, mask=has)
    tl.store(dweights + N * channels + d, dD, mask=has_e)
    tl.store(dweights + (N + 1) * channels + d, dbias, mask=has_e)


@triton.jit(do_not_specialize_on_alignment=["x", "out"])
def transpose_kernel(x, out, num_rows, num_columns, BLOCK: tl.constexpr) -> None:
    """Write x (B, rows, columns) as out (B, columns, rows), a square tile a program; torch's copy reads in strides."""
    across = tl.cdiv(num_columns, BLOCK)
    down = tl.cdiv(num_rows, BLOCK)
    program = tl.program_id(0)
    first = (program // across // down).to(tl.int64) * num_rows * num_columns
    r = program // across % down * BLOCK + tl.arange(0, BLOCK)
    c = program % across * BLOCK + tl.arange(0, BLOCK)
    mask = (r[:, None] < num_rows) & (c[None, :] < num_columns)
    tile = tl.load(x + first + r[:, None] * num_columns + c[None, :], mask=mask)
    mask = (c[:, None] < num_columns) & (r[None, :] < num_rows)
    tl.store(out + first + c[:, None] * num_rows + r[None, :], tl.trans(tile), mask=mask)


INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
