"""Conversion of states and inputs to their storage data types; NaN, Inf and overflow are errors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...errors import NumericsError, StoreMismatchError
from .spec import ArraySpec, BoundarySpec

_EXPONENT = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all exponent bits set: Inf or NaN
_LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.4e38}


def to_storage(hidden: NDArray[Any], spec: BoundarySpec, source: str) -> NDArray[Any]:
    """Convert a state to the contiguous array that is stored.

    Args:
        hidden: floats of any width; for bfloat16 also int16 or uint16 bit patterns; for int8 the result of `quantized`.
        spec: of the boundary.
        source: the item's source, for messages.

    Raises:
        NumericsError: NaN, Inf, or a value beyond the range of the storage data type.
        StoreMismatchError: an array that is not of floats.
    """
    if spec.dtype == "int8":
        return np.ascontiguousarray(hidden, dtype=np.int8)
    if spec.dtype == "bfloat16":
        if hidden.dtype in (np.int16, np.uint16):
            stored = np.ascontiguousarray(hidden).view(np.int16)
        elif hidden.dtype.kind == "f" or hidden.dtype == ml_dtypes.bfloat16:
            with np.errstate(over="ignore", invalid="ignore"):
                stored = np.ascontiguousarray(hidden.astype(ml_dtypes.bfloat16, copy=False)).view(np.int16)
        else:
            raise _wrong_kind(hidden, spec, source)
    elif hidden.dtype.kind == "f" or hidden.dtype == ml_dtypes.bfloat16:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = np.ascontiguousarray(hidden, dtype=spec.numpy_dtype)
    else:
        raise _wrong_kind(hidden, spec, source)
    if not all_finite(stored, spec.dtype):
        raise _not_finite(hidden, spec, source)
    return stored


def checked(hidden: NDArray[Any], spec: BoundarySpec, source: str) -> NDArray[Any]:
    """Return a state that can be stored: converted by `to_storage`, for int8 as it was.

    Args:
        hidden: floats; see `to_storage`.
        spec: of the boundary.
        source: the item's source, for messages.

    Raises:
        NumericsError: NaN, Inf, or a value beyond the range of the storage data type.
    """
    if spec.dtype != "int8":
        return to_storage(hidden, spec, source)
    if not np.isfinite(hidden).all():
        raise _not_finite(hidden, spec, source)
    return hidden


def to_input(values: NDArray[Any], spec: ArraySpec, where: str) -> NDArray[Any]:
    """Convert a small input to the data type of `spec` without changing its values.

    Raises:
        NumericsError: values that this data type cannot hold.
    """
    if values.dtype == np.dtype(spec.dtype):
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(values, dtype=spec.dtype)
    if not np.array_equal(stored, values):
        raise NumericsError(f"{where}: {values.dtype} values do not fit the declared {spec.dtype}; declare a wider one")
    return stored


def all_finite(stored: NDArray[Any], dtype: str) -> bool:
    """Return whether stored values hold no NaN and no infinity; bfloat16 as int16 bit patterns."""
    if dtype == "float32":
        return bool(np.isfinite(stored).all())
    if not stored.size:
        return True
    bits = _EXPONENT[dtype]  # numpy's isfinite converts halves one by one
    return bool(stored.view(np.int16).max() < bits and stored.view(np.uint16).max() < 0x8000 | bits)


def _not_finite(hidden: NDArray[Any], spec: BoundarySpec, source: str) -> NumericsError:
    if spec.dtype == "bfloat16" and hidden.dtype in (np.int16, np.uint16):
        hidden = hidden.view(ml_dtypes.bfloat16)
    values = hidden.astype(np.float64)
    where = f"{spec.modality} boundary {spec.boundary}: item {source!r}"
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        what = "NaN" if np.isnan(values).any() else "Inf"
        advice = "run the encoder in float32 or bfloat16 and store bfloat16, or check this item's media"
        return NumericsError(f"{where}: the encoder gave {what} at {place}, expected finite values; {advice}")
    largest = float(np.abs(values).max())
    advice = 'store bfloat16 ([store] dtype = "bfloat16")' if spec.dtype == "float16" else "store float32"
    return NumericsError(f"{where}: reaches {largest:.6g}, beyond {spec.dtype} ({_LARGEST[spec.dtype]:g}); {advice}")


def _wrong_kind(hidden: NDArray[Any], spec: BoundarySpec, source: str) -> StoreMismatchError:
    return StoreMismatchError(
        f"{spec.modality} boundary {spec.boundary}: item {source!r} is an array of {hidden.dtype}, expected floats "
        f"to be stored as {spec.dtype}"
    )
