"""Receipts kept in a file, a JSON line each, as they come: which worker did what, what it took, what was retried."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from ...cache.atomic_io import disk_errors
from .tasks import Receipt


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
        with disk_errors(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
