"""Abstract class of all executors, and the one that is this process itself; see also local.py, ray.py and slurm.py."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from .tasks import Job, Receipt, Task, peak_bytes, worker_name


class Executor(ABC):
    """Does tasks; a context manager, whose workers are gone when it ends.

    Attributes:
        in_process: tasks are done one after another by this process, and their errors are raised.
    """

    in_process = False

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """Have every task done and yield the receipts as they come.

        What workers have opened for `job` is kept until another job is given. A caller that stops early has the rest
        not begun.

        Raises:
            BackendError: no worker can be had.
        """

    @abstractmethod
    def num_workers(self) -> int:
        """Return how many tasks can be done at once, as things stand."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InProcessExecutor(Executor):
    """This process itself, one task after another; the first error ends the work."""

    in_process = True

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """See `Executor.run`; errors are raised as they are."""
        for task in tasks:
            started = time.perf_counter()
            result = job.run(task.given)
            seconds = time.perf_counter() - started
            yield Receipt(task=task.name, worker=worker_name(), seconds=seconds, result=result, peak_bytes=peak_bytes())

    def num_workers(self) -> int:
        """Return 1."""
        return 1

    def close(self) -> None:
        """End nothing."""
