"""`selective_scan`: checks the shapes, chooses a backend and says once which and why.

Letters: B batch, d channels, L time steps, N state size, G groups (d divisible by G), E = d/G.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BackendError, SettingsError, unknown_name
from .chunk import chunked_scan
from .fused_mamba import mamba_scan, obstacle
from .member_axis import at_once, fold, has_members, num_members, of_each, unfold
from .naive import scan_loop
from .softplus import softplus
from .triton_scan import obstacle as triton_obstacle
from .triton_scan import triton_scan

BACKENDS = ("auto", "torch", "triton", "mamba_ssm", "reference")
_LOOPS = {"torch": chunked_scan, "reference": scan_loop}
_logger = logging.getLogger(__name__)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state space scan (S6), with the meaning of mamba-ssm's `selective_scan_ref` for real A.

    With dt = delta + delta_bias, then softplus where asked, and from a zero state:
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t;  y_t = C_t h_t + D u_t;  out_t = y_t silu(z_t)
    (Gu and Dao 2023, https://arxiv.org/abs/2312.00752, algorithm 2).

    All arithmetic is in float32, under any autocast and for any narrower input; in float64 where an input is float64.

    Args:
        u, delta, z: (B, d, L), floating point; z may be None.
        A: (d, N), real.
        B, C: (B, N, L); (B, G, N, L) with group g serving channels g·d/G … ; or (d, N), constant in time, which
            `torch` runs with one group a channel (slow, and B, C take the memory of a state a time step).
        D, delta_bias: (d,) or None.
        return_last_state: also return h_L.
        backend: "auto" takes on CUDA the first of "mamba_ssm", "triton" and "torch" that can run, elsewhere "torch".
            "torch" is chunked, has first-order gradients only and is bit-reproducible; so is "triton", in one kernel
            each way, with no float64. "mamba_ssm" needs CUDA and mamba-ssm's extension; its gradients are not
            bit-reproducible, and it gives none for the last state. "reference" is the plain loop: slow, any order of
            gradients.

    Returns:
        out (B, d, L) in the data type of u; with return_last_state also h_L (B, d, N) in float32 (or float64).

    Raises:
        SettingsError: shapes that do not fit each other, a complex A, an unknown backend.
        BackendError: `backend="mamba_ssm"` or "triton" where it cannot serve this call, with the reason.

    Example:
        >>> import torch, talik
        >>> u, delta, A = torch.ones(2, 3, 5), torch.ones(2, 3, 5), -torch.ones(3, 4)
        >>> B, C = torch.ones(2, 4, 5), torch.ones(2, 4, 5)
        >>> talik.selective_scan(u, delta, A, B, C).shape
        torch.Size([2, 3, 5])
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    if has_members(u, delta, A, B, C, D, z, delta_bias):
        if return_last_state:
            raise SettingsError("return_last_state: under torch.vmap the scan gives its output alone")
        rule = functools.partial(_of_members, delta_softplus=delta_softplus, backend=backend)
        return at_once(rule, u, delta, A, B, C, D, z, delta_bias)
    operands = (u, delta, A, B, C, D, z, delta_bias)
    tensors = [x for x in operands if x is not None]
    num_groups = _num_groups(B, C, u.shape[1])
    obstacles = {
        "mamba_ssm": lambda: obstacle(tensors, A.shape[1], return_last_state=return_last_state),
        "triton": lambda: triton_obstacle(operands, num_groups, delta_softplus=delta_softplus),
    }
    chosen = choose_backend(backend, u.device.type, obstacles)
    with torch.autocast(u.device.type, enabled=False):
        if chosen == "mamba_ssm":
            B, C = _grouped(B, C, u, num_groups)
            out, last = mamba_scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
        elif chosen == "triton":
            if min(B.dim(), C.dim()) == 2 or B.shape[:-2] != C.shape[:-2]:
                B, C = _grouped(B, C, u, num_groups)
            out, last = triton_scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
        else:
            dtype = torch.float64 if torch.float64 in {x.dtype for x in tensors} else torch.float32
            uw, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
            D, z, delta_bias = (None if x is None else x.to(dtype) for x in (D, z, delta_bias))
            if delta_bias is not None:
                delta = delta + delta_bias.unsqueeze(-1)
            if delta_softplus:
                delta = F.softplus(delta) if chosen == "reference" else softplus(delta)
            y, last = _LOOPS[chosen](*_channels_last(uw, delta, A, *_grouped(B, C, u, num_groups)))
            out = y.flatten(2).transpose(1, 2)
            if D is not None:
                out = torch.addcmul(out, uw, D.unsqueeze(-1))
            if z is not None:
                out = out * F.silu(z)
            last = last.transpose(2, 3).flatten(1, 2)
        out = out.to(u.dtype)
    return (out, last) if return_last_state else out


def _of_members(
    shared: Sequence[bool],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    *,
    delta_softplus: bool,
    backend: str,
) -> Tensor:
    """Scan the lines of several members, u (P, B, d, L), as one of P·d channels and P·G groups."""
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    num = num_members(shared, tensors)
    u, delta, A, B, C, D, z, delta_bias = (  # type: ignore[assignment]
        None if x is None else of_each(x, same, num) for x, same in zip(tensors, shared, strict=True)
    )

    def groups(x: Tensor) -> Tensor:
        if x.dim() == 3:  # constant in time, (P, d, N)
            return x.flatten(0, 1)
        return fold(x.unsqueeze(2) if x.dim() == 4 else x, 1)  # (B, P·G, N, L)

    out = selective_scan(
        fold(u, 1),
        fold(delta, 1),
        A.flatten(0, 1),
        groups(B),
        groups(C),
        D=None if D is None else D.flatten(),
        z=None if z is None else fold(z, 1),
        delta_bias=None if delta_bias is None else delta_bias.flatten(),
        delta_softplus=delta_softplus,
        backend=backend,
    )
    assert isinstance(out, Tensor)
    return unfold(out, 1, num)


def _channels_last(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """Lay the operands, B and C grouped, out for the loops: (B, L, G, E), A (G, N, E), B and C (B, L, G, N)."""
    groups = B.shape[1]
    u, delta = (x.transpose(1, 2).unflatten(2, (groups, -1)) for x in (u, delta))
    return u, delta, A.unflatten(0, (groups, -1)).transpose(1, 2), B.permute(0, 3, 1, 2), C.permute(0, 3, 1, 2)


def _grouped(B: Tensor, C: Tensor, u: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Bring both to (B, G, N, L) with one G: constants to a group a channel, fewer groups repeated."""
    batch, channels, length = u.shape

    def line(x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x[None, :, :, None].expand(batch, channels, -1, length)
        return x.unsqueeze(1) if x.dim() == 3 else x

    B, C = line(B), line(C)
    B, C = (x if x.shape[1] == groups else x.repeat_interleave(groups // x.shape[1], dim=1) for x in (B, C))
    return B, C


def _num_groups(B: Tensor, C: Tensor, channels: int) -> int:
    """Return the least number of groups that those of B and of C divide."""
    return math.lcm(*({2: channels, 3: 1}.get(x.dim(), x.shape[1]) for x in (B, C)))


def choose_backend(backend: str, device_type: str, obstacles: Mapping[str, Callable[[], str]]) -> str:
    """Return the loop or kernel to run, and log each distinct choice once.

    Args:
        obstacles: for each kernel, why it cannot serve the call, "" where it can; the first that can is the choice.
    """
    if backend not in BACKENDS:
        raise SettingsError(unknown_name("scan backend", backend, BACKENDS))
    if backend in _LOOPS:
        return backend
    if backend != "auto":
        if reason := obstacles[backend]():
            raise BackendError(f"backend {backend!r} was asked for and cannot run: {reason}; use 'auto' or 'torch'")
        log_choice(backend, device_type, "")
        return backend
    chosen, reasons = "torch", []
    for name, obstacle_of in obstacles.items():
        reason = obstacle_of()
        if not reason:
            chosen = name
            break
        reasons.append(reason)
        if device_type != "cuda":
            break
    log_choice(chosen, device_type, "; ".join(reasons))
    return chosen


@functools.cache
def log_choice(chosen: str, device_type: str, reason: str) -> None:
    """Log once which backend was chosen, and why."""
    _logger.info("selective_scan runs %s on %s%s", chosen, device_type, f": {reason}" if reason else "")


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise SettingsError for the first operand whose shape or data type does not fit u (B, d, L) and A (d, N)."""
    if u.dim() != 3 or A.dim() != 2 or A.shape[0] != u.shape[1]:
        raise SettingsError(f"u is {_shape(u)} and A {_shape(A)}, expected u (B, d, L) and A (d, N) with the same d")
    if not all(x.is_floating_point() for x in (u, delta, A, B, C)):
        raise SettingsError("an operand is complex or integer, expected real floating-point tensors")
    batch, channels, length = u.shape
    state_size = A.shape[1]
    for name, line in (("delta", delta), ("z", z)):
        if line is not None and line.shape != u.shape:
            raise SettingsError(f"{name} is {_shape(line)}, expected the shape of u, {_shape(u)}")
    for name, weight in (("D", D), ("delta_bias", delta_bias)):
        if weight is not None and weight.shape != (channels,):
            raise SettingsError(f"{name} is {_shape(weight)}, expected ({channels},), one value a channel of u")
    for name, x in (("B", B), ("C", C)):
        fits = {
            2: x.shape == (channels, state_size),
            3: x.shape == (batch, state_size, length),
            4: x.dim() == 4
            and x.shape[1] > 0
            and channels % x.shape[1] == 0
            and (x.shape[0], *x.shape[2:]) == (batch, state_size, length),
        }
        if not fits.get(x.dim(), False):
            raise SettingsError(
                f"{name} is {_shape(x)}, expected ({batch}, {state_size}, {length}), "
                f"({batch}, G, {state_size}, {length}) with {channels} divisible by G, or ({channels}, {state_size})"
            )


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))
