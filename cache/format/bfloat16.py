"""The bfloat16 data type for zarr-python, which has none of its own; tensorstore reads it natively.

An entry point of the group `zarr.data_type` in pyproject.toml names it, so that zarr-python finds it wherever talik is
installed; `register` does the same in this process. Values are ml_dtypes' NumPy scalars, as in JAX and tensorstore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from zarr.core.dtype.npy.float import BaseFloat
from zarr.dtype import DataTypeValidationError, data_type_registry

_NATIVE = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(BaseFloat[Any, Any]):
    """Zarr's `bfloat16`: the upper half of a float32, little-endian."""

    dtype_cls = type(_NATIVE)
    _zarr_v3_name: ClassVar[str] = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()

    @property
    def item_size(self) -> int:
        """Bytes of a scalar."""
        return 2

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> BFloat16:
        """Return the data type of a NumPy array of ml_dtypes.bfloat16."""
        if dtype == _NATIVE:
            return cls()
        raise DataTypeValidationError(f"Invalid data type: {dtype}. Expected {_NATIVE}")

    def to_native_dtype(self) -> Any:
        """Return the NumPy data type."""
        return _NATIVE


def register() -> None:
    """Make zarr-python read and write bfloat16 in this process; calling it again does nothing."""
    data_type_registry.register("bfloat16", BFloat16)
