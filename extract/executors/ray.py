"""The engine of a Ray cluster: workers are actors on its nodes, each with its encoders loaded; only receipts come back.

Nodes may join and leave at any time: an actor that is gone costs the task that it was at, and others are asked for as
long as there is room. Ray is imported here, and only when it is asked for.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from ...errors import BackendError
from .settings import EngineSettings
from .tasks import Job, Outcome, Task, perform, worker_name
from .worker_pool import Crew

_PATIENCE_SECONDS = 300.0
_FAILED_STARTS = 20
_SECONDS_TO_ANSWER = 20.0


class _Worker:
    """What an actor runs.

    Args:
        job: what its tasks are of.
        threads: that it computes with.
        folder: the working folder of the process that began the work, for paths relative to it.
    """

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


class RayExecutor(Crew[Any]):
    """Actors of a Ray cluster.

    Args:
        settings: of the engine.
        device: that the work is for.

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
        if self._ours:
            try:
                _knock(settings.address)
                ray.init(address=settings.address, logging_level=logging.WARNING)
            except (OSError, RuntimeError, ValueError) as error:
                where = settings.address or "this machine"
                raise BackendError(f"no Ray cluster at {where}: {' '.join(str(error).split())[:300]}") from None
        self._actor = self._ray.remote(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs["GPU"],
            memory=settings.memory_bytes,
            max_restarts=0,
        )(_Worker)
        self._hired: dict[Any, Any] = {}  # actors that have not begun yet, by what they will say when they have
        self._given: dict[Any, Any] = {}  # those at a task, by its outcome to come
        self._idle: list[Any] = []
        self._without_since: float | None = None
        self._failed_starts = 0

    def num_workers(self) -> int:
        """As many as the cluster's nodes have room for, but `jobs` at most."""
        room = 0
        for node in self._ray.nodes():
            have = node["Resources"] if node["Alive"] else {}
            room += int(min(have.get(name, 0.0) // need for name, need in self._needs.items() if need))
        return min(room, self.settings.jobs or room)

    def _worker(self, wanted: int) -> Any | None:
        if self._idle:
            return self._idle.pop()
        coming = len(self._hired)
        for _ in range(min(self.num_workers() - len(self._given), wanted) - coming):
            actor = self._actor.remote(self._job, self.settings.num_threads, os.getcwd())
            self._hired[actor.ready.remote()] = actor
        if self._given or self.num_workers():
            self._without_since = None
        else:
            self._wait_for_nodes()
        return None

    def _wait_for_nodes(self) -> None:
        """Say once that there is no worker, and give up after a while."""
        now = time.monotonic()
        if self._without_since is None:
            self._without_since = now
        elif now - self._without_since > _PATIENCE_SECONDS:
            raise BackendError(f"{self._shortage()}; none came in {_PATIENCE_SECONDS:.0f} s; run again when there are")
        elif self._without_since + 20 < now < self._without_since + 22:
            tqdm.write(f"{self._shortage()}; waiting", file=sys.stderr)

    def _shortage(self) -> str:
        asked = ", ".join(f"{need:g} {name}" for name, need in self._needs.items() if need)
        return f"no node of the Ray cluster has room for a worker ({asked})"

    def _give(self, worker: Any, task: Task) -> None:
        self._given[worker.run.remote(task)] = worker

    def _news(self, seconds: float) -> list[tuple[Any, Outcome | str]]:
        refs = [*self._hired, *self._given]
        if not refs:
            time.sleep(seconds)
            return []
        self._ray.wait(refs, num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        found: list[tuple[Any, Outcome | str]] = []
        for ref in ready:
            begun = ref in self._hired
            actor = self._hired.pop(ref) if begun else self._given.pop(ref)
            outcome: Outcome | str
            try:
                outcome = self._ray.get(ref)
                self._idle.append(actor)
            except self._ray.exceptions.RayError as error:
                self._ray.kill(actor)  # it may be alive and unreachable
                outcome = f"{type(error).__name__}: {_in_one_line(error)}"
            if not begun:
                found.append((actor, outcome))
            elif isinstance(outcome, str):
                self._did_not_begin(outcome)
            else:
                self._failed_starts = 0
        return found

    def _did_not_begin(self, why: str) -> None:
        """A node that went away is one thing; workers that never begin, for want of a folder or a package, another."""
        self._failed_starts += 1
        if self._failed_starts >= _FAILED_STARTS:
            raise BackendError(f"{self._failed_starts} workers in a row did not begin; the last: {why}")

    def _dismiss(self, worker: Any) -> None:
        self._given = {ref: actor for ref, actor in self._given.items() if actor is not worker}
        self._ray.kill(worker)

    def _dismiss_idle(self) -> None:
        for actor in (*self._idle, *self._hired.values()):
            self._ray.kill(actor)
        self._idle, self._hired = [], {}

    def close(self) -> None:
        """Kill the actors; leave the cluster if it was joined here."""
        self._dismiss_idle()
        for actor in self._given.values():
            self._ray.kill(actor)
        self._given = {}
        if self._ours:
            self._ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError if nobody is at "HOST:PORT"; Ray itself tries for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] if lines else ""
