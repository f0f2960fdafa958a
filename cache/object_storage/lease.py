"""One process at a time writes a store in object storage: an object beside it, made by a put that only one can win.

It says who holds it (pid, host) and is written again every HEARTBEAT_SECONDS, each time on the condition that it is
still the one that was written last. A lock is taken over, by a put on that same condition, if its process ran on this
host and is no more, or if the server has not seen it written for STALE_SECONDS. All times are the server's: no two
clocks are compared. Whoever lost its lock finds out at its next beat, and whatever it puts of the store's metadata has
conditions of its own (mirror.py), so that it can change nothing that the new owner wrote.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import BackendError, ObjectChangedError, StoreError, StoreLockedError
from ..format.digests import canonical_json
from .client import Objects

LOCK_KEY = ".lock"  # beside the store: features.zarr.lock
HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0
_log = logging.getLogger(__name__)
_proven: set[str] = set()  # stores whose storage was seen to refuse a second lock


class ObjectLock:
    """The right to write a store; held from its making until `release`."""

    def __init__(self, objects: Objects) -> None:
        """Take the lock.

        Raises:
            StoreLockedError: somebody else writes the store.
            BackendError: the storage does not keep two from holding it.
        """
        self._objects = objects
        self._said = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "place": _place(),
            "token": secrets.token_hex(8),
        }
        self._beat = 0
        self._lost = ""
        self._seen = time.monotonic()
        self._etag = self._taken()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="talik-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on without the lock.

        Raises:
            StoreLockedError: somebody else has taken it over.
        """
        if not self._lost and time.monotonic() - self._seen > STALE_SECONDS / 2:
            self._renew()
        if self._lost:
            raise StoreLockedError(self._lost)

    def release(self) -> None:
        """Give the lock back."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            with suppress(StoreError):  # it gets old by itself
                self._objects.delete(LOCK_KEY, patient=False)

    def _taken(self) -> str:
        try:
            etag = self._objects.put(LOCK_KEY, self._content(), expect="")
        except ObjectChangedError:
            return self._taken_over()
        if self._objects.url in _proven:
            return etag
        with suppress(ObjectChangedError):
            self._objects.put(LOCK_KEY, b"{}", expect="")
            self._objects.delete(LOCK_KEY)
            raise BackendError(
                f"{self._objects.url}: this storage ignores the condition of a put (If-None-Match), so nothing would "
                "keep two processes from writing one store; use storage that holds it, or extract into a folder"
            )
        _proven.add(self._objects.url)
        return etag

    def _taken_over(self) -> str:
        """Return the tag of our lock in place of one that nobody holds any more."""
        found = self._objects.get(LOCK_KEY)
        if found is None:
            return self._taken()
        said = _parsed(found[0])
        who = f"process {said.get('pid', '?')} on {said.get('host', '?')}"
        age = self._age()
        if not (_is_dead(said) or age > STALE_SECONDS):
            raise StoreLockedError(
                f"{self._objects.url}: {who} is writing this store (last sign of life {age:.0f} s ago); wait for it to "
                f"end, or stop it and, if it ran on another host, wait {STALE_SECONDS:.0f} s, and run again"
            )
        _log.warning("%s: taking over from %s, which is no more", self._objects.url, who)
        try:
            return self._objects.put(LOCK_KEY, self._content(), expect=found[1])
        except ObjectChangedError:
            raise StoreLockedError(f"{self._objects.url}: another process has just begun to write this store") from None

    def _age(self) -> float:
        """Return how many seconds ago the lock was written, by the server's clock."""
        now = f"{LOCK_KEY}.{self._said['token']}"
        self._objects.put(now, b"")
        written, lock = self._objects.head(now), self._objects.head(LOCK_KEY)
        self._objects.delete(now)
        return (written.modified - lock.modified).total_seconds() if written and lock else 0.0

    def _content(self) -> bytes:
        return canonical_json({**self._said, "beat": self._beat})

    def _keep(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._renew()

    def _renew(self) -> None:
        self._beat += 1
        try:
            self._etag = self._objects.put(LOCK_KEY, self._content(), expect=self._etag, patient=False)
            self._seen = time.monotonic()
        except ObjectChangedError:
            found = self._objects.get(LOCK_KEY)
            said = _parsed(found[0]) if found else {}
            who = f"process {said['pid']} on {said['host']}" if {"pid", "host"} <= set(said) else "another process"
            self._lost = (
                f"{self._objects.url}: {who} has taken this store over, since the storage had not seen this process "
                f"for {STALE_SECONDS:.0f} s; what was finished is kept: run again"
            )
            self._ended.set()
        except StoreError as error:  # whoever puts next hears of it too
            _log.warning("%s", error)


@dataclass
class _Held:
    lock: ObjectLock
    pid: int
    names: set[str] = field(default_factory=set)


_held: dict[str, _Held] = {}


def acquire(objects: Objects, name: str) -> bool:
    """Take a store's lock for `name`; return whether this process did not have it before.

    Raises:
        StoreLockedError: another process writes the store, or this one already writes `name`.
    """
    held = _held.get(objects.url)
    if held is not None and held.pid != os.getpid():  # inherited over a fork: the lock is the parent's
        del _held[objects.url]
        held = None
    first = held is None
    if held is None:
        held = _held[objects.url] = _Held(ObjectLock(objects), os.getpid())
    if name in held.names:
        raise StoreLockedError(f"{objects.url}: this process already has a writer of {name}; close that one first")
    held.names.add(name)
    return first


def release(url: str, name: str) -> None:
    """Give `name` back, and the store's lock with the last."""
    held = _held.get(url)
    if held is None or held.pid != os.getpid():
        return
    held.names.discard(name)
    if not held.names:
        del _held[url]
        held.lock.release()


def check(url: str) -> None:
    """Refuse to go on if this process has lost, or does not have, a store's lock.

    Raises:
        StoreLockedError: so it is.
    """
    held = _held.get(url)
    if held is None or held.pid != os.getpid():
        raise StoreLockedError(f"{url}: this process does not write this store any more; make another writer")
    held.lock.check()


def _parsed(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        said = json.loads(content)
        if isinstance(said, dict):
            return said
    return {}


def _place() -> str:
    """Return what tells one set of process numbers from another: this boot of the machine, and the namespace."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _is_dead(said: dict[str, Any]) -> bool:
    """Return whether a lock's process ran here and is no more."""
    if (
        said.get("host") != socket.gethostname()
        or said.get("place") != _place()
        or not isinstance(said.get("pid"), int)
    ):
        return False
    if said["pid"] == os.getpid():
        return True  # what this process holds, its own table knows: this is of one with the same number before
    try:
        os.kill(said["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
