"""Quantization of states to int8 with one scale for each token, and its rounding error.

A token x of D values is stored as q = round(x / s), s = max |x| / 127 in float32, and read back as q * s in float32; a
token of zeros has the scale 0. So no value is off by more than s / 2, a 254th of its token's largest. The scales stand
beside the state as its input `scale`, of the state's shape without the last axis, which is what a token is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...errors import NumericsError, StoreMismatchError

SCALE = "scale"  # name of the input that holds the scales
MEASURED = "int8"  # key of the measured error in a provenance; it does not tell provenances apart
LARGEST = 127


@dataclass
class Int8Error:
    """Rounding error of int8, summed over items.

    >>> error = Int8Error()
    >>> stored, scale = quantized(np.array([[1.0, -2.0]]), "item", error)
    >>> stored.tolist(), error.num_items
    ([[64, -127]], 1)

    Args:
        squared_error: sum of the squared differences between the values and their restored int8 form.
        squared: sum of the squares of the values.
        num_items: number of items summed.
    """

    squared_error: float = 0.0
    squared: float = 0.0
    num_items: int = 0

    @property
    def relative_rms(self) -> float:
        """Root mean square of the error over that of the values; 0 where all values are 0."""
        return math.sqrt(self.squared_error / self.squared) if self.squared else 0.0

    def add(self, other: Int8Error) -> None:
        """Add the sums of another error."""
        self.squared_error += other.squared_error
        self.squared += other.squared
        self.num_items += other.num_items

    def add_to(self, provenance: dict[str, Any]) -> None:
        """Add this error to what a provenance has of it."""
        found = provenance.get(MEASURED, vars(Int8Error()))
        total = Int8Error(**{name: found[name] for name in vars(self)})
        total.add(self)
        provenance[MEASURED] = {"relative_rms": total.relative_rms, **vars(total)}


def quantized(
    hidden: NDArray[Any], where: str, error: Int8Error | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize one item to int8 with a scale for each token.

    Args:
        hidden: (…, D) floats.
        where: names boundary and item, for messages.
        error: accumulates the rounding error.

    Returns:
        The values (…, D) from -127 to 127, and the scales (…).

    Raises:
        NumericsError: NaN, Inf, or a value beyond float32.
        StoreMismatchError: an array that is not of floats.
    """
    if hidden.dtype.kind != "f" and hidden.dtype != ml_dtypes.bfloat16:
        raise StoreMismatchError(f"{where} is an array of {hidden.dtype}, expected floats to be stored as int8")
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(hidden, dtype=np.float32)
    largest = np.abs(values).max(axis=-1, initial=0)
    if not np.isfinite(largest).all():
        raise NumericsError(f"{where}: NaN, Inf or beyond float32; check this item's media, or the encoder's data type")
    scale = largest / np.float32(LARGEST)
    # A scale that is rounded down to a subnormal or to zero would give quotients beyond 127.
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]
    stored = np.clip(np.rint(values / divisor), -LARGEST, LARGEST).astype(np.int8)
    if error is not None:
        difference = (restored(stored, scale) - values).astype(np.float64)
        squared = float(np.square(values, dtype=np.float64).sum())
        error.add(Int8Error(float(np.square(difference).sum()), squared, 1))
    return stored, scale


def restored(
    stored: NDArray[np.int8], scale: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the values (…, D) of int8 `stored` (…, D) and the scales (…) of its tokens, in `out` if given."""
    return np.multiply(stored, scale[..., None], out=out, dtype=np.float32)
