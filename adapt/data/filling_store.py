"""A store that another process is filling: what is planned to be computed counts as stored; reading it waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...cache.feature_store import BoundarySpec
from ...cache.folder_store import FolderStore
from ...cache.format.catalog import Catalog
from ...cache.read.batch import Allocate
from ...cache.read.boundary_reader import BoundaryReader, Verify
from ...cache.read.local_rows import ReadPath

WaitForShard = Callable[[Catalog, int], None]
"""Returns when a shard of a boundary is stored, or raises; called by threads that read ahead."""


class FillingStore(FolderStore):
    """A store in a folder, open for reading while its planned shards are written.

    Args:
        path: of the folder.
        planned: shards that will be written, by path of their boundary.
        wait: see `WaitForShard`.
    """

    def __init__(self, path: Path, planned: Mapping[str, Sequence[int]], wait: WaitForShard) -> None:
        super().__init__(path)
        self._planned = planned
        self._wait = wait

    def open_reader(
        self, spec: BoundarySpec, *, verify: Verify, path: ReadPath, allocate: Allocate | None
    ) -> BoundaryReader:
        """Return the reader of a boundary, which waits for what is not written yet."""
        reader = super().open_reader(spec, verify=verify, path=path, allocate=allocate)
        reader.await_shards(self._planned.get(spec.path, ()), self._wait)
        return reader
