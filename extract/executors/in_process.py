"""The executor that is this process itself: one task after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from .base import Executor
from .tasks import Job, Receipt, Task, peak_bytes, worker_name


class InProcessExecutor(Executor):
    """This process itself, one task after another; the first error ends the work."""

    in_process = True

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """See `Executor.run`; errors are raised as they are."""
        for task in tasks:
            started = time.perf_counter()
            result = job.run(task.given)
            yield Receipt(
                task=task.name,
                worker=worker_name(),
                seconds=time.perf_counter() - started,
                result=result,
                peak_bytes=peak_bytes(),
            )

    def num_workers(self) -> int:
        """One."""
        return 1

    def close(self) -> None:
        """Nothing is to be let go."""
