"""Runs that ended before their last epoch: the request to stop one, and the record of who stopped it, when and why.

A stopped run keeps its checkpoint. It has no result; trained again by name, it goes on to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ...errors import RunError
from .run_folder import RunFolder, writing

_RECORD, _REQUEST = "stopped.json", "stop.json"


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Why a run was ended early.

    Attributes:
        by: "halving", or "request" of a person.
        epoch: epochs that were done.
        reason: in a sentence.
        facts: of halving: the rung and its scores.
        time: when, ISO 8601 in UTC; "" to have it filled in.
    """

    by: Literal["halving", "request"]
    epoch: int
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    time: str = ""

    @property
    def line(self) -> str:
        """Who stopped it, and the reason."""
        return f"stopped by {self.by} after epoch {self.epoch}: {self.reason}"


def read_stopped(folder: RunFolder) -> Stopped | None:
    """Return the record of an early end; None of a run that was not stopped.

    Raises:
        RunError: a malformed record.
    """
    if folder.done or not (folder.path / _RECORD).is_file():
        return None
    found = folder.read_json(_RECORD)
    try:
        return Stopped(**found)
    except TypeError as error:
        raise RunError(f"{folder.path / _RECORD}: not as talik writes it ({error}); remove it") from None


def write_stopped(folder: RunFolder, stopped: Stopped) -> None:
    """Record that a run was ended early, and drop the request for it.

    Raises:
        RunError: the disk refuses it.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    folder.write_json(_RECORD, {**asdict(stopped), "time": stopped.time or now})
    (folder.path / _REQUEST).unlink(missing_ok=True)


def clear_stopped(folder: RunFolder) -> None:
    """Forget record and request of a run that is to go on."""
    for name in (_RECORD, _REQUEST):
        (folder.path / name).unlink(missing_ok=True)


def request_stop(folder: RunFolder) -> None:
    """Ask whoever trains a run to end it after the epoch in hand.

    Raises:
        RunError: the disk refuses it.
    """
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_json(_REQUEST, {"time": datetime.now(UTC).isoformat(timespec="seconds")})


def stop_is_requested(folder: RunFolder) -> bool:
    """Whether somebody asked for the run's early end."""
    return (folder.path / _REQUEST).is_file()
