"""Whether files are the very files that they were: told by place, device, inode, size and times, without reading them.

A change within the clock's last tick would keep all of these, so files that were changed just now have no stamps.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_FILES = 10_000  # of a model's folder
_FINE_SECONDS, _COARSE_SECONDS = 0.1, 2.5  # a tick of file systems that keep parts of a second, and of others


@dataclass(frozen=True, kw_only=True)
class FileStamps:
    """Files as they were found; equal stamps are the same files with the same content.

    Attributes:
        places: the files and folders that were named.
        files: (path, device, inode, size, mtime_ns, ctime_ns) of each file, those in the folders included.
    """

    places: tuple[str, ...]
    files: tuple[tuple[str, int, int, int, int, int], ...]

    @classmethod
    def of(cls, places: Iterable[str | Path]) -> FileStamps | None:
        """Return the stamps of files and folders; None where they cannot be told, or were changed just now.

        Example:
            >>> FileStamps.of([])
            FileStamps(places=(), files=())
        """
        named = tuple(os.path.abspath(place) for place in places)
        try:
            paths = sorted({path for place in named for path in _files(place)})
            found = tuple((path, *_stamp(os.stat(path))) for path in paths[: MOST_FILES + 1])
        except (OSError, ValueError):
            return None
        now = time.time_ns()
        settled = all(_is_settled(time_ns, now) for *_, changed, status in found for time_ns in (changed, status))
        return cls(places=named, files=found) if settled and len(found) <= MOST_FILES else None

    def still_hold(self) -> bool:
        """Return whether the files of the same places have the same stamps now."""
        return FileStamps.of(self.places) == self

    def to_json(self) -> dict[str, list[object]]:
        """Return plain JSON."""
        return {"places": list(self.places), "files": [list(file) for file in self.files]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> FileStamps:
        """Return the stamps that `to_json` described."""
        files = tuple(
            (str(p), int(dev), int(ino), int(size), int(m), int(c)) for p, dev, ino, size, m, c in fields["files"]
        )
        return cls(places=tuple(fields["places"]), files=files)


def _files(place: str) -> list[str]:
    """Return the file, or all files in the folder and the folders below it."""
    if not os.path.isdir(place):
        return [place]
    return [os.path.join(folder, name) for folder, _, names in os.walk(place, onerror=_fail) for name in names]


def _fail(error: OSError) -> None:
    raise error


def _stamp(status: os.stat_result) -> tuple[int, int, int, int, int]:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_settled(time_ns: int, now_ns: int) -> bool:
    tick = _FINE_SECONDS if time_ns % 1_000_000_000 else _COARSE_SECONDS
    return now_ns - time_ns > tick * 1e9
