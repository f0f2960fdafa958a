"""The interface of all engines, the one that is this process itself, and the choice among them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from .settings import EngineSettings
from .tasks import Job, Receipt, Task, peak_bytes, worker_name


class Engine(ABC):
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

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Here(Engine):
    """This process itself, one task after another; the first error ends the work."""

    in_process = True

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """See `Engine.run`; errors are raised as they are."""
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


def open_engine(settings: EngineSettings, *, device: str, base: Path) -> Engine:
    """Return the engine that the settings name.

    Args:
        settings: of the experiment.
        device: that the work is for; workers are given GPUs where it is CUDA.
        base: the folder that the settings' paths count from.

    Raises:
        BackendError: a package that it needs is not installed, or no cluster is there.
    """
    if settings.in_process:
        return Here()
    if settings.kind == "local":
        from .local import LocalEngine

        return LocalEngine(settings, device=device)
    if settings.kind == "ray":
        from .on_ray import RayEngine

        return RayEngine(settings, device=device)
    from .on_slurm import SlurmEngine

    return SlurmEngine(settings, device=device, folder=base / settings.folder)
