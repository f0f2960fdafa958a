"""States as int8 with a scale for each token, and what that costs in accuracy.

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

from ...errors import NumericsError, StoreMismatchError

Array = np.ndarray[Any, Any]
SCALE = "scale"  # the input that holds the scales
MEASURED = "int8"  # the key of a provenance that holds the error; no part of what a run says of itself
LARGEST = 127


@dataclass
class Int8Error:
    """What rounding to int8 changed, summed over items.

    Args:
        squared_error: sum of the squared differences between what was given and what is read back.
        squared: sum of the squares of what was given.
        num_items: items that were counted.
    """

    squared_error: float = 0.0
    squared: float = 0.0
    num_items: int = 0

    @property
    def relative_rms(self) -> float:
        """Root mean square of the error over that of the values; 0 where all values are 0."""
        return math.sqrt(self.squared_error / self.squared) if self.squared else 0.0

    def add(self, other: Int8Error) -> None:
        """Count another's items too."""
        self.squared_error += other.squared_error
        self.squared += other.squared
        self.num_items += other.num_items

    def to_json(self) -> dict[str, Any]:
        """Return it as a provenance holds it."""
        return {"relative_rms": self.relative_rms, **vars(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Int8Error:
        """Return what `to_json` gave."""
        return cls(**{name: fields[name] for name in ("squared_error", "squared", "num_items")})


def quantized(hidden: Array, where: str, error: Int8Error | None = None) -> tuple[Array, Array]:
    """Return one item as int8 and the scales of its tokens.

    Args:
        hidden: (…, D) floats.
        where: names boundary and item, for messages.
        error: where the item is counted.

    Returns:
        (…, D) int8 from -127 to 127, and (…) float32.

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


def restored(stored: Array, scale: Array, out: Array | None = None) -> Array:
    """Return the values (…, D) float32 of int8 `stored` (…, D) and the scales (…) of its tokens, in `out` if given."""
    return np.multiply(stored, scale[..., None], out=out, dtype=np.float32)
