"""The engine of this machine: workers are processes, each with its own threads and, on CUDA, its own GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait

import torch

from .settings import EngineSettings
from .tasks import Job, Outcome, Task
from .worker_pool import Crew


class _Process:
    """One worker process and the pipe to it.

    It is begun by name and not forked, for threads and CUDA contexts do not survive a fork; and not by
    `multiprocessing`, which would run the caller's script again.
    """

    def __init__(self, job: Job, slot: int, threads: int, gpu: str | None) -> None:
        self.slot = slot
        ours, theirs = Pipe()
        self.connection: Connection = ours
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }  # torch reads them
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "talik.extract.executors.worker", str(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end says that we are gone
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        self.connection.send(job)

    def end(self) -> str:
        """Kill it, and return how it had ended, if it had."""
        self.process.kill()
        code = self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.connection.close()
        if code >= 0:
            return f"worker {self.process.pid} exited with {code}"
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"worker {self.process.pid} was killed by {signal.Signals(-code).name}{hint}"


class LocalExecutor(Crew[_Process]):
    """Several processes on this machine.

    Args:
        settings: of the engine.
        device: that the work is for.
    """

    def __init__(self, settings: EngineSettings, *, device: str) -> None:
        super().__init__(settings, memory_bytes=settings.memory_bytes)
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []
        self._gpus = _visible_gpus() if torch.device(device).type == "cuda" else []

    def num_workers(self) -> int:
        """The number of jobs."""
        return self.settings.jobs or 1

    def _worker(self, wanted: int) -> _Process | None:
        if self._idle:
            return self._idle.pop()
        if len(self._busy) >= self.num_workers():
            return None
        assert self._job is not None
        slot = min(set(range(self.num_workers())) - {worker.slot for worker in self._busy})
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        return _Process(self._job, slot, self.settings.num_threads, gpu)

    def _give(self, worker: _Process, task: Task) -> None:
        self._busy.append(worker)
        with suppress(OSError):  # it is gone, as its end of the pipe will say
            worker.connection.send(task)

    def _news(self, seconds: float) -> list[tuple[_Process, Outcome | str]]:
        found: list[tuple[_Process, Outcome | str]] = []
        ready = wait([worker.connection for worker in self._busy], seconds)
        for worker in [worker for worker in self._busy if worker.connection in ready]:
            self._busy.remove(worker)
            try:
                found.append((worker, worker.connection.recv()))
                self._idle.append(worker)
            except (EOFError, OSError):
                found.append((worker, _how(worker)))
        return found

    def _dismiss(self, worker: _Process) -> None:
        if worker in self._busy:
            self._busy.remove(worker)
            worker.end()

    def _dismiss_idle(self) -> None:
        while self._idle:
            self._idle.pop().end()

    def close(self) -> None:
        """Kill all workers."""
        self._dismiss_idle()
        for worker in list(self._busy):
            self._dismiss(worker)


def _how(worker: _Process) -> str:
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(5)  # its pipe may be closed a little before it is dead
    return worker.end()


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(i) for i in range(torch.cuda.device_count())]
