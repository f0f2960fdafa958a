"""Workers that each do one task at a time: who is given what, what happens when one is lost; the same for all of them.

`local` says how workers of this machine are started and spoken to, `on_ray` how those of a cluster are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from .base import Executor
from .memory_budget import Budget
from .settings import EngineSettings
from .tasks import Job, Outcome, Receipt, Task, Waiting

Worker = TypeVar("Worker")

_SECONDS_BETWEEN_LOOKS = 1.0


class Crew(Executor, Generic[Worker]):
    """An engine of workers.

    Args:
        settings: of the engine.
        memory_bytes: what all workers together may use; None for no limit.
    """

    def __init__(self, settings: EngineSettings, *, memory_bytes: int | None = None) -> None:
        self.settings = settings
        self._memory_bytes = memory_bytes
        self._job: Job | None = None

    @abstractmethod
    def _worker(self, wanted: int) -> Worker | None:
        """Return a worker that has nothing to do; None where there is none now. `wanted` tasks could be begun."""

    @abstractmethod
    def _give(self, worker: Worker, task: Task) -> None:
        """Have a worker begin a task."""

    @abstractmethod
    def _news(self, seconds: float) -> list[tuple[Worker, Outcome | str]]:
        """Wait for at most so long; return what workers gave back, or why they are lost."""

    @abstractmethod
    def _dismiss(self, worker: Worker) -> None:
        """End a worker, whatever it does."""

    @abstractmethod
    def _dismiss_idle(self) -> None:
        """End the workers that have nothing to do, for the memory that they hold."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """See `Executor.run`."""
        if job is not self._job:
            self._dismiss_idle()
            self._job = job
        waiting = Waiting(tasks, attempts=self.settings.attempts)
        budget = Budget(self._memory_bytes)
        busy: dict[Worker, Task] = {}
        try:
            while waiting or busy:
                self._give_out(waiting, busy, budget)
                for worker, outcome in self._news(_SECONDS_BETWEEN_LOOKS):
                    task = busy.pop(worker)
                    if isinstance(outcome, str):
                        receipt = waiting.lost(task.name, outcome)
                    else:
                        receipt = waiting.ended(task.name, outcome)
                    if receipt is not None:
                        budget.learn(task, receipt)
                        yield receipt
        finally:
            for worker in busy:
                self._dismiss(worker)

    def _give_out(self, waiting: Waiting, busy: dict[Worker, Task], budget: Budget) -> None:
        for task in waiting.first():
            if not budget.admits(task, busy.values()):
                continue
            worker = self._worker(len(waiting))
            if worker is None:
                return
            waiting.begin(task)
            busy[worker] = task
            self._give(worker, task)
        if budget.limited:
            self._dismiss_idle()
