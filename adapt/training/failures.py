"""What becomes of an error that one run raised: one line for the caller, its traceback in the run's folder."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from ...errors import RunError, TalikError
from .run_folder import RunFolder

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def reason_of(error: Exception) -> str:
    """Return an error in one line, that of another program with its kind.

    >>> from talik.errors import SettingsError
    >>> reason_of(SettingsError("lr: found 0, expected more"))
    'lr: found 0, expected more'
    >>> reason_of(KeyError("gain"))
    "KeyError: 'gain'"
    """
    try:
        said = " ".join(str(error).split()).encode(errors="backslashreplace").decode()
    except Exception:  # a plug-in's own class
        said = "its message cannot be shown"
    return said if isinstance(error, TalikError) else f"{type(error).__name__}: {said}".removesuffix(": ")


def record_failure(folder: RunFolder, error: Exception) -> str:
    """Write an error's message and traceback into the run's error.txt; return the message in one line.

    Where the folder cannot be written, the traceback goes to stderr.
    """
    reason, trace = reason_of(error), "".join(traceback.format_exception(error))
    try:
        folder.write_error(f"{reason}\n\n{trace}")
    except RunError:
        tqdm.write(trace.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    return reason


@contextmanager
def failures_recorded(folder: RunFolder) -> Iterator[None]:
    """Record the error that a block raises in the folder of the run that it is for; the error goes on as it is."""
    try:
        yield
    except Exception as error:
        record_failure(folder, error)
        raise


@contextmanager
def raised_in_one_line(folder: RunFolder) -> Iterator[None]:
    """Raise an error that is not talik's own as a RunError, and record its traceback in the folder of the run."""
    try:
        yield
    except TalikError:
        raise
    except Exception as error:
        reason = record_failure(folder, error)
        raise RunError(f"{folder.path}: {reason} (its traceback: {folder.error_file})") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    True
    >>> is_out_of_memory(RuntimeError("shapes that cannot be multiplied"))
    False
    """
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY))
