"""One thread that reads ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def prefetched(read: Callable[[K], V], asked: Iterable[K], depth: int) -> Iterator[V]:
    """Yield `read(a)` for each `a` in `asked`, up to `depth` results ahead of the caller.

    `asked` is iterated in the thread. What it or `read` raises is raised here, after the results before it. Closing the
    generator, or dropping it, ends the thread and waits for it.
    """
    done: queue.Queue[tuple[V | None, BaseException | None, bool]] = queue.Queue(max(1, depth))
    stop = threading.Event()

    def put(value: V | None, error: BaseException | None, last: bool) -> bool:
        while not stop.is_set():
            try:
                done.put((value, error, last), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for one in asked:
                if stop.is_set() or not put(read(one), None, False):
                    return
            put(None, None, True)
        except BaseException as error:  # handed over, whatever it is: the caller must not wait for ever
            put(None, error, True)

    thread = threading.Thread(target=work, name="talik-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value, error, last = done.get()
            if error is not None:
                raise error
            if last:
                return
            yield value  # type: ignore[misc]
            del value
    finally:
        stop.set()
        while not done.empty():
            done.get_nowait()
        thread.join()
