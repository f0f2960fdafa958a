"""The number of CPU threads that torch computes with, set for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(number: int | None = None) -> Iterator[None]:
    """Set the number of torch's CPU threads, and restore the former one at the end whatever set it in between.

    Last bits of a result depend on this number, so a command that sets it must not leave it to the next one of the same
    process.

    Args:
        number: 1 or more; None or 0 leaves the number as it is until something else sets it.

    Example:
        >>> import torch
        >>> before = torch.get_num_threads()
        >>> with torch_threads(1):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
