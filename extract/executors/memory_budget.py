"""The memory budget of this machine's workers: which task may begin beside those that are being done."""

from __future__ import annotations

import sys
from collections.abc import Collection

from tqdm import tqdm

from .tasks import Receipt, Task


class Budget:
    """What all workers together may use.

    A task whose need nobody has predicted is taken to need what such tasks have used so far; so the first of them is
    done alone. One that needs more than everything is done alone, too.

    Args:
        limit_bytes: None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self._measured = 0
        self._noted: set[str] = set()

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit is not None

    def admits(self, task: Task, beside: Collection[Task]) -> bool:
        """Say whether a task may begin beside others."""
        if self._limit is None:
            return True
        need = self._need(task)
        if not beside:
            if need > self._limit and task.name not in self._noted:
                self._noted.add(task.name)
                said = f"needs about {need / 1e9:.1f} GB, more than memory_gb = {self._limit / 1e9:g}; it runs alone"
                tqdm.write(f"{task.name}: {said}", file=sys.stderr)
            return True
        others = [self._need(other) for other in beside]
        return bool(need) and all(others) and need + sum(others) <= self._limit

    def learn(self, task: Task, receipt: Receipt) -> None:
        """Take in what a worker has used."""
        if not task.memory_bytes:
            self._measured = max(self._measured, receipt.peak_bytes)

    def _need(self, task: Task) -> int:
        return task.memory_bytes or self._measured
