"""Jobs for workers in other processes, which start at once: this module imports no network library."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talik.errors import NumericsError


@dataclass
class Sleeper:
    """A job whose tasks say what is to happen: seconds to sleep, an error to raise, or that the worker is to die."""

    def run(self, given: dict[str, Any]) -> dict[str, Any]:
        if "die" in given and not Path(given["die"]).exists():
            Path(given["die"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if given.get("always"):
            os.kill(os.getpid(), signal.SIGKILL)
        if "error" in given:
            raise NumericsError(given["error"])
        if "bug" in given:
            raise ZeroDivisionError(given["bug"])
        time.sleep(given.get("seconds", 0.0))
        return {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "from": given.get("seconds", 0.0)}


@dataclass
class Touch:
    """A job whose tasks leave a file each; one that is told to dies."""

    def run(self, given: dict[str, Any]) -> dict[str, Any]:
        path = Path(given["path"])
        time.sleep(given.get("seconds", 0.0))
        if given.get("dies") and not path.exists():
            path.touch()
            os._exit(3)
        with path.open("a") as file:
            file.write("x")
        return {"path": str(path)}
