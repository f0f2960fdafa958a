"""How many CPU threads are worth having now: two threads beside another busy process can be slower than one.

The threads of one operation wait for each other at its end. Where a core is taken by another process, each operation
waits for that core's turn, and a step of many small operations has taken twenty times as long with two threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from ..extract.executors.threads import torch_threads

_STEPS, _MOST_SECONDS = 40, 1.0
_TOKENS, _WIDTH = 400, 384
_GAIN = 0.9
"""More threads are taken only where they need at most this share of the time."""


def threads_now(device: str) -> tuple[int, str | None]:
    """Return how many threads to compute with on this machine as it is now, and a line where they are fewer than usual.

    Args:
        device: where encoders and training run; only "cpu" is measured, in about two seconds.
    """
    most = torch.get_num_threads()
    if device != "cpu" or most == 1:
        return most, None
    return fewer_threads(most, _seconds_of_steps)


def fewer_threads(most: int, seconds: Callable[[int], float]) -> tuple[int, str | None]:
    """Return the number of threads to take of `most`, halving while that is not slower, and a line if it is fewer.

    Args:
        most: the number that would be taken otherwise.
        seconds: measures the same work with a number of threads.

    >>> fewer_threads(2, lambda threads: 0.5 if threads == 1 else 10.0)
    (1, 'other processes are busy: 2 threads take 20.0 times as long as 1; going on with 1')
    >>> fewer_threads(4, lambda threads: 8.0 / threads)
    (4, None)
    """
    chosen, first = most, seconds(most)
    taken = first
    while chosen > 1:
        fewer = seconds(chosen // 2)
        if taken <= _GAIN * fewer:
            break
        chosen, taken = chosen // 2, fewer
    if chosen == most or first <= taken:
        return most, None
    ratio = f"{most} threads take {first / taken:.1f} times as long as {chosen}"
    return chosen, f"other processes are busy: {ratio}; going on with {chosen}"


def _seconds_of_steps(threads: int) -> float:
    """Return the mean time of a training step of a block's size; after a second no further one is begun."""
    with torch_threads(threads):
        block = nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, _WIDTH))
        tokens = torch.ones(_TOKENS, _WIDTH)
        block(tokens).sum().backward()  # the first starts the threads
        started, elapsed, steps = time.perf_counter(), 0.0, 0
        while steps < _STEPS and elapsed < _MOST_SECONDS:
            block(tokens).sum().backward()
            elapsed, steps = time.perf_counter() - started, steps + 1
    return elapsed / steps
