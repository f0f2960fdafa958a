"""Makes a damaged store fit to be extracted into again: what can be derived is rewritten, bad shards are forgotten.

Recomputing the forgotten shards is extraction's: to a writer they are missing ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...errors import StoreError
from ..atomic_io import disk_errors, make_folder, sync_folder
from ..format import catalog as catalog_
from ..format.spec import FORMAT_VERSION, STORE_KIND, BoundarySpec
from ..format.zarr_metadata import group_document, write_document
from ..object_storage.address import ObjectAddress, is_object_url
from ..write import locks as lock
from .verify import Finding


def repair(store: str | Path, findings: Iterable[Finding]) -> tuple[list[tuple[str, int]], list[Finding]]:
    """Rewrite the metadata that can be derived, and take away the receipts of shards with findings.

    Args:
        store: its path.
        findings: of `verify`.

    Returns:
        The (boundary, shard) pairs that are now missing, and the findings that only a new extraction can mend: damage
        to a boundary's own metadata or to its small arrays.

    Raises:
        StoreLockedError: somebody is writing the store.
    """
    if is_object_url(store):
        from ..object_storage.object_store import ObjectStore  # imports obstore, which a folder does without

        opened = ObjectStore(ObjectAddress(url=str(store)), "a")
        with opened.owned("repair") as mirror:
            done = repair(mirror.folder, findings)
            mirror.push_changes()
            return done
    store, findings = Path(store), list(findings)
    lock.acquire(store, "repair")
    try:
        write_document(store, group_document({"format": FORMAT_VERSION, "kind": STORE_KIND}))
        forgotten: list[tuple[str, int]] = []
        beyond: list[Finding] = []
        for boundary in dict.fromkeys(f.boundary for f in findings):
            ours = [f for f in findings if f.boundary == boundary]
            folder = store / boundary
            if not boundary:
                continue
            try:
                catalog = catalog_.load(store, BoundarySpec.from_json(catalog_.read_attributes(folder)))
                assert catalog is not None
            except StoreError:
                beyond += ours
                continue
            for place, document in catalog_.documents(catalog).items():
                make_folder(place)
                write_document(place, document)
            shards = sorted({f.shard for f in ours if f.shard is not None})
            for shard in shards:
                with disk_errors(folder), suppress(FileNotFoundError):
                    catalog.layout.receipts.chunk_path(shard).unlink()
            sync_folder(catalog.layout.receipts.folder)
            forgotten += [(boundary, shard) for shard in shards]
        return forgotten, beyond
    finally:
        lock.release(store, "repair")
