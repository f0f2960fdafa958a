"""Names the items in hand in whatever error leaves while some are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ...errors import name_item

_SHOWN = 8


@contextmanager
def in_hand(names: Sequence[str], alone: Callable[[int], object] | None = None) -> Iterator[None]:
    """Put the names of a batch's items before the message of an error of the block; of one item, if one is at fault.

    Args:
        names: of the items.
        alone: does what the block does with the item of one number, so that the one that fails is found; None where
            that cannot be told, as on a GPU, where an error comes late.

    Example:
        >>> with in_hand(["clips/a.mp4"]):
        ...     raise ValueError("a plug-in's message")
        Traceback (most recent call last):
        ValueError: clips/a.mp4: a plug-in's message
    """
    try:
        yield
    except Exception as error:
        if not any(name in str(error) for name in names):
            name_item(error, _at_fault(names, alone) or _all(names))
        raise


def _at_fault(names: Sequence[str], alone: Callable[[int], object] | None) -> str | None:
    """Return the first item that fails alone, None where none does."""
    if alone is not None and len(names) > 1:
        for number, name in enumerate(names):
            try:
                alone(number)
            except Exception:
                return name
    return None


def _all(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
