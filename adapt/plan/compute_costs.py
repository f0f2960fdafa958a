"""Measure what each `compute` costs: the time of a prefix, and the error that it brings to the stored states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.format.int8 import Int8Error, quantized, restored
from ...errors import EncoderError, NumericsError, TrunkError
from ...extract.encoders.encoder import Encoder
from ...extract.encoders.options import Compute
from ...extract.stage.prefix import boundary_states
from ...extract.trunk.state import State
from ..training.experiment_context import ExperimentContext
from .measure import cached_measurement, seconds_of, timed

_CPU_SECONDS = 2.0  # a CPU without bfloat16 takes some ten times as long as in float32; beyond this it is not measured
_CPU_SLOWER = 10
_STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ComputeCost:
    """One `compute` of an encoder's prefix.

    Attributes:
        compute: "float32", "tf32" or "bfloat16".
        seconds: of the prefix, a clip or a text; preprocessing left out.
        error: of the states as they are stored, relative to float32: root mean square of the difference over that of
            the values. Of "float32" it is the storage type's own rounding. None where they cannot be stored so.
    """

    compute: str
    seconds: float
    error: float | None


def compute_costs(
    context: ExperimentContext,
    modality: str,
    boundary: int,
    inputs: Callable[[], dict[str, Tensor]],
    *,
    count: int,
    key: Any,
    fresh: bool,
) -> tuple[ComputeCost, ...]:
    """Measure an encoder's prefix in float32, tf32 and bfloat16, or take it from an earlier plan.

    On a CPU tf32 is float32 and left out, and so is bfloat16 where it would take long; and what the model cannot be
    computed in.

    Args:
        context: of the experiment.
        modality: of the encoder.
        boundary: where the prefix ends.
        inputs: makes the sample's batch.
        count: its items.
        key: JSON of what the encoder and the inputs are.
        fresh: measure again.
    """
    measure = partial(_measured, context, modality, boundary, inputs, count)
    what = {"compute": key, "boundary": boundary, "items": count}
    values, slower = cached_measurement(what, measure, device=context.device, fresh=fresh)
    return tuple(ComputeCost(**{**one, "seconds": one["seconds"] * slower}) for one in values)


@torch.no_grad()
def _measured(
    context: ExperimentContext, modality: str, boundary: int, inputs: Callable[[], dict[str, Tensor]], count: int
) -> list[dict[str, Any]]:
    """Measure one encoder in every type that it can be computed in."""
    device = context.device
    batch = {name: value.to(device) for name, value in inputs().items()}
    runs = {"float32": partial(_prefix, context.encoders[modality], batch, boundary)}
    expected = _numbers(runs["float32"]())
    on_cpu = torch.device(device).type == "cpu"
    slow = on_cpu and timed(runs["float32"], device, lasting=0) * _CPU_SLOWER > _CPU_SECONDS
    others: tuple[Compute, ...] = () if slow else ("bfloat16",) if on_cpu else ("tf32", "bfloat16")
    for compute in others:
        with suppress(EncoderError, TrunkError):  # a model that cannot be computed so is told when that is chosen
            runs[compute] = partial(_prefix, context.opened(modality, compute), batch, boundary)
    dtype = context.experiment.extraction.store.dtype
    errors = [_error(_numbers(run()), expected, dtype) for run in runs.values()]
    seconds = seconds_of(list(runs.values()), device)
    return [
        {"compute": compute, "seconds": taken / count, "error": error}
        for compute, taken, error in zip(runs, seconds, errors, strict=True)
    ]


def _prefix(encoder: Encoder, inputs: Mapping[str, Tensor], boundary: int) -> State:
    (state,) = boundary_states(encoder, dict(inputs), [boundary])
    return state


def _numbers(state: State) -> NDArray[np.float32]:
    """Return what of a batch's hidden tensor is stored, (…, D): of texts the real tokens."""
    hidden = state.hidden.float()
    if state.lengths is not None:
        hidden = hidden[torch.arange(hidden.shape[1], device=hidden.device) < state.lengths[:, None]]
    numbers: NDArray[np.float32] = hidden.cpu().numpy()
    return numbers


def _error(states: NDArray[np.float32], expected: NDArray[np.float32], dtype: str) -> float | None:
    """Return the relative error of states that are stored as `dtype`; None where they cannot be."""
    try:
        stored = _as_stored(states, dtype).astype(np.float64)
    except NumericsError:
        return None
    if not np.isfinite(stored).all():
        return None
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(stored - expected)) / size if size else 0.0


def _as_stored(states: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Return states as they are read from a store of `dtype`."""
    if dtype == "int8":
        values, scale = quantized(states, "a sample", Int8Error())
        return restored(values, scale)
    narrow = torch.from_numpy(states).to(_STORED.get(dtype, torch.float32))
    wide: NDArray[np.float32] = narrow.float().numpy()
    return wide
