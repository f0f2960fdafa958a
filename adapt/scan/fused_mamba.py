"""The `mamba_ssm` backend of the selective scan: mamba-ssm's CUDA kernel, with its demands on inputs met.

Letters: B batch, d channels, L time steps, N state size, G groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_STATE_SIZE = 256  # MAX_DSTATE in mamba-ssm's csrc/selective_scan/selective_scan.h


@functools.cache
def find_kernel() -> tuple[Callable[..., Tensor] | None, str]:
    """Import what a call needs; return (mamba-ssm's `selective_scan_fn`, "") or (None, the reason in one line)."""
    try:
        # The import of the interface imports the compiled `selective_scan_cuda`: an installed mamba-ssm that was
        # built without it, or against another torch, fails here and not in the middle of a run.
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, OSError) as error:
        return None, f"mamba_ssm cannot be imported ({' '.join(str(error).split())})"
    return selective_scan_fn, ""


def obstacle(tensors: list[Tensor], state_size: int, *, return_last_state: bool) -> str:
    """Return why the kernel cannot serve a call with these tensors, or "" when it can."""
    device, dtype = tensors[0].device, common_dtype(tensors)
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if device.type != "cuda":
        return f"the tensors are on {device.type}, the kernel runs on cuda"
    if dtype not in _KERNEL_DTYPES:
        return f"the inputs are {dtype}, the kernel takes float32, float16 and bfloat16"
    if state_size > _MAX_STATE_SIZE:
        return f"the state size is {state_size}, the kernel takes at most {_MAX_STATE_SIZE}"
    if with_gradients and torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are asked for, the kernel's gradients are not bit-reproducible"
    if with_gradients and return_last_state:
        return "the last state's gradient may be needed, the kernel drops it"
    return find_kernel()[1]


def common_dtype(tensors: list[Tensor]) -> torch.dtype:
    """Return the one data type that holds all of `tensors`."""
    return functools.reduce(torch.promote_types, (x.dtype for x in tensors))


def kernel_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return (u, delta, A, B, C, D, z, delta_bias) with the shapes, strides and data types that the kernel demands.

    u, delta, z (B, d, L) and B, C (B, G, N, L) come out in one data type with a last stride of 1; A (d, N), D and
    delta_bias (d,) in float32, contiguous. Tensors that comply already are passed on uncopied.
    """
    dtype = common_dtype([x for x in (u, delta, z, B, C) if x is not None])

    def line(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x.to(dtype)
        return x if x.stride(-1) == 1 else x.contiguous()

    def weight(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.float().contiguous()

    return line(u), line(delta), weight(A), line(B), line(C), weight(D), line(z), weight(delta_bias)


def mamba_scan(
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
) -> tuple[Tensor, Tensor]:
    """Call the kernel once on CUDA tensors that `obstacle` found no fault with.

    Args:
        u, delta, z: (B, d, L) float32, float16 or bfloat16. A: (d, N). B, C: (B, G, N, L). D, delta_bias: (d,).
        delta_softplus: whether softplus is applied to delta + delta_bias.

    Returns:
        the output (B, d, L) in the inputs' common data type, and the last state (B, d, N) float32 without gradient.
    """
    kernel, reason = find_kernel()
    assert kernel is not None, reason
    arguments = kernel_arguments(u, delta, A, B, C, D, z, delta_bias)
    out, last = kernel(*arguments, delta_softplus=delta_softplus, return_last_state=True)
    return out, last.detach()
