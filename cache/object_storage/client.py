"""Whole objects in object storage: get, put under a condition, list, delete; what does not answer is asked again.

obstore (https://developmentseed.org/obstore) does the requests; a put is atomic, one in parts too. Nothing else here
knows of it.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from ...errors import BackendError, ObjectChangedError, SettingsError, StoreError
from ..atomic_io import disk_errors
from .address import ObjectAddress

T = TypeVar("T")
RETRY_SECONDS = 120.0
PART_BYTES = 16 << 20
THREADS = 16
BESIDE = "."  # a key that begins so is of an object beside the store: `.units.jsonl` of features.zarr.units.jsonl
_LONGEST_WAIT = 5.0
_FILE_TIMEOUT = timedelta(minutes=15)  # of one put of a whole file: conditional puts cannot be in parts
_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d")  # to ask again is of no use, but for a timeout and haste
_NO_TAG = '"00000000000000000000000000000000"'
_proven: set[str] = set()  # URLs of storage that was seen to keep conditions
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """What a listing says of an object: size in bytes, entity tag, and when the server says it was written."""

    size_bytes: int
    etag: str
    modified: datetime


class Objects:
    """The objects under a URL; keys are relative to it. Threads may share one."""

    def __init__(self, address: ObjectAddress) -> None:
        """Connect to nothing yet.

        Raises:
            BackendError: the package that does it is not installed.
            SettingsError: an option that the storage does not know.
        """
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import from_url
        except ImportError:
            raise BackendError(
                f"{address.url}: object storage needs the package obstore; pip install 'talik[object-storage]'"
            ) from None
        self.url = address.url
        self.name = address.name
        self._obstore, self._errors = obstore, exceptions
        options = dict(address.options)
        self._retry_seconds = float(options.pop("retry_seconds", RETRY_SECONDS))
        endpoint = str(options.get("endpoint_url") or options.get("endpoint") or _endpoint_of_environment())
        self._endpoint = endpoint or "the provider"
        client: dict[str, Any] = {"timeout": timedelta(seconds=120), "connect_timeout": timedelta(seconds=10)}
        if endpoint.startswith("http://"):
            client["allow_http"] = True
        connect: Any = from_url  # its overloads tell the storages apart by their options
        try:
            more: dict[str, Any] = {"config": options, "retry_config": {"max_retries": 0}}
            self._store = connect(address.above, client_options=client, **more)
            self._files = connect(address.above, client_options={**client, "timeout": _FILE_TIMEOUT}, **more)
        except (exceptions.BaseError, TypeError, ValueError) as error:
            raise SettingsError(
                f"{address.url}: cannot be opened ({_one_line(error)}); check [store] storage"
            ) from None

    def get(self, key: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and entity tag; None if there is none."""

        def ask() -> tuple[bytes, str] | None:
            try:
                answer = self._obstore.get(self._store, self._key(key))
                return bytes(answer.bytes()), str(answer.meta["e_tag"])
            except FileNotFoundError:
                return None

        return self._tried(key, ask)

    def head(self, key: str) -> Stored | None:
        """Return what a listing would say of an object; None if there is none."""

        def ask() -> Stored | None:
            try:
                return _stored(self._obstore.head(self._store, self._key(key)))
            except FileNotFoundError:
                return None

        return self._tried(key, ask)

    def put(self, key: str, content: bytes | Path, *, expect: str | None = None) -> str:
        """Write an object whole and return its entity tag.

        A put whose answer was lost is made again; it then finds its own content in the place, and succeeds.

        Args:
            key: of the object.
            content: all of it, or a file that holds it.
            expect: "" if there must be none yet, an entity tag if that one must stand there; None: whatever stands.

        Raises:
            ObjectChangedError: the condition does not hold, and what stands there is not this content; nothing was
                written.
            BackendError: the storage has no conditional puts.
        """
        mode: Any = "overwrite" if expect is None else {"e_tag": expect} if expect else "create"
        store = self._files if isinstance(content, Path) else self._store

        def ask() -> str:
            try:
                answer = self._obstore.put(store, self._key(key), content, mode=mode, use_multipart=False)
                return str(answer["e_tag"])
            except (self._errors.AlreadyExistsError, self._errors.PreconditionError, FileNotFoundError):
                if expect is None:
                    raise
                found = self.get(key)
                if found is not None and found[0] == (content if isinstance(content, bytes) else content.read_bytes()):
                    return found[1]
                raise ObjectChangedError(
                    f"{self.url}/{key}: somebody else has written it meanwhile; run again"
                ) from None
            except self._errors.NotSupportedError:
                raise BackendError(
                    f"{self.url}: this storage has no conditional puts, so nothing would keep two processes from "
                    "writing over each other; use storage that has them, or extract into a folder and copy it"
                ) from None

        return self._tried(key, ask)

    def prove_conditions(self) -> None:
        """Try with an object beside the store that the storage keeps the conditions of puts; once a process and URL.

        Raises:
            BackendError: it has none, or ignores them.
        """
        if self.url in _proven:
            return
        key = f".probe-{secrets.token_hex(8)}"
        try:
            self.put(key, b"1", expect="")
            for expect, header in (("", "If-None-Match"), (_NO_TAG, "If-Match")):
                with suppress(ObjectChangedError):
                    self.put(key, b"2", expect=expect)
                    raise BackendError(
                        f"{self.url}: this storage ignores the condition of a put ({header}), so nothing would keep "
                        "two processes from writing over each other; use storage that keeps it, or extract into a "
                        "folder and copy it"
                    )
        finally:
            self.delete(key)
        _proven.add(self.url)

    def get_file(self, key: str, stored: Stored, descriptor: int, path: Path) -> None:
        """Write an object's bytes into an open file, parts of it at once.

        Args:
            key, stored: of the object, as it was listed.
            descriptor, path: of the file.

        Raises:
            ObjectChangedError: it is no longer what was listed.
            StoreFullError: no room on the disk.
        """

        def part(begin: int) -> None:
            end = min(begin + PART_BYTES, stored.size_bytes)

            def ask() -> Any:
                options = {"range": (begin, end), "if_match": stored.etag}
                try:
                    return self._obstore.get(self._store, self._key(key), options=options).bytes()
                except (self._errors.PreconditionError, FileNotFoundError):
                    raise ObjectChangedError(
                        f"{self.url}/{key}: is not what it was when the store was opened; open it again"
                    ) from None

            content = self._tried(key, ask)
            with disk_errors(path):
                if os.pwrite(descriptor, content, begin) != end - begin:
                    raise StoreError(f"{path}: was not written whole; run again")

        in_parallel(part, range(0, stored.size_bytes, PART_BYTES), threads=4)

    def list(self, folder: str = "") -> dict[str, Stored]:
        """Return every object under the URL, or under a folder of it, by key."""

        def ask() -> dict[str, Stored]:
            prefix = f"{self.name}/{folder}" if folder else self.name
            chunks = self._obstore.list(self._store, prefix=prefix, chunk_size=1000)
            start = len(self.name) + 1
            return {meta["path"][start:]: _stored(meta) for chunk in chunks for meta in chunk}

        return self._tried("", ask)

    def delete(self, key: str) -> None:
        """Take an object away; one that is not there is no error."""

        def ask() -> None:
            with suppress(FileNotFoundError):
                self._obstore.delete(self._store, self._key(key))

        self._tried(key, ask)

    def _key(self, key: str) -> str:
        """Return the key under the store's parent."""
        return f"{self.name}{key}" if key.startswith(BESIDE) else f"{self.name}/{key}"

    def _tried(self, key: str, ask: Callable[[], T]) -> T:
        """Ask until there is an answer, for `retry_seconds` at most."""
        seconds = self._retry_seconds
        where = f"{self.url}/{key}" if key else self.url
        give_up, wait = 0.0, 0.1
        while True:
            try:
                return ask()
            except StoreError:
                raise
            except (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError) as error:
                raise StoreError(
                    f"{where}: {self._endpoint} refuses these credentials ({_one_line(error)}); set AWS_ACCESS_KEY_ID "
                    "and AWS_SECRET_ACCESS_KEY, or what your storage wants"
                ) from None
            except FileNotFoundError as error:
                raise StoreError(f"{where}: {self._endpoint} has no such bucket ({_one_line(error)})") from None
            except (self._errors.BaseError, TimeoutError, ConnectionError) as error:
                if _REFUSED.search(str(error)):
                    raise StoreError(f"{where}: {self._endpoint} refuses: {_one_line(error)}") from None
                now = time.monotonic()
                if not give_up:
                    give_up = now + seconds
                    _log.warning("%s: %s does not answer; asking for %g s", where, self._endpoint, seconds)
                if now + wait > give_up:
                    raise StoreError(
                        f"{where}: {self._endpoint} has not answered for {seconds:g} s "
                        f"({_one_line(error)}); what was finished is kept: check the server and run again"
                    ) from None
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)


def in_parallel(work: Callable[[Any], T], given: Iterable[Any], threads: int = THREADS) -> list[T]:
    """Return `work(one)` for each of `given`, in order; the first error is raised when all have ended."""
    asked: Sequence[Any] = list(given)
    if len(asked) < 2:
        return [work(one) for one in asked]
    with ThreadPoolExecutor(min(threads, len(asked)), thread_name_prefix="talik-objects") as pool:
        return list(pool.map(work, asked))


def _stored(meta: Any) -> Stored:
    return Stored(size_bytes=int(meta["size"]), etag=str(meta["e_tag"]), modified=meta["last_modified"])


def _endpoint_of_environment() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split("Debug source:")[0].split())
    return said[:300] or type(error).__name__
