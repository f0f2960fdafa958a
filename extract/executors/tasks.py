"""Tasks, the job that does them, their receipts, and the queue of those still to be done.

A task is idempotent: done twice, or begun by one worker and again by another, it ends as done once. It writes its own
results (a shard, a run's folder) and gives back a receipt, plain JSON; no tensor ever travels.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ... import errors
from ...cache.atomic_io import disk_errors
from ...errors import BackendError, TalikError

Outcome = dict[str, Any]
"""What `perform` gives: JSON with `worker`, `seconds`, `peak_bytes`, and either `result` or `error` and `kind`."""

_HELD_BY_ANOTHER = ("StoreLockedError", "RunLockedError")
_SECONDS_BETWEEN_TRIES = 5.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of work.

    Args:
        name: unlike any other's of the same list.
        given: what the job takes; it pickles.
        memory_bytes: what a worker that does it will use at most, as far as known; 0 for unknown.
    """

    name: str
    given: Any
    memory_bytes: int = 0


class Job(Protocol):
    """What workers do. It pickles, without what it has opened; each worker opens that once and then does many tasks."""

    def run(self, given: Any) -> dict[str, Any]:
        """Do one task and return its result, as JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The result of one task, or why it has none.

    Args:
        task: its name.
        worker: "HOST:PID" of the process that ended it; "" where none did.
        seconds: of the last attempt.
        attempts: how often it was begun; more than 1 where workers were lost on it, or others held its lock.
        result: what the job returned.
        error, kind: why it failed, in one line, and the class of the error; "" where it did not.
        lost: why each earlier attempt ended.
        peak_bytes: peak memory of the worker until then.
    """

    task: str
    worker: str = ""
    seconds: float = 0.0
    attempts: int = 1
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    kind: str = ""
    lost: tuple[str, ...] = ()
    peak_bytes: int = 0

    def exception(self) -> TalikError:
        """Return the worker's error, as it would be raised here."""
        found = getattr(errors, self.kind, None)
        if isinstance(found, type) and issubclass(found, TalikError):
            return found(self.error)
        return BackendError(f"{self.task}: {self.error}")


def perform(job: Job, task: Task) -> Outcome:
    """Do a task as a worker does: an error is returned, not raised."""
    started = time.perf_counter()
    outcome: Outcome
    try:
        outcome = {"result": job.run(task.given)}
    except TalikError as error:
        outcome = {"error": " ".join(str(error).split()), "kind": type(error).__name__}
    except Exception as error:  # a bug: its traceback belongs into the worker's log
        traceback.print_exc(file=sys.stderr)
        outcome = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}", "kind": ""}
    return {**outcome, "worker": worker_name(), "seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}


def worker_name() -> str:
    """Return "HOST:PID" of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def peak_bytes() -> int:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class _Begun:
    task: Task
    attempts: int = 0
    lost: list[str] = field(default_factory=list)
    not_before: float = 0.0


class TaskQueue:
    """The tasks that no worker does now, in the order in which they begin; those of lost workers begin again.

    Args:
        tasks: all of them.
        attempts: how often one is begun before it counts as failed.
    """

    def __init__(self, tasks: Iterable[Task], *, attempts: int) -> None:
        self._entries = [_Begun(task) for task in tasks]
        self._begun: dict[str, _Begun] = {}
        self._attempts = attempts

    def __len__(self) -> int:
        return len(self._entries)

    def ready(self) -> list[Task]:
        """Return the tasks that may begin now, in order."""
        now = time.monotonic()
        return [entry.task for entry in self._entries if entry.not_before <= now]

    def begin(self, task: Task) -> None:
        """Take a task out of the queue for a worker."""
        (entry,) = (e for e in self._entries if e.task.name == task.name)
        self._entries.remove(entry)
        entry.attempts += 1
        self._begun[task.name] = entry

    def put_back(self, name: str) -> None:
        """Put a task that no worker has begun after all back to the front."""
        entry = self._begun.pop(name)
        entry.attempts -= 1
        self._entries.insert(0, entry)

    def lost(self, name: str, why: str) -> Receipt | None:
        """Queue a task again whose worker was lost; return the receipt of its failure if that happened too often."""
        entry = self._begun.pop(name)
        entry.lost.append(why)
        if entry.attempts < self._attempts:
            self._entries.insert(0, entry)
            return None
        times = f"{entry.attempts} times" if entry.attempts > 1 else "once"
        error = f"begun {times}, and its worker was lost each time ({why})"
        return Receipt(task=name, attempts=entry.attempts, error=error, lost=tuple(entry.lost))

    def ended(self, name: str, outcome: Outcome) -> Receipt | None:
        """Return the receipt of a task that ended; None, and it is queued again, if another process held its lock."""
        entry = self._begun.pop(name)
        if outcome.get("kind") in _HELD_BY_ANOTHER and entry.attempts < self._attempts:
            entry.lost.append(str(outcome["error"]))
            entry.not_before = time.monotonic() + _SECONDS_BETWEEN_TRIES
            self._entries.append(entry)
            return None
        return Receipt(task=name, attempts=entry.attempts, lost=tuple(entry.lost), **outcome)


class ReceiptFile:
    """A file that receipts are added to; a line torn by a kill is passed over by whoever reads it.

    Args:
        path: of the file.
        run: what the lines are of; every line has it.
    """

    def __init__(self, path: Path, *, run: str) -> None:
        self.path = path
        self._run = run

    def add(self, receipt: Receipt) -> None:
        """Add a line.

        Raises:
            StoreError: the disk refuses.
        """
        line = {"run": self._run, "time": round(time.time(), 3), **asdict(receipt)}
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")  # an error may hold what is no text
