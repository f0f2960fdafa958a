"""CRC32C of large arrays, computed while other Python threads run.

`google_crc32c` computes with the interpreter's lock held, so that threads that check what they read take turns. The
library that it brings has the same function in C, which is called here without that lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_LARGE_BYTES = 1 << 16  # below, the call costs more than waiting


def _library_function() -> Callable[[int, int, int], int] | None:
    """Return the C function `crc32c_extend(crc, address, size)`; None where it is not found, as in pure Python."""
    try:
        from google_crc32c import _crc32c

        function = ctypes.CDLL(_crc32c.__file__).crc32c_extend
    except (ImportError, OSError, AttributeError):
        return None
    function.restype, function.argtypes = ctypes.c_uint32, [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]
    sample = ctypes.create_string_buffer(b"123456789", 9)
    return function if function(0, ctypes.addressof(sample), 9) == 0xE3069283 else None


_extend = _library_function()


def extend_crc32c(crc: int, values: NDArray[Any]) -> int:
    """Return a checksum extended by the bytes of an array, in C order; 0 is the checksum of none.

    >>> hex(extend_crc32c(0, np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'
    """
    if _extend is None or values.nbytes < _LARGE_BYTES:
        return int(google_crc32c.extend(crc, values)) if values.size else crc
    whole = np.ascontiguousarray(values)
    return _extend(crc, whole.__array_interface__["data"][0], whole.nbytes)
