"""Lists what nothing needs any more, and deletes it: the only place where states are deleted.

What goes, and in which order, so that a kill at any instant leaves a store that opens, verifies and has lost nothing
that is needed:
    a boundary             renamed to a name that is no boundary's, then emptied
    items of a boundary    what shares a shard with them is copied to new rows (compact.py); one commit of the
                           boundary's document makes those count and gives the old ones up; then the old shards are
                           superseded
    superseded shards      whose rows were given up, or that were never finished: receipts first, then files
    temporary files        what killed writers left
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import StoreMismatchError, counted
from ..atomic_io import disk_errors, is_temporary, sync_folder, temporary_beside
from ..feature_store import FeatureStore
from ..format import catalog as catalog_
from ..format.catalog import Catalog
from ..format.layout import RECEIPT_FIELDS
from ..format.spec import BoundarySpec
from ..format.zarr_metadata import METADATA_NAME
from ..write.locks import no_shards_being_written
from .compact import compaction

Needed = Mapping[str, AbstractSet[str] | None]
"""By a boundary's path the keys of the items that stay in it; None: all of them. What is not named here goes."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that goes.

    Args:
        kind: of the four in this file's docstring.
        boundary: its path in the store, such as `visual/b09-1f2e3d4c5b6a`; "" for the store itself.
        size_bytes: that become free.
        count: of items, shards or files.
        bytes_rewritten: of shards that are written anew without the items that go.
        sources: of the items.
        paths: of the files and folders, relative to the store.
    """

    kind: Literal["boundary", "items", "superseded", "temporary"]
    boundary: str
    size_bytes: int
    count: int
    bytes_rewritten: int = 0
    sources: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        where, size = self.boundary or "the store", f"{self.size_bytes / 1e6:.1f} MB"
        if self.kind == "boundary":
            return f"{where}: needed by no experiment given, {counted(self.count, 'item')}, {size}"
        if self.kind == "items":
            names = ", ".join(self.sources[:3]) + (", …" if self.count > 3 else "")
            anew = f"; {self.bytes_rewritten / 1e6:.1f} MB beside them are written anew" * bool(self.bytes_rewritten)
            return f"{where}: {counted(self.count, 'item')} needed by no experiment given ({names}), {size}{anew}"
        what = "superseded or unfinished shards" if self.kind == "superseded" else "temporary files of killed writers"
        return f"{where}: {self.count} {what}, {size}"


def find_garbage(store: FeatureStore, needed: Needed) -> tuple[Garbage, ...]:
    """Say what would go; nothing is deleted.

    Raises:
        StoreFormatError, CorruptItemError: damage; repair comes first.
        SettingsError: a store that is not in a folder.
    """
    root = store.garbage_folder()
    found: list[Garbage] = []
    leaving = []
    for spec in store.boundaries():
        catalog = _load(store, spec)
        folder = root / spec.path
        if spec.path not in needed:
            leaving.append(folder)
            count = int((catalog.table.record_of_row >= 0).sum())
            found.append(Garbage(kind="boundary", boundary=spec.path, size_bytes=_size(folder), count=count))
            continue
        if shards := _dead_shards(catalog):
            size = sum(_size(path) for files in shards.values() for path in files)
            found.append(Garbage(kind="superseded", boundary=spec.path, size_bytes=size, count=len(shards)))
        keys = needed[spec.path]
        plan = None if keys is None else compaction(catalog, keys)
        if plan is not None:
            emptied = {catalog.shard_of(row) for row in (*plan.gone, *plan.moved.values())}
            size = int(catalog.receipts[list(emptied), RECEIPT_FIELDS:].sum())
            garbage = Garbage(
                kind="items",
                boundary=spec.path,
                size_bytes=max(0, size - plan.bytes_rewritten),
                count=len(plan.gone),
                bytes_rewritten=plan.bytes_rewritten,
                sources=tuple(catalog.table.item(row).source for row in plan.gone),
            )
            found.append(garbage)
    return (*found, *_temporaries(root, leaving))


def collect_garbage(store: FeatureStore, needed: Needed, listed: Iterable[Garbage]) -> int:
    """Delete what `find_garbage` listed, and nothing else, under the store's lock.

    Args:
        store: open in mode `a`.
        needed: as it was listed for.
        listed: what a person, or a program, has agreed to.

    Returns:
        The bytes that became free.

    Raises:
        SettingsError: a store that is not in a folder, or is open for reading.
        StoreMismatchError: what would go is not what was listed; nothing was deleted.
        StoreLockedError: somebody is writing the store.
        StoreFullError: no room for the shards that are to be written anew; nothing was deleted.
        CorruptItemError: an item that is to be kept fails its checksum.
    """
    with store.editing("gc") as root:
        found = find_garbage(store, needed)
        if found != tuple(listed):
            raise StoreMismatchError(f"{store.where}: has changed since its garbage was listed; list it again")
        rewritten = sum(garbage.bytes_rewritten for garbage in found)
        store.refuse_if_full(rewritten, what="the shards that gc is to keep items of")
        for garbage in found:
            if garbage.kind == "temporary":
                _remove_temporaries(root, garbage)
        for spec in store.boundaries():
            kinds = {g.kind for g in found if g.boundary == spec.path}
            if kinds - {"temporary"}:
                with no_shards_being_written(root / spec.path):
                    if "boundary" in kinds:
                        _remove_folder(root / spec.path)
                    else:
                        _compact(store, spec, needed[spec.path])
        return sum(garbage.size_bytes for garbage in found)


def _compact(store: FeatureStore, spec: BoundarySpec, keys: AbstractSet[str] | None) -> None:
    catalog = _load(store, spec)
    _remove_shards(catalog)
    plan = None if keys is None else compaction(catalog, keys)
    if plan is not None:
        plan.write()
        catalog_.commit(plan.before, plan.after)
        _remove_shards(_load(store, spec))


def _dead_shards(catalog: Catalog) -> dict[int, list[Path]]:
    """Return the files of every shard that no item stands in, or that has no receipt; its receipt comes first."""
    layout = catalog.layout
    found: dict[int, list[Path]] = {}
    for folder in (layout.receipts.folder, layout.crc.folder, *(array.folder for array in layout.data)):
        for path in sorted(folder.glob("c.*")):
            shard = int(path.name.split(".")[1])
            beyond = shard >= catalog.num_shards
            if beyond or not catalog.receipts[shard, 0] or not len(catalog.rows_of_shard(shard)):
                found.setdefault(shard, []).append(path)
    return found


def _remove_shards(catalog: Catalog) -> None:
    files = [path for paths in _dead_shards(catalog).values() for path in paths]
    receipts = catalog.layout.receipts.folder
    with disk_errors(receipts):
        for first in (True, False):
            for path in files:
                if (path.parent == receipts) == first:
                    path.unlink()
            sync_folder(receipts)


def _temporaries(store: Path, leaving: list[Path]) -> list[Garbage]:
    """Return what is left of killed writers and of a killed gc, one entry for each boundary and one for the store."""
    by_place: dict[str, list[Path]] = {}
    for at, folders, files in os.walk(store):
        parts = Path(at).relative_to(store).parts
        here = [Path(at) / name for name in sorted([*folders, *files]) if is_temporary(name)]
        if len(parts) == 1:  # a modality
            here += [Path(at) / name for name in sorted(folders) if _never_began(Path(at) / name)]
        folders[:] = [f for f in folders if Path(at) / f not in (*leaving, *here)]
        if here:
            by_place.setdefault("/".join(parts[:2]) if len(parts) > 1 else "", []).extend(here)
    return [
        Garbage(
            kind="temporary",
            boundary=place,
            size_bytes=sum(_size(path) for path in paths),
            count=len(paths),
            paths=tuple(path.relative_to(store).as_posix() for path in paths),
        )
        for place, paths in sorted(by_place.items())
    ]


def _never_began(folder: Path) -> bool:
    """Return whether a folder is that of a boundary whose creation was killed."""
    named = folder.match("b*-*") and not (folder / METADATA_NAME).exists()
    return named and not any(folder.glob("receipts/c.*"))


def _remove_temporaries(store: Path, garbage: Garbage) -> None:
    with no_shards_being_written(store / garbage.boundary), disk_errors(store):
        for name in garbage.paths:
            path = store / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _remove_folder(folder: Path) -> None:
    """Remove a boundary in one rename, then empty what is no boundary any more."""
    hidden = temporary_beside(folder)
    with disk_errors(folder):
        os.replace(folder, hidden)
        sync_folder(folder.parent)
        shutil.rmtree(hidden)


def _size(path: Path) -> int:
    return sum(inner.stat().st_size for inner in (path, *path.rglob("*")) if inner.is_file())


def _load(store: FeatureStore, spec: BoundarySpec) -> Catalog:
    catalog = store.catalog(spec)
    assert catalog is not None
    return catalog
