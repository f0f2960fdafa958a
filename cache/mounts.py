"""File systems whose locks hold on one machine only, found by how they are mounted (Linux)."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

_log = logging.getLogger(__name__)

MOUNT_INFO = Path("/proc/self/mountinfo")  # proc_pid_mountinfo(5)
_told: set[str] = set()


def locks_of_one_machine(path: Path, mount_info: str) -> str:
    """Return why locks on the files of a folder keep only processes of this machine apart; "" where they keep all.

    A lock on Lustre holds on all machines with the mount option `flock`; with `localflock` it looks alike and holds on
    one. NFS has the same under `local_lock`.

    Args:
        path: of the folder.
        mount_info: the lines of /proc/self/mountinfo.

    >>> line = "40 29 0:52 / /scratch rw - lustre mds@tcp:/scratch rw,localflock"
    >>> locks_of_one_machine(Path("/scratch/me"), line)
    'Lustre mounted at /scratch with localflock; mount it with -o flock'
    >>> locks_of_one_machine(Path("/scratch/me"), line.replace("localflock", "flock"))
    ''
    """
    place, kind, options = _mount_of(os.path.realpath(path), mount_info)
    if kind == "lustre" and "localflock" in options:
        return f"Lustre mounted at {place} with localflock; mount it with -o flock"
    if kind == "lustre" and "flock" not in options:
        return f"Lustre mounted at {place} without flock; mount it with -o flock"
    if kind in ("nfs", "nfs4"):
        local = options & {"nolock", "local_lock=flock", "local_lock=all"}
        if local:
            return f"NFS mounted at {place} with {sorted(local)[0]}; mount it without"
    return ""


def tell_of_local_locks(path: Path) -> None:
    """Log a warning, once a mount, where locks on the files of a folder hold on this machine only."""
    try:
        why = locks_of_one_machine(path, MOUNT_INFO.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:  # no Linux
        return
    if why and why not in _told:
        _told.add(why)
        _log.warning("%s: locks hold on this machine only (%s); let no other machine write here meanwhile", path, why)


def _mount_of(path: str, mount_info: str) -> tuple[str, str, set[str]]:
    """Return the mount point that holds a path, its file system and its options; the last mounted of the longest."""
    found: tuple[str, str, set[str]] = ("", "", set())
    for line in mount_info.splitlines():
        before, _, after = line.partition(" - ")
        own, shared = before.split(" "), after.split(" ")
        if len(own) < 6 or len(shared) < 3:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), own[4])
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found[0]):
            found = (place, shared[0], {*own[5].split(","), *shared[2].split(",")})
    return found
