"""An extraction in a process of its own, beside a training of this one that reads each shard when it is finished.

Nothing passes between the two but the store: the extraction gives rows to all items, writes down which shards it will
compute, and computes them; the receipt that makes a shard count is what the reader waits for.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ...cache.atomic_io import write_file
from ...errors import TalikError
from ...user_code import import_user_code
from ..datasets.load import load_manifest
from ..executors.local import WorkerProcess
from ..executors.tasks import Outcome, Receipt, Task
from .extraction import Planned, compute_missing
from .settings import ExtractSettings, RunOptions

_NAME = "the extraction beside the training"
_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_TO_END = 10.0


@dataclass(frozen=True, kw_only=True)
class _ExtractionJob:
    """What the process does; a `Job`.

    Args:
        settings: of the experiment.
        options: of the run, with the order in which items are needed.
        planned: the file that tells which shards will be computed.
    """

    settings: ExtractSettings
    options: RunOptions
    planned: Path

    def run(self, given: None) -> dict[str, Any]:
        started = time.perf_counter()
        with _interrupted_by_sigterm():
            try:
                import_user_code(self.settings.imports, self.settings.base)
                store = self.settings.open_store("a")
                manifest = load_manifest(self.settings.lenient_manifest_settings, base=self.settings.base)
                report = compute_missing(
                    self.settings, manifest, store, self.options, started=started, planned=self._write_planned
                )
            except KeyboardInterrupt:
                return {"stopped": True}
        return {"lines": report.lines()}

    def _write_planned(self, planned: Planned) -> None:
        write_file(self.planned, json.dumps(planned).encode(), durable=False)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """End as Ctrl-C does, which keeps every shard that is finished."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class BackgroundExtraction:
    """An extraction that another process of this machine does; it ends with this one.

    Args:
        settings: of the experiment.
        options: of the run; its `order` says what is needed first.
    """

    def __init__(self, settings: ExtractSettings, options: RunOptions) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="talik-extraction-")
        self._planned = Path(self._folder.name) / "planned.json"
        job = _ExtractionJob(settings=settings, options=options, planned=self._planned)
        self._worker = WorkerProcess(job, 0, torch.get_num_threads(), None)
        self._worker.connection.send(Task(name=_NAME, given=None))
        self._guard = threading.Lock()
        self._outcome: Outcome | None = None

    @property
    def outcome(self) -> Outcome | None:
        """How it has ended; None while it works."""
        with self._guard:
            if self._outcome is None and self._worker.connection.poll():
                try:
                    self._outcome = self._worker.connection.recv()
                except (EOFError, OSError):
                    with suppress(subprocess.TimeoutExpired):
                        self._worker.process.wait(5)  # its pipe may be closed a little before it is dead
                    self._outcome = {"error": f"its {self._worker.end()}; what it has stored is kept", "kind": ""}
            return self._outcome

    @property
    def error(self) -> TalikError | None:
        """What it has failed with; None while it works, and where it has ended as it should."""
        outcome = self.outcome
        if outcome is None or not outcome.get("error"):
            return None
        return Receipt(task=_NAME, error=outcome["error"], kind=outcome["kind"]).exception()

    def wait_until_planned(self) -> Planned:
        """Wait until every item has its row, and return the shards that will be computed.

        Raises:
            TalikError: what the extraction has failed with before that.
        """
        while True:
            ended = self.outcome is not None
            if self._planned.exists():
                found: dict[str, list[int]] = json.loads(self._planned.read_bytes())
                return found
            if self.error is not None:
                raise self.error
            if ended:
                return {}
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def close(self) -> None:
        """End it, if it still works: what it has finished is kept. A second call does nothing."""
        if self.outcome is None:
            self._worker.process.terminate()
            until = time.monotonic() + _SECONDS_TO_END
            while self.outcome is None and time.monotonic() < until:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        with self._guard:
            if self._outcome is None:
                self._outcome = {"result": {"stopped": True}}
            if not self._worker.connection.closed:
                self._worker.end()
        self._folder.cleanup()
