"""The executor of this machine: workers are processes, each with its own threads and, on CUDA, its own GPU.

A worker runs this file: `python -m talik.extract.executors.local FD`, FD being its end of a pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait

from .settings import EngineSettings
from .tasks import Job, Outcome, Task, perform
from .worker_pool import WorkerPool

_SECONDS_TO_SAVE = 60.0


class WorkerProcess:
    """A worker process and the pipe to it.

    It is started by name and not forked, for threads and CUDA contexts do not survive a fork; and not by
    `multiprocessing`, which would run the caller's script again.
    """

    def __init__(self, job: Job, slot: int, threads: int, gpu: str | None) -> None:
        self.slot = slot
        ours, theirs = Pipe()
        self.connection: Connection = ours
        environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))  # torch reads them
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "talik.extract.executors.local", str(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end says that we are gone
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment},
            )
        self.connection.send(job)

    def end(self) -> str:
        """Kill it, and return how it ended."""
        self.process.kill()
        code = self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.connection.close()
        if code >= 0:
            return f"worker {self.process.pid} exited with {code}"
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"worker {self.process.pid} was killed by {signal.Signals(-code).name}{hint}"


class LocalExecutor(WorkerPool[WorkerProcess]):
    """Several processes on this machine; `device` is what the work is for."""

    def __init__(self, settings: EngineSettings, *, device: str) -> None:
        super().__init__(settings, memory_bytes=settings.memory_bytes)
        self._gpus = _visible_gpus() if device.partition(":")[0] == "cuda" else []

    def num_workers(self) -> int:
        """Return the number of jobs."""
        return self.settings.jobs or 1

    def start(self, wanted: int) -> WorkerProcess | None:
        """See `WorkerPool.start`."""
        if len(self._busy) >= self.num_workers():
            return None
        assert self._job is not None
        slot = min(set(range(self.num_workers())) - {worker.slot for worker in self._busy})
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        return WorkerProcess(self._job, slot, self.settings.num_threads, gpu)

    def begin(self, worker: WorkerProcess, task: Task) -> None:
        """See `WorkerPool.begin`."""
        with suppress(OSError):  # it is gone, as its end of the pipe will say
            worker.connection.send(task)

    def poll(self, seconds: float) -> list[tuple[WorkerProcess, Outcome | str]]:
        """See `WorkerPool.poll`."""
        found: list[tuple[WorkerProcess, Outcome | str]] = []
        ready = wait([worker.connection for worker in self._busy], seconds)
        for worker in [worker for worker in self._busy if worker.connection in ready]:
            try:
                found.append((worker, worker.connection.recv()))
            except (EOFError, OSError):
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(5)  # its pipe may be closed a little before it is dead
                found.append((worker, worker.end()))
        return found

    def kill(self, worker: WorkerProcess) -> None:
        """See `WorkerPool.kill`."""
        worker.end()

    def ask_to_end(self, workers: Collection[WorkerProcess]) -> None:
        """Send SIGTERM and wait for a while: training ends with a checkpoint, whatever else at once."""
        for worker in workers:
            worker.process.terminate()
        until = time.monotonic() + _SECONDS_TO_SAVE
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, until - time.monotonic()))


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch  # a worker, which runs this file, starts without it

    return [str(i) for i in range(torch.cuda.device_count())]


def main() -> None:
    """Do the tasks that come through the pipe, as a worker process, until it is closed."""
    connection = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job: Job | None = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Task):
            assert job is not None
            connection.send(perform(job, message))
        else:
            job = message


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
