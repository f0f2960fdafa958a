"""What every executor does: an abstract class of which this process, processes, Ray and Slurm are implementations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType

from .tasks import Job, Receipt, Task


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
        """How many tasks can be done at once, as things stand."""

    @abstractmethod
    def close(self) -> None:
        """Let the workers go."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
