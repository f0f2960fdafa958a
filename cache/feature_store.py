"""A feature store: opens or creates it, lists its boundaries, and gives their writers and readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from ..errors import SettingsError, StoreFormatError, StoreMismatchError, unknown_name
from .atomic_io import is_temporary, make_folder
from .format import catalog as catalog_
from .format.spec import FORMAT_VERSION, STORE_KIND, ArraySpec, BoundarySpec, Item, differences
from .format.zarr_metadata import METADATA_NAME, group_document, read_document, write_document
from .object_storage.address import SCHEMES, ObjectAddress, is_object_url, is_url
from .read.batch import Allocate, Batch
from .read.boundary_reader import BoundaryReader, Verify
from .read.local_rows import ReadPath
from .write.boundary_writer import BoundaryRequest, BoundaryWriter
from .write.disk_space import refuse_if_full
from .write.locks import LOCK_NAME
from .write.shard_writer import Shard

__all__ = [
    "ArraySpec",
    "Batch",
    "BoundaryReader",
    "BoundaryRequest",
    "BoundarySpec",
    "BoundaryWriter",
    "FeatureStore",
    "Item",
    "Shard",
]


class FeatureStore:
    """A folder of cached states in Zarr v3; behind a URL, an `object_store.ObjectStore` or a `remote.RemoteStore`.

    Attributes:
        path: of the folder.
        where: the same, or the URL, for messages.
        mode: `r` reads; `a` reads and writes.
    """

    def __init__(self, path: Path, mode: Literal["r", "a"]) -> None:
        """Use `FeatureStore.open`."""
        self.path = path
        self.where = str(path)
        self.mode = mode

    @classmethod
    def open(
        cls,
        path: str | Path,
        mode: Literal["r", "a"] = "r",
        *,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | None = None,
        cache_gb: float | None = None,
    ) -> FeatureStore:
        """Open a store; with mode `a`, create it where there is none.

        Args:
            path: of the folder; or a URL of object storage (`s3://…`, `az://…`); or another URL (`https://…`, `file://…`
                for a copy with other codecs), which zarr-python reads.
            mode: `r` reads; `a` reads and writes, a folder or object storage.
            storage_options: of object storage (`endpoint_url`, `region`, …, `retry_seconds`); for another URL, what
                fsspec wants.
            cache_dir: of object storage: where shards are brought to when they are read.
            cache_gb: what they may take there.

        Raises:
            StoreFormatError: no store there, another folder or file there, or another format version.
            SettingsError: another mode.
        """
        if mode not in ("r", "a"):
            raise SettingsError(unknown_name("mode", mode, ("r", "a")))
        if is_object_url(path):
            from .object_storage.object_store import ObjectStore  # imports obstore, which a folder does without

            options = dict(storage_options or {})
            address = ObjectAddress(url=str(path), options=options, cache_dir=cache_dir, cache_gb=cache_gb)
            return ObjectStore(address, mode)
        if is_url(path):
            if mode == "a":
                raise SettingsError(
                    f"{path}: is only read; a store is written into a folder or object storage ({', '.join(SCHEMES)})"
                )
            from .zarr_store import RemoteStore  # imports zarr, which a local store does without

            return RemoteStore(path, dict(storage_options) if storage_options else None)
        path = Path(path)
        if mode == "a" and _is_vacant(path):
            make_folder(path)
            write_document(path, group_document({"format": FORMAT_VERSION, "kind": STORE_KIND}))
        check_is_store(path)
        return cls(path, mode)

    def boundaries(self) -> tuple[BoundarySpec, ...]:
        """Return what the store holds, in order of modality and boundary, finished or not.

        Raises:
            StoreFormatError: damaged metadata.
        """
        folders = sorted(p.parent for p in self.path.glob(f"*/b*-*/{METADATA_NAME}"))
        specs = [BoundarySpec.from_json(catalog_.read_attributes(folder)) for folder in folders]
        return tuple(sorted(specs, key=lambda s: (s.modality, s.boundary, s.key)))

    def sources(self, spec: BoundarySpec) -> list[Item]:
        """Return every source that a boundary of this store names, each with its newest item, with data or without.

        Raises:
            StoreFormatError, CorruptItemError: damage.
        """
        catalog = catalog_.load(self.path, spec)
        return catalog.records.newest_items() if catalog else []

    def writer(
        self,
        spec: BoundarySpec,
        items: Sequence[Item],
        *,
        lengths: Sequence[int] | None = None,
        provenance: dict[str, Any] | None = None,
        max_seconds_per_item: float | None = None,
        commit: bool = True,
    ) -> BoundaryWriter:
        """Return the writer of a boundary, which holds the store's lock until it is closed.

        Args:
            spec: what is written.
            items: all that the boundary is to hold, in the order in which rows are given. Items already there keep
                their rows; new ones follow as a new generation; the same key twice is one row.
            lengths: tokens of each item, for a ragged boundary.
            provenance: plain JSON; what moves only the last bits (device, library versions). Recorded, never compared.
            max_seconds_per_item: what computing one item takes at most; bounds a shard to about a minute's work. Counts
                at the boundary's first write only.
            commit: write the rows down at once; otherwise they are only planned until `BoundaryWriter.commit`.

        Raises:
            StoreLockedError: another process writes this store, or this one this boundary.
            StoreFullError: what is missing does not fit on the disk; nothing was written.
            StoreMismatchError: other lengths than those stored, or an item longer than a shard.
            SettingsError: a store opened for reading; lengths missing, or given for a dense boundary.
        """
        if self.mode != "a":
            raise SettingsError(f"{self.path}: opened for reading; open it with mode 'a' to write")
        return BoundaryWriter(
            self.path,
            spec,
            items,
            lengths=lengths,
            provenance=provenance,
            max_seconds_per_item=max_seconds_per_item,
            commit=commit,
        )

    @contextmanager
    def writers(self, requests: Sequence[BoundaryRequest]) -> Iterator[list[BoundaryWriter]]:
        """Open the writers of several boundaries, after all that they miss together was found to fit on the disk.

        Raises:
            StoreFullError: it does not fit; nothing was written.
            StoreLockedError, StoreMismatchError, SettingsError: see `writer`.
        """
        with ExitStack() as stack:
            opened = [stack.enter_context(self.writer(**vars(request), commit=False)) for request in requests]
            missing = [size for size in (writer.bytes_missing for writer in opened) if size]
            self.refuse_if_full(sum(missing), what=f"{len(missing)} boundaries", num_boundaries=len(missing))
            for writer in opened:
                writer.commit()
            yield opened

    def refuse_if_full(self, num_bytes: int, *, what: str, num_boundaries: int = 1) -> None:
        """Refuse what the disk has no room for; see `estimate.refuse_if_full`.

        Raises:
            StoreFullError: it does not fit; nothing was written.
        """
        refuse_if_full(self.path, num_bytes, where=self.where, what=what, num_boundaries=num_boundaries)

    def put_records(self) -> None:
        """Put the files that stand beside the store to where it lies; beside a folder they are there already."""

    def reader(
        self,
        modality: str,
        boundary: int,
        *,
        key: str | None = None,
        identity: dict[str, Any] | None = None,
        verify: Verify = "first",
        path: ReadPath = "auto",
        allocate: Allocate | None = None,
    ) -> BoundaryReader:
        """Open a boundary for reading.

        Args:
            modality, boundary: which.
            key: the 12 hex digits in its name; needed where several identities are stored and `identity` is not given.
            identity: what its values must depend on; any difference is an error.
            verify: when an item's CRC32C is checked: on its first read, on every one, or never.
            path: `mmap` copies from memory maps, `preadv` reads from the disk past the page cache by several threads,
                `auto` does each where it is the faster (rows.py). Network file systems are never mapped.
            allocate: gives memory for batches (pinned, for a GPU): size in bytes -> (at least that,) uint8.

        Raises:
            StoreMismatchError: no such boundary, another identity, or several and none named.
            StoreFormatError, CorruptItemError: damage.
        """
        spec = self._find(modality, boundary, key, identity)
        return self._reader(spec, verify=verify, path=path, allocate=allocate)

    def _reader(
        self, spec: BoundarySpec, *, verify: Verify, path: ReadPath, allocate: Allocate | None
    ) -> BoundaryReader:
        return BoundaryReader.open(self.path, spec, verify=verify, path=path, allocate=allocate)

    def _find(self, modality: str, boundary: int, key: str | None, identity: dict[str, Any] | None) -> BoundarySpec:
        specs = self.boundaries()
        where = f"{self.where}: {modality} boundary {boundary}"
        at_place = [s for s in specs if s.modality == modality and s.boundary == boundary]
        if not at_place:
            held = ", ".join(s.path for s in specs) or "nothing"
            raise StoreMismatchError(f"{where} is not stored (held: {held}); run `talik extract` with this cut")
        found = [s for s in at_place if key is None or s.key == key]
        if not found:
            raise StoreMismatchError(f"{where}: {unknown_name('key', key or '', [s.key for s in at_place])}")
        if identity is not None:
            same = [s for s in found if not differences(identity, s.identity)]
            if not same:
                fields = min((differences(identity, s.identity) for s in found), key=len)
                raise StoreMismatchError(
                    f"{where} is stored under another identity ({'; '.join(map(str, fields))}); "
                    "run `talik extract` for this one, or ask for the stored one"
                )
            found = same
        if len(found) > 1:
            raise StoreMismatchError(
                f"{where} is stored {len(found)} times: {', '.join(f'{s.key} ({s.dtype})' for s in found)}; "
                "name one by its key"
            )
        return found[0]


def _is_vacant(path: Path) -> bool:
    """Return whether nothing is at `path`, or an empty folder, or one whose creation was killed."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    return all(p.name == LOCK_NAME or is_temporary(p.name) for p in path.iterdir())


def check_is_store(path: Path) -> None:
    """Refuse what is no store of this format.

    Raises:
        StoreFormatError: so it is.
    """
    if not path.exists():
        raise StoreFormatError(f"{path}: there is no store; run `talik extract` to make one")
    if not path.is_dir():
        raise StoreFormatError(f"{path}: is a file, expected a talik store (a folder); choose another [store] path")
    if not (path / METADATA_NAME).is_file():
        raise StoreFormatError(
            f"{path}: a folder that is not a talik store (no {METADATA_NAME}), nothing was written; choose another "
            "[store] path, or empty the folder"
        )
    ours = read_document(path)["attributes"]["talik"]
    if ours.get("kind") != STORE_KIND or ours.get("format") != FORMAT_VERSION:
        raise StoreFormatError(
            f"{path}: {ours.get('kind') or 'no talik store'} of format {ours.get('format')}, expected a {STORE_KIND} "
            f"of format {FORMAT_VERSION}; use the talik that wrote it, or choose another [store] path"
        )
