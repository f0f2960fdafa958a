"""Client of object storage: whole objects are got, put under a condition, listed and deleted, with retries.

obstore (https://developmentseed.org/obstore) makes the requests, and only this file knows it.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ...errors import BackendError, ObjectChangedError, SettingsError, StoreError
from ..atomic_io import disk_errors
from .address import ObjectAddress

S = TypeVar("S")
T = TypeVar("T")
RETRY_SECONDS = 120.0
PART_BYTES = 16 << 20
BESIDE = "."  # a key that begins so is of an object beside the store: `.units.jsonl` of features.zarr.units.jsonl
_LONGEST_WAIT = 5.0
_FILE_TIMEOUT = timedelta(minutes=15)  # of one put of a whole file: conditional puts cannot be in parts
_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d")  # a retry helps only after a timeout or too many requests
_NO_TAG = '"00000000000000000000000000000000"'
_proven: set[str] = set()  # URLs of storage that was seen to keep conditions
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """Size in bytes and entity tag of an object."""

    size_bytes: int
    etag: str


class Objects:
    """The objects under a URL; keys are relative to it. Threads may share one.

    Raises:
        BackendError: obstore is not installed.
        SettingsError: an option that the storage does not know.
    """

    def __init__(self, address: ObjectAddress) -> None:
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
        given = [options.get("endpoint_url"), options.get("endpoint")]
        named = [os.environ.get(f"AWS_{name}") for name in ("ENDPOINT_URL_S3", "ENDPOINT_URL", "ENDPOINT")]
        endpoint = str(next(filter(None, given + named), ""))
        self._endpoint = endpoint or "the provider"
        client: dict[str, Any] = {"timeout": timedelta(seconds=120), "connect_timeout": timedelta(seconds=10)}
        if endpoint.startswith("http://"):
            client["allow_http"] = True
        connect: Any = from_url  # its overloads tell the storages apart by their options
        above = self.url.removesuffix(f"/{self.name}")
        more: dict[str, Any] = {"config": options, "retry_config": {"max_retries": 0}}
        try:
            self._store = connect(above, client_options=client, **more)
            self._files = connect(above, client_options={**client, "timeout": _FILE_TIMEOUT}, **more)
        except (exceptions.BaseError, TypeError, ValueError) as error:
            raise SettingsError(
                f"{address.url}: cannot be opened ({_one_line(error)}); check [store] storage"
            ) from None

    def get(self, key: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and entity tag; None if there is none."""

        def ask() -> tuple[bytes, str]:
            answer = self._obstore.get(self._store, self._key(key))
            return bytes(answer.bytes()), str(answer.meta["e_tag"])

        return self._answer_or_none(key, ask)

    def head(self, key: str) -> Stored | None:
        """Return size and entity tag of an object; None if there is none."""
        return self._answer_or_none(key, lambda: _stored(self._obstore.head(self._store, self._key(key))))

    def get_all(self, keys: Iterable[str]) -> dict[str, tuple[bytes, str]]:
        """Return bytes and entity tag by key, of the objects that are there."""
        return _found(self.get, keys)

    def head_all(self, keys: Iterable[str]) -> dict[str, Stored]:
        """Return size and entity tag by key, of the objects that are there."""
        return _found(self.head, keys)

    def put(self, key: str, content: bytes | Path, *, expect: str | None = None) -> str:
        """Write an object whole and return its entity tag.

        A put whose answer was lost is made again; it then finds its own content in the place, and succeeds.

        Args:
            key: of the object.
            content: all of it, or a file that holds it.
            expect: "" if there must be none yet; the entity tag of the one to replace; None: replace any.

        Raises:
            ObjectChangedError: the condition does not hold, and another content stands there; nothing was written.
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
                raise self._without_conditions("has no conditional puts", "that has them") from None

        return self._answer(key, ask)

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
                    raise self._without_conditions(f"ignores the condition of a put ({header})", "that keeps it")
        finally:
            self.delete(key)
        _proven.add(self.url)

    def get_file(self, key: str, stored: Stored, descriptor: int, path: Path) -> None:
        """Write an object's bytes into an open file, several parts of it at once.

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

            content = self._answer(key, ask)
            with disk_errors(path):
                if os.pwrite(descriptor, content, begin) != end - begin:
                    raise StoreError(f"{path}: was not written whole; run again")

        in_parallel(part, range(0, stored.size_bytes, PART_BYTES), threads=4)

    def list(self, folder: str = "") -> dict[str, Stored]:
        """Return every object under the URL, or under a folder of it, by key."""

        def ask() -> dict[str, Stored]:
            prefix = f"{self.name}/{folder}" if folder else self.name
            chunks = self._obstore.list(self._store, prefix=prefix, chunk_size=1000)
            return {meta["path"][len(self.name) + 1 :]: _stored(meta) for chunk in chunks for meta in chunk}

        return self._answer("", ask)

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        self._answer_or_none(key, lambda: self._obstore.delete(self._store, self._key(key)))

    def _key(self, key: str) -> str:
        """Return the key under the store's parent."""
        return f"{self.name}{key}" if key.startswith(BESIDE) else f"{self.name}/{key}"

    def _answer_or_none(self, key: str, ask: Callable[[], T]) -> T | None:
        """Return the answer, None if there is no such object."""

        def ask_if_there() -> T | None:
            with suppress(FileNotFoundError):
                return ask()
            return None

        return self._answer(key, ask_if_there)

    def _answer(self, key: str, ask: Callable[[], T]) -> T:
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

    def _without_conditions(self, fault: str, other: str) -> BackendError:
        return BackendError(
            f"{self.url}: this storage {fault}, so nothing would keep two processes from writing over each other; use "
            f"storage {other}, or extract into a folder and copy it"
        )


def in_parallel(work: Callable[[S], T], given: Iterable[S], threads: int = 16) -> list[T]:
    """Return `work(one)` for each of `given`, in order; the first error is raised when all have ended."""
    asked = list(given)
    if len(asked) < 2:
        return [work(one) for one in asked]
    with ThreadPoolExecutor(min(threads, len(asked)), thread_name_prefix="talik-objects") as pool:
        return list(pool.map(work, asked))


def _found(ask: Callable[[str], T | None], keys: Iterable[str]) -> dict[str, T]:
    wanted = list(keys)
    return {key: got for key, got in zip(wanted, in_parallel(ask, wanted), strict=True) if got is not None}


def _stored(meta: Any) -> Stored:
    return Stored(size_bytes=int(meta["size"]), etag=str(meta["e_tag"]))


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split("Debug source:")[0].split())
    return said[:300] or type(error).__name__
