"""The executor of a Ray cluster: workers are actors on its nodes, which return receipts alone.

Nodes may join and leave at any time: an actor that is gone costs the task that it did, and others are started as long
as there is room. Ray is imported here, and only when it is used.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from ...errors import BackendError
from .settings import EngineSettings
from .tasks import Job, Outcome, Task, perform, worker_name
from .worker_pool import WorkerPool

_log = logging.getLogger(__name__)

_MAX_WAIT_SECONDS = 300.0
_MAX_FAILED_STARTS = 20
_SECONDS_TO_ANSWER = 20.0


class _Worker:
    """What an actor runs; `folder` is the working folder of the process that began the work, for relative paths."""

    def __init__(self, job: Job, threads: int, folder: str) -> None:
        os.chdir(folder)
        torch.set_num_threads(threads)
        self._job = job

    def ready(self) -> str:
        """Say that this worker has been begun."""
        return worker_name()

    def run(self, task: Task) -> Outcome:
        """Do a task."""
        return perform(self._job, task)


class RayExecutor(WorkerPool[Any]):
    """Actors of a Ray cluster; `device` is what the work is for.

    Raises:
        BackendError: ray is not installed, or no cluster is at the address.
    """

    def __init__(self, settings: EngineSettings, *, device: str) -> None:
        super().__init__(settings)
        try:
            import ray
        except ImportError:
            raise BackendError("ray is not installed; pip install 'talik[ray]', or leave --engine ray out") from None
        self._ray: Any = ray
        memory = float(settings.memory_bytes or 0)
        self._needs = {"CPU": float(settings.num_threads), "GPU": settings.gpus_of(device), "memory": memory}
        self._ours = not ray.is_initialized()
        self._sigterm = signal.getsignal(signal.SIGTERM)
        if self._ours:
            try:
                _check_reachable(settings.address)
                ray.init(address=settings.address, logging_level=logging.WARNING)
            except (OSError, RuntimeError, ValueError) as error:
                where = settings.address or "this machine"
                raise BackendError(f"no Ray cluster at {where}: {' '.join(str(error).split())[:300]}") from None
            _handle_sigterm(self._sigterm if callable(self._sigterm) else _leave)  # Ray's ends with code 15
        self._actor = self._ray.remote(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs["GPU"],
            memory=settings.memory_bytes,
            max_restarts=0,
        )(_Worker)
        self._starting: dict[Any, Any] = {}  # actors that have not started yet, by the reference of their first answer
        self._running: dict[Any, Any] = {}  # actors that do a task, by the reference of its outcome
        self._without_since: float | None = None
        self._failed_starts = 0

    def num_workers(self) -> int:
        """Return for how many workers the cluster's nodes have room, but `jobs` at most."""
        room = 0
        for node in self._ray.nodes():
            have = node["Resources"] if node["Alive"] else {}
            room += int(min(have.get(name, 0.0) // need for name, need in self._needs.items() if need))
        return min(room, self.settings.jobs or room)

    def start(self, wanted: int) -> Any | None:
        """Start actors where the cluster has room; they are idle once they have started. See `WorkerPool.start`."""
        starting = len(self._starting)
        for _ in range(min(self.num_workers() - len(self._running), wanted) - starting):
            actor = self._actor.remote(self._job, self.settings.num_threads, os.getcwd())
            self._starting[actor.ready.remote()] = actor
        if self._running or self.num_workers():
            self._without_since = None
        else:
            self._wait_for_nodes()
        return None

    def _wait_for_nodes(self) -> None:
        """Say once that there is no worker, and give up after a while."""
        now = time.monotonic()
        if self._without_since is None:
            self._without_since = now
        elif now - self._without_since > _MAX_WAIT_SECONDS:
            raise BackendError(f"{self._shortage()}; none came in {_MAX_WAIT_SECONDS:.0f} s; run again when there are")
        elif self._without_since + 20 < now < self._without_since + 22:
            _log.warning("%s; waiting", self._shortage())

    def _shortage(self) -> str:
        needs = ", ".join(f"{need:g} {name}" for name, need in self._needs.items() if need)
        return f"no node of the Ray cluster has room for a worker ({needs})"

    def begin(self, worker: Any, task: Task) -> None:
        """See `WorkerPool.begin`."""
        self._running[worker.run.remote(task)] = worker

    def poll(self, seconds: float) -> list[tuple[Any, Outcome | str]]:
        """See `WorkerPool.poll`."""
        refs = [*self._starting, *self._running]
        if not refs:
            time.sleep(seconds)
            return []
        self._ray.wait(refs, num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        found: list[tuple[Any, Outcome | str]] = []
        for ref in ready:
            begun = ref in self._starting
            actor = self._starting.pop(ref) if begun else self._running.pop(ref)
            outcome: Outcome | str
            try:
                outcome = self._ray.get(ref)
                if begun:
                    self._idle.append(actor)
            except self._ray.exceptions.RayError as error:
                self._ray.kill(actor)  # it may be alive and unreachable
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if not begun:
                found.append((actor, outcome))
                continue
            # A node may go away; workers that never begin lack a folder or a package.
            self._failed_starts = self._failed_starts + 1 if isinstance(outcome, str) else 0
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise BackendError(f"{self._failed_starts} workers in a row did not begin; the last: {outcome}")
        return found

    def kill(self, worker: Any) -> None:
        """See `WorkerPool.kill`."""
        self._running = {ref: actor for ref, actor in self._running.items() if actor is not worker}
        self._ray.kill(worker)

    def stop_idle(self) -> None:
        """Kill the actors that do nothing, and those that have not started yet."""
        super().stop_idle()
        while self._starting:
            self._ray.kill(self._starting.popitem()[1])

    def close(self) -> None:
        """Kill the actors; leave the cluster if it was joined here."""
        super().close()
        if self._ours:
            self._ray.shutdown()
            _handle_sigterm(self._sigterm)


def _leave(signum: int, _: FrameType | None) -> None:
    """End this process by SystemExit, so that Ray's processes are ended with it."""
    raise SystemExit(128 + signum)


def _handle_sigterm(handler: Callable[[int, FrameType | None], Any] | int | None) -> None:
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str | None) -> None:
    """Raise OSError if nobody is at "HOST:PORT"; Ray itself tries for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
