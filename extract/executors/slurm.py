"""The executor of Slurm's array jobs, through submitit: each element does a share of the tasks, one after another.

An element leaves a receipt, a small JSON file, as soon as a task is done, and it begins by passing over the tasks that
have one; so an element that Slurm preempts, requeues or submits again goes on where it was. submitit is imported here,
and only when it is used.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...cache.atomic_io import make_folder, write_file
from ...errors import BackendError
from .base import Executor
from .settings import EngineSettings
from .tasks import Job, Receipt, Task, TaskQueue, perform

_DEFAULT_JOBS = 8
_SECONDS_BETWEEN_POLLS = 1.0
_SECONDS_TO_END = 10.0


class Share:
    """Tasks of one element of the array, in order, each with the file of its receipt.

    submitit calls it, and `checkpoint` when Slurm is about to take its node.
    """

    def __init__(self, job: Job, tasks: Sequence[tuple[Task, Path]], threads: int) -> None:
        self.job, self.tasks, self.threads = job, tasks, threads

    def __call__(self) -> int:
        """Do the tasks that have no receipt; return how many that were."""
        torch.set_num_threads(self.threads)
        done = 0
        for task, path in self.tasks:
            if not path.exists():
                write_file(path, json.dumps(perform(self.job, task)).encode())
                done += 1
        return done

    def checkpoint(self) -> Any:
        """Have the same share submitted again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class SlurmExecutor(Executor):
    """Array jobs of Slurm; `device` is what the work is for.

    `folder` keeps logs and receipts, on a disk that all nodes share.

    Raises:
        BackendError: submitit is not installed, or there is no Slurm.
    """

    def __init__(self, settings: EngineSettings, *, device: str, folder: Path) -> None:
        try:
            import submitit
        except ImportError:
            raise BackendError(
                "submitit is not installed; pip install 'talik[slurm]', or leave --engine submitit out"
            ) from None
        self.settings = settings
        self._folder = folder.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        make_folder(self._folder)
        self.running: list[Any] = []
        self._arrays = 0
        self._complete = True
        try:
            self._executor = submitit.AutoExecutor(folder=self._folder / "%j", cluster=settings.address or "slurm")
            self._executor.update_parameters(**self._requirements(device))
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise BackendError(f"submitit: {' '.join(str(error).split())[:300]}") from None

    def num_workers(self) -> int:
        """Return the number of elements of an array."""
        return self.settings.jobs or _DEFAULT_JOBS

    def _requirements(self, device: str) -> dict[str, Any]:
        """Return the resources to request, under the names of submitit's executors."""
        settings = self.settings
        wanted: dict[str, Any] = {"name": "talik", "cpus_per_task": settings.num_threads}
        if settings.memory_gb is not None:
            wanted["mem_gb"] = settings.memory_gb
        if gpus := settings.gpus_of(device):
            wanted["gpus_per_node"] = int(gpus)
        if (settings.address or "slurm") == "slurm":
            wanted["slurm_array_parallelism"] = self.num_workers()
        for name, value in settings.slurm.items():
            wanted["timeout_min" if name == "time" else f"slurm_{name}"] = value
        return wanted

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Receipt]:
        """See `Executor.run`."""
        queue = TaskQueue(tasks, attempts=self.settings.attempts)
        shares: list[tuple[Any, list[tuple[Task, Path]]]] = []
        self._complete = False
        while queue or shares:
            begun = queue.ready()
            for task in begun:
                queue.begin(task)
            if begun:
                shares += self._submit(job, begun)
            for submitted, left in list(shares):
                receipts: list[Receipt | None] = []
                over = submitted.done()  # before looking for receipts: then none can come later
                for task, path in list(left):
                    if path.exists():
                        left.remove((task, path))
                        receipts.append(queue.ended(task.name, json.loads(path.read_bytes())))
                if over or not left:
                    shares.remove((submitted, left))
                    if left:
                        receipts.append(queue.lost(left[0][0].name, _why_lost(submitted)))
                    for task, _ in reversed(left[1:]):
                        queue.put_back(task.name)
                yield from (receipt for receipt in receipts if receipt is not None)
            time.sleep(_SECONDS_BETWEEN_POLLS)
        self._complete = True

    def _submit(self, job: Job, tasks: Sequence[Task]) -> list[tuple[Any, list[tuple[Task, Path]]]]:
        count = min(self.num_workers(), len(tasks))
        kept = self._folder / f"receipts-{self._arrays:03d}"
        self._arrays += 1
        make_folder(kept)
        pairs = [(task, kept / f"{i:05d}.json") for i, task in enumerate(tasks)]
        parts = [pairs[i::count] for i in range(count)]
        try:
            with self._executor.batch():
                submitted = [self._executor.submit(Share(job, part, self.settings.num_threads)) for part in parts]
        except Exception as error:  # whatever sbatch says comes as submitit's own classes
            raise BackendError(f"submitit: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
        self.running += submitted
        return list(zip(submitted, parts, strict=True))

    def close(self) -> None:
        """Let elements whose share is done come to their end; cancel the others."""
        until = time.monotonic() + (_SECONDS_TO_END if self._complete else 0.0)
        for submitted in self.running:
            while not submitted.done() and time.monotonic() < until:
                time.sleep(0.1)
            if not submitted.done():
                submitted.cancel()
                submitted.done()
        self.running = []


def _why_lost(submitted: Any) -> str:
    """Return why an element ended before its share was done."""
    error = submitted.exception()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error is not None else []
    state = str(submitted.state)
    return f"job {submitted.job_id} ended as {state}" + (f": {lines[-1][:200]}" if lines else "")
