"""The interface of a feature store: lists its boundaries, and gives their writers and readers.

One subclass for each kind of storage: `folder_store.FolderStore`, `object_storage.object_store.ObjectStore` and
`zarr_store.ZarrStore`; `open.open_store` chooses by the path or URL. What differs between them is a method here.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import SettingsError, StoreMismatchError, unknown_name
from .format import catalog as catalog_
from .format import dataset_files
from .format.catalog import Catalog
from .format.dataset_files import DatasetFiles
from .format.spec import ArraySpec, BoundarySpec, Item, differences
from .format.store_root import list_boundaries
from .read.batch import Allocate, Batch
from .read.boundary_reader import BoundaryReader, Verify
from .read.local_rows import ReadPath
from .write.boundary_writer import BoundaryRequest, BoundaryWriter
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

Mode = Literal["r", "a"]


@dataclass(frozen=True, kw_only=True)
class LocalFiles:
    """The files of a store in a folder of this machine, for `verify`.

    Args:
        folder: holds the store's metadata and small arrays.
        shard: while its context is open, the data files of one shard are in the folder too.
    """

    folder: Path
    shard: Callable[[Catalog, int], AbstractContextManager[None]]


class FeatureStore(ABC):
    """Cached states of frozen encoders, by boundary and item; made by `open_store`.

    Attributes:
        path: a folder of this machine: the store itself, or where its small files are kept; records of what extraction
            left out and cost stand beside it.
        where: the path or URL, for messages.
        mode: `r` reads; `a` reads and writes.

    Example:
        >>> import talik
        >>> store = talik.open_store("features.zarr")
        >>> sorted({spec.modality for spec in store.boundaries()})
        ['audio', 'text', 'visual']
        >>> with store.reader("visual", 2) as reader:
        ...     len(reader.items), reader.spec.dtype, reader.spec.shape
        (9, 'bfloat16', (3, 5, 16))
    """

    def __init__(self, path: Path, where: str, mode: Mode) -> None:
        """Use `open_store`.

        Raises:
            SettingsError: another mode.
        """
        if mode not in ("r", "a"):
            raise SettingsError(unknown_name("mode", mode, ("r", "a")))
        self.path = path
        self.where = where
        self.mode = mode

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where}, mode {self.mode!r})"

    def _repr_html_(self) -> str:
        """Return a table of the boundaries that the store holds."""
        rows = []
        for spec in self.boundaries():
            shape = " x ".join([*(["tokens"] if spec.ragged else []), *map(str, spec.shape)])
            cells = (spec.path, len(self.sources(spec)), shape, spec.dtype)
            rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
        head = "<tr><th>boundary</th><th>items</th><th>shape of one</th><th>data type</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{''.join(rows)}</table>"

    @staticmethod
    def open(
        path: str | Path,
        mode: Mode = "r",
        *,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | None = None,
        cache_gb: float | None = None,
    ) -> FeatureStore:
        """Open a store; shorthand for `talik.open_store`, with its arguments and errors.

        The one place here that reaches up to the module above, when it is called: this class knows no backend.
        """
        open_store = importlib.import_module(".open", __package__).open_store
        options = {"storage_options": storage_options, "cache_dir": cache_dir, "cache_gb": cache_gb}
        return cast(FeatureStore, open_store(path, mode, **options))

    def boundaries(self) -> tuple[BoundarySpec, ...]:
        """Return what the store holds, in order of modality and boundary, finished or not.

        Raises:
            StoreFormatError: damaged metadata.
        """
        return list_boundaries(self.path)

    def boundary(self, path: str) -> BoundarySpec:
        """Return the boundary of a path as `BoundarySpec.path` has it, such as "visual/b11-1f2e3d4c5b6a".

        Raises:
            StoreMismatchError: there is no such boundary.
            StoreFormatError: damaged metadata.
        """
        held = {spec.path: spec for spec in self.boundaries()}
        if path not in held:
            raise StoreMismatchError(f"{self.where}: {unknown_name('boundary', path, held)}")
        return held[path]

    def catalog(self, spec: BoundarySpec) -> Catalog | None:
        """Return the small arrays of a boundary (items, rows, receipts), or None if the store does not have it.

        Raises:
            StoreFormatError, CorruptItemError: damage.
        """
        return catalog_.load(self.path, spec)

    @abstractmethod
    def open_reader(
        self, spec: BoundarySpec, *, verify: Verify, path: ReadPath, allocate: Allocate | None
    ) -> BoundaryReader:
        """Return the reader of a boundary that the store holds; see `reader`."""

    def open_writer(self, request: BoundaryRequest, *, commit: bool) -> BoundaryWriter:
        """Return the writer of a boundary of a store that is open in mode `a`; see `writer`."""
        raise self._read_only()

    def sources(self, spec: BoundarySpec) -> list[Item]:
        """Return every source that a boundary of this store names, each with its newest item, with data or without.

        Raises:
            StoreFormatError, CorruptItemError: damage.
        """
        catalog = self.catalog(spec)
        return catalog.records.newest_items() if catalog else []

    def dataset_files(self) -> tuple[DatasetFiles, ...]:
        """Return what the store knows of the files of data sets, a table for each place of one.

        Raises:
            StoreFormatError: damaged metadata.
        """
        return dataset_files.load(self.path)

    def record_files(self, files: DatasetFiles) -> None:
        """Write down which content the files of a data set have, unless the store knows just that already.

        Args:
            files: of one place; clips that are not in it stay as they were.

        Raises:
            StoreLockedError: another process writes the store.
            StoreError: the disk refuses.
        """
        if dataset_files.with_table(before := self.dataset_files(), files) == before:
            return
        with self.editing(dataset_files.GROUP) as folder:
            dataset_files.write(folder, dataset_files.with_table(dataset_files.load(folder), files))

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
        """Return the writer of a boundary, to be closed when its shards are written.

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
            StoreLockedError: another process writes this store's folder, or this one this boundary.
            ObjectChangedError: another process changed this boundary in object storage meanwhile.
            StoreFullError: what is missing does not fit on the disk; nothing was written.
            StoreMismatchError: other lengths than those stored, or an item longer than a shard.
            SettingsError: a store opened for reading; lengths missing, or given for a dense boundary.
        """
        if self.mode != "a":
            raise self._read_only()
        request = BoundaryRequest(
            spec=spec,
            items=items,
            lengths=lengths,
            provenance=provenance,
            max_seconds_per_item=max_seconds_per_item,
        )
        return self.open_writer(request, commit=commit)

    @contextmanager
    def writers(self, requests: Sequence[BoundaryRequest]) -> Iterator[list[BoundaryWriter]]:
        """Open the writers of several boundaries, after all that they miss together was found to fit on the disk.

        Raises:
            StoreFullError: it does not fit; nothing was written.
            StoreLockedError, ObjectChangedError, StoreMismatchError, SettingsError: see `writer`.
        """
        with ExitStack() as stack:
            opened = [stack.enter_context(self.writer(**vars(request), commit=False)) for request in requests]
            missing = [size for size in (writer.bytes_missing for writer in opened) if size]
            self.refuse_if_full(sum(missing), what=f"{len(missing)} boundaries", num_boundaries=len(missing))
            for writer in opened:
                writer.commit()
            yield opened

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
                `auto` copies what is in memory from maps and reads the rest by several threads, through the page cache
                if the boundary fits in memory. Network file systems are never mapped.
            allocate: gives memory for batches (pinned, for a GPU): size in bytes -> (at least that,) uint8.

        Raises:
            StoreMismatchError: no such boundary, another identity, or several and none named.
            StoreFormatError, CorruptItemError: damage.
        """
        if path not in ("auto", "mmap", "preadv"):
            raise SettingsError(unknown_name("path of reading", path, ("auto", "mmap", "preadv")))
        spec = self._find(modality, boundary, key, identity)
        return self.open_reader(spec, verify=verify, path=path, allocate=allocate)

    def refuse_if_full(self, num_bytes: int, *, what: str, num_boundaries: int = 1) -> None:  # noqa: B027 - a backend may know no bound
        """Refuse to begin writing `num_bytes` for which the storage is known to have no room.

        Args:
            num_bytes: of data to be written.
            what: names the work, for the message.
            num_boundaries: that each take some space of their own.

        Raises:
            StoreFullError: they do not fit; nothing was written.
        """

    def put_records(self) -> None:  # noqa: B027 - a folder has nothing to copy
        """Copy the records beside `path` to beside the store, if it lies elsewhere."""

    def local_files(self) -> AbstractContextManager[LocalFiles]:
        """Give the files of the store on this machine, as they are now, for `verify`.

        Raises:
            SettingsError: a backend whose files cannot be checked one by one.
        """
        kind = type(self).__name__
        raise SettingsError(f"{self.where}: verify reads a store in a folder or in object storage, not {kind}")

    def editing(self, purpose: str) -> AbstractContextManager[Path]:
        """Give the folder with the store's small files, to be changed by this process alone; published at the end.

        Args:
            purpose: one word, for messages.

        Raises:
            StoreLockedError: another process writes it.
            SettingsError: a store opened for reading, or a backend that is only read.
        """
        raise self._read_only()

    def garbage_folder(self) -> Path:
        """Return the folder in which garbage collection removes files.

        Raises:
            SettingsError: a store that is not in a folder.
        """
        raise SettingsError(
            f"{self.where}: gc works on a store in a folder; of one behind a URL remove whole boundaries by the "
            "storage's own means while nobody writes it"
        )

    def _read_only(self) -> SettingsError:
        return SettingsError(f"{self.where}: opened for reading; open it with mode 'a' to write")

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
