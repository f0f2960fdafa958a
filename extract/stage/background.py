"""An iterator run ahead by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 1.0


def in_background(iterator: Iterator[T], *, ahead: int) -> Generator[T, None, None]:
    """Yield what an iterator yields, which a thread takes from it ahead of the caller.

    An error of the iterator is raised where its next value would be. Closed early, the thread closes the iterator at
    its next value, and is waited for a second.

    Args:
        iterator: used by the thread alone.
        ahead: how many values may wait.

    Example:
        >>> list(in_background(iter([1, 2, 3]), ahead=1))
        [1, 2, 3]
    """
    ready: queue.Queue[tuple[T | None, BaseException | None] | None] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(entry: tuple[T | None, BaseException | None] | None) -> None:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=_SECONDS_BETWEEN_LOOKS)
            except queue.Full:
                continue
            return

    def take() -> None:
        try:
            for value in iterator:
                put((value, None))
                if closed.is_set():
                    break
            put(None)
        except BaseException as error:
            put((None, error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=take, name="talik-ahead", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            value, error = entry
            if error is not None:
                raise error
            yield value  # type: ignore[misc]
    finally:
        closed.set()
        thread.join(_SECONDS_TO_END)
