"""Makes a damaged store fit to be extracted into again: what can be derived is rewritten, bad shards are forgotten.

Recomputing the forgotten shards is extraction's: to a writer they are missing ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ...errors import StoreError
from ..atomic_io import disk_errors, make_folder, sync_folder
from ..feature_store import FeatureStore
from ..format import catalog as catalog_
from ..format.spec import BoundarySpec
from ..format.store_root import root_document
from ..format.zarr_metadata import write_document
from .verify import Finding


def repair(store: FeatureStore, findings: Iterable[Finding]) -> tuple[list[tuple[str, int]], list[Finding]]:
    """Rewrite the metadata that can be derived, and take away the receipts of shards with findings.

    Args:
        store: open in mode `a`; a damaged one is opened by `open_store(where, "a", check=False)`.
        findings: of `verify`.

    Returns:
        The (boundary, shard) pairs that are now missing, and the findings that only a new extraction can mend: damage
        to a boundary's own metadata or to its small arrays.

    Raises:
        StoreLockedError: somebody is writing the store.
        SettingsError: a store that is only read.
    """
    forgotten: list[tuple[str, int]] = []
    beyond: list[Finding] = []
    by_boundary: dict[str, list[Finding]] = {}
    for finding in findings:
        by_boundary.setdefault(finding.boundary, []).append(finding)
    by_boundary.pop("", None)
    with store.editing("repair") as folder:
        write_document(folder, root_document())
        for boundary, found in by_boundary.items():
            try:
                spec = BoundarySpec.from_json(catalog_.read_attributes(folder / boundary))
                catalog = catalog_.load(folder, spec)
                assert catalog is not None
            except StoreError:
                beyond += found
                continue
            for place, document in catalog_.documents(catalog).items():
                make_folder(place)
                write_document(place, document)
            shards = sorted({f.shard for f in found if f.shard is not None})
            for shard in shards:
                with disk_errors(folder), suppress(FileNotFoundError):
                    catalog.layout.receipts.chunk_path(shard).unlink()
            sync_folder(catalog.layout.receipts.folder)
            forgotten += [(boundary, shard) for shard in shards]
    return forgotten, beyond
