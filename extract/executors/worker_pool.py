"""Executor of workers that each do one task at a time: which task begins when, and what follows when a worker is lost.

`local` starts workers of this machine, `ray` those of a cluster; both take their tasks from here.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

from .base import Executor
from .settings import EngineSettings
from .tasks import Job, Outcome, Receipt, Task, TaskQueue

_log = logging.getLogger(__name__)

Worker = TypeVar("Worker")

_SECONDS_BETWEEN_POLLS = 1.0


class WorkerPool(Executor, Generic[Worker]):
    """An executor that gives tasks to workers.

    Args:
        settings: of the executor.
        memory_bytes: what all workers together may use; None for no limit.
    """

    def __init__(self, settings: EngineSettings, *, memory_bytes: int | None = None) -> None:
        self.settings = settings
        self._memory_bytes = memory_bytes
        self._job: Job | None = None
        self._idle: list[Worker] = []
        self._busy: dict[Worker, Task] = {}

    @abstractmethod
    def start(self, wanted: int) -> Worker | None:
        """Start a worker and return it, None if none is ready now; `wanted` tasks could be begun."""

    @abstractmethod
    def begin(self, worker: Worker, task: Task) -> None:
        """Have a worker begin a task."""

    @abstractmethod
    def poll(self, seconds: float) -> list[tuple[Worker, Outcome | str]]:
        """Wait for at most `seconds`; return the workers that ended a task with its outcome, or why they are lost."""

    @abstractmethod
    def kill(self, worker: Worker) -> None:
        """End a worker, whatever it does."""

    def ask_to_end(self, workers: Collection[Worker]) -> None:
        """Have workers save what they are at and end, before they are killed; by default nothing is done."""

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """See `Executor.run`."""
        if job is not self._job:
            self.stop_idle()
            self._job = job
        queue = TaskQueue(tasks, attempts=self.settings.attempts)
        budget = MemoryBudget(self._memory_bytes)
        try:
            while queue or self._busy:
                self._begin_tasks(queue, budget)
                for worker, outcome in self.poll(_SECONDS_BETWEEN_POLLS):
                    task = self._busy.pop(worker)
                    if isinstance(outcome, str):
                        receipt = queue.lost(task.name, outcome)
                    else:
                        self._idle.append(worker)
                        receipt = queue.ended(task.name, outcome)
                    if receipt is not None:
                        budget.learn(task, receipt)
                        yield receipt
        finally:
            self._stop_busy()

    def stop_idle(self) -> None:
        """Kill the workers that do nothing, which frees their memory."""
        while self._idle:
            self.kill(self._idle.pop())

    def close(self) -> None:
        """End all workers."""
        self.stop_idle()
        self._stop_busy()

    def _stop_busy(self) -> None:
        try:
            self.ask_to_end(list(self._busy))
        finally:
            while self._busy:
                self.kill(self._busy.popitem()[0])

    def _begin_tasks(self, queue: TaskQueue, budget: MemoryBudget) -> None:
        for task in queue.ready():
            if not budget.admits(task, self._busy.values()):
                continue
            worker = self._idle.pop() if self._idle else self.start(len(queue))
            if worker is None:
                return
            queue.begin(task)
            self._busy[worker] = task
            self.begin(worker, task)
        if self._memory_bytes is not None:
            self.stop_idle()


class MemoryBudget:
    """Which task may begin beside others, given the memory that all workers of this machine together may use.

    A task of unknown need is taken to need what such tasks have used so far, so the first of them is done alone. One
    that needs more than everything is done alone, too.

    Args:
        limit_bytes: None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self._measured = 0
        self._noted: set[str] = set()

    def admits(self, task: Task, beside: Collection[Task]) -> bool:
        """Return whether a task may begin beside others."""
        if self._limit is None:
            return True
        need = self._need(task)
        if not beside:
            if need > self._limit and task.name not in self._noted:
                self._noted.add(task.name)
                said = f"needs about {need / 1e9:.1f} GB, more than memory_gb = {self._limit / 1e9:g}; it runs alone"
                _log.warning("%s: %s", task.name, said)
            return True
        others = [self._need(other) for other in beside]
        return bool(need) and all(others) and need + sum(others) <= self._limit

    def learn(self, task: Task, receipt: Receipt) -> None:
        """Remember the memory that a worker used for a task of unknown need."""
        if not task.memory_bytes:
            self._measured = max(self._measured, receipt.peak_bytes)

    def _need(self, task: Task) -> int:
        return task.memory_bytes or self._measured
