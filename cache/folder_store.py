"""A feature store in a folder of this machine, or of a file system that is mounted here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import StoreFormatError
from .atomic_io import is_temporary, make_folder
from .feature_store import FeatureStore, LocalFiles, Mode
from .format import catalog as catalog_
from .format.spec import BoundarySpec
from .format.store_root import check_root, root_document
from .format.zarr_metadata import write_document
from .read.batch import Allocate
from .read.boundary_reader import BoundaryReader, Verify
from .read.local_rows import LocalRows, ReadPath
from .write import locks as lock
from .write.boundary_writer import BoundaryRequest, BoundaryWriter
from .write.disk_space import refuse_if_full


class FolderStore(FeatureStore):
    """A store in a folder; one process at a time writes it, under an flock."""

    def __init__(self, path: Path, mode: Mode = "r", *, check: bool = True) -> None:
        """Open the folder; with mode `a`, make the store where none is.

        Args:
            path: of the folder.
            mode: `r` reads; `a` reads and writes.
            check: refuse what is no store; False for `verify` and `repair`, and then nothing is made.

        Raises:
            StoreFormatError: no store there, another folder or file there, or another format version.
            SettingsError: another mode.
        """
        super().__init__(path, str(path), mode)
        if check and mode == "a" and is_vacant(path):
            make_folder(path)
            write_document(path, root_document())
        if check:
            check_root(path)

    def open_reader(
        self, spec: BoundarySpec, *, verify: Verify, path: ReadPath, allocate: Allocate | None
    ) -> BoundaryReader:
        """Return the reader of a boundary, whose data files have the sizes that their receipts say."""
        catalog = self.catalog(spec)
        if catalog is None:
            raise StoreFormatError(f"{self.path}: has no {spec.path}; run `talik extract` first")
        catalog_.check_sizes(catalog)
        return BoundaryReader(catalog, LocalRows(catalog, path), verify=verify, allocate=allocate)

    def open_writer(self, request: BoundaryRequest, *, commit: bool) -> BoundaryWriter:
        """Return the writer of a boundary, which holds the store's lock until it is closed."""
        return BoundaryWriter(self.path, request, commit=commit)

    def refuse_if_full(self, num_bytes: int, *, what: str, num_boundaries: int = 1) -> None:
        """Refuse what the disk has no room for; see `FeatureStore.refuse_if_full`."""
        refuse_if_full(self.path, num_bytes, where=self.where, what=what, num_boundaries=num_boundaries)

    @contextmanager
    def local_files(self) -> Iterator[LocalFiles]:
        """Give the folder itself."""
        yield LocalFiles(folder=self.path, shard=lambda catalog, shard: nullcontext())

    @contextmanager
    def editing(self, purpose: str) -> Iterator[Path]:
        """Give the folder, under the store's lock."""
        if self.mode != "a":
            raise self._read_only()
        lock.acquire(self.path, purpose)
        try:
            yield self.path
        finally:
            lock.release(self.path, purpose)

    def garbage_folder(self) -> Path:
        """Return the folder."""
        return self.path


def is_vacant(path: Path) -> bool:
    """Return whether nothing is at `path`, or an empty folder, or one whose creation was killed."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    return all(p.name == lock.LOCK_NAME or is_temporary(p.name) for p in path.iterdir())
