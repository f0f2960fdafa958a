"""Float32 that is float32, or TensorFloat-32 where that is asked for: what torch computes float32 products in.

torch lets cuDNN compute float32 convolutions in TensorFloat-32 (10 bits of mantissa in place of 23) unless told
otherwise, and float32 matrix products where a program asked for it. Here it is off while states are computed, but for
an encoder that was opened with `compute = "tf32"`.

The settings are the process's: what another thread computes at the same time is computed in the same way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
_open = 0  # blocks that are open, of all threads: the settings are the process's
_open_tf32 = 0  # of them, those that switch TensorFloat-32 on
_before: dict[str, Any] = {}


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 convolutions, recurrent layers and matrix products as float32 while this is open.

    What was set before comes back when the last block of all threads is closed. Blocks may be nested.

    Example:
        >>> import torch
        >>> torch.backends.cudnn.allow_tf32 = True
        >>> with exact_float32():
        ...     torch.backends.cudnn.allow_tf32
        False
        >>> torch.backends.cudnn.allow_tf32
        True
    """
    global _open
    with _lock:
        if not _open:
            _before.update(_settings())
            _switch_off()
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                _restore(_before)


@contextmanager
def tf32() -> Iterator[None]:
    """Compute float32 convolutions, recurrent layers and matrix products in TensorFloat-32 on a GPU while this is open.

    Inside `exact_float32` too, which is on again afterwards. A CPU goes on in float32.

    Example:
        >>> import torch
        >>> with exact_float32(), tf32():
        ...     torch.backends.cudnn.allow_tf32
        True
    """
    global _open_tf32
    with exact_float32():
        with _lock:
            if not _open_tf32:
                _switch_on()
            _open_tf32 += 1
        try:
            yield
        finally:
            with _lock:
                _open_tf32 -= 1
                if not _open_tf32:
                    _switch_off()


def in_exact_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` run inside `exact_float32`."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with exact_float32():
            return function(*args, **kwargs)

    return run


@lru_cache
def _places() -> dict[str, Any]:
    """Return what holds a setting of torch's newer names, `fp32_precision`."""
    backends: Any = torch.backends
    found = {"conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn, "matmul": backends.cuda.matmul}
    cpu = getattr(backends, "mkldnn", None)
    for name in ("conv", "rnn", "matmul"):
        if hasattr(getattr(cpu, name, None), "fp32_precision"):
            found[f"mkldnn {name}"] = getattr(cpu, name)
    return found


def _settings() -> dict[str, Any]:
    """Return what is set; the older names fail where the newer were used unevenly, and then are left out."""
    found = {name: place.fp32_precision for name, place in _places().items()}
    with suppress(RuntimeError):
        found["allow_tf32"] = torch.backends.cudnn.allow_tf32
    with suppress(RuntimeError):
        found["matmul_precision"] = torch.get_float32_matmul_precision()
    return found


def _switch_off() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for place in _places().values():
        if place.fp32_precision not in ("ieee", "none"):  # what the newer names of a whole library say
            place.fp32_precision = "ieee"


def _switch_on() -> None:
    """Switch TensorFloat-32 on for CUDA alone, under the older names and so under the newer."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True


def _restore(before: dict[str, Any]) -> None:
    if "allow_tf32" in before:
        torch.backends.cudnn.allow_tf32 = before["allow_tf32"]
    if "matmul_precision" in before:
        torch.set_float32_matmul_precision(before["matmul_precision"])
    for name, place in _places().items():
        if place.fp32_precision != before[name]:
            place.fp32_precision = before[name]
