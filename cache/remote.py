"""A feature store behind a URL, or copied with other codecs: opened by zarr-python, for reading only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import GroupNotFoundError, NodeTypeValidationError

from .bfloat16 import register
from .buffers import Allocate
from .catalog import Catalog
from .errors import CorruptItemError, SettingsError, StoreFormatError, StoreMismatchError
from .items import Records
from .layout import RECEIPT_FIELDS, Grid, Layout
from .metadata import group_document
from .reader import BoundaryReader, Verify
from .rows import ReadPath
from .spec import FORMAT_VERSION, STORE_KIND, BoundarySpec, Item
from .store import FeatureStore
from .zarr_rows import ZarrRows


class RemoteStore(FeatureStore):
    """A store that zarr-python reads; the same readers, slower.

    Metadata is held to the digest in its attributes, wherever it lies.
    """

    def __init__(self, where: Any, storage_options: dict[str, Any] | None = None) -> None:
        """Open the store.

        Args:
            where: a URL of fsspec (`s3://…`, `https://…`, `file://…`, `memory://…`), or a store of zarr-python's
                (`zarr.storage.ObjectStore` over obstore, say).
            storage_options: for fsspec.

        Raises:
            StoreFormatError: no store there, another format, or damaged metadata.
            SettingsError: a URL whose package is not installed.
        """
        super().__init__(Path(str(where)), "r")
        register()
        self.where = str(where)
        try:
            self._root = zarr.open_group(where, mode="r", zarr_format=3, storage_options=storage_options)
        except (GroupNotFoundError, NodeTypeValidationError, FileNotFoundError):
            raise StoreFormatError(
                f"{where}: there is no store; expected a copy of one that `talik extract` made"
            ) from None
        except (ImportError, ValueError) as error:
            raise SettingsError(f"{where}: cannot be opened ({' '.join(str(error).split())})") from None
        ours = _attributes(self._root, self.where)
        if ours.get("kind") != STORE_KIND or ours.get("format") != FORMAT_VERSION:
            raise StoreFormatError(f"{where}: no {STORE_KIND} of format {FORMAT_VERSION}; found {ours}")

    def boundaries(self) -> tuple[BoundarySpec, ...]:
        """Return what the store holds; see `FeatureStore.boundaries`."""
        found = []
        for _, modality in sorted(self._root.groups()):
            for name, group in sorted(modality.groups()):
                found.append(BoundarySpec.from_json(_attributes(group, f"{self.where}/{modality.basename}/{name}")))
        return tuple(sorted(found, key=lambda s: (s.modality, s.boundary, s.key)))

    def sources(self, spec: BoundarySpec) -> list[Item]:
        """Return every source that a boundary names; see `FeatureStore.sources`."""
        return self._catalog(spec).records.newest_items()

    def _reader(
        self, spec: BoundarySpec, *, verify: Verify, path: ReadPath, allocate: Allocate | None
    ) -> BoundaryReader:
        if path != "auto":
            raise SettingsError(
                f"{self.where}: is read through zarr-python alone; found path {path!r}, expected 'auto'"
            )
        catalog = self._catalog(spec)
        return BoundaryReader(catalog, ZarrRows(catalog, self._group(spec)), verify=verify, allocate=allocate)

    def _group(self, spec: BoundarySpec) -> zarr.Group:
        found = self._root.get(spec.path)
        if not isinstance(found, zarr.Group):
            raise StoreMismatchError(f"{self.where}: has no {spec.path}")
        return found

    def _catalog(self, spec: BoundarySpec) -> Catalog:
        """Return the boundary's small arrays, as catalog.load does of files."""
        group = self._group(spec)
        ours = _attributes(group, f"{self.where}/{spec.path}")
        if BoundarySpec.from_json(ours) != spec:
            raise StoreMismatchError(f"{self.where}: {spec.path} holds another identity under the same key")
        try:
            return _read_catalog(group, ours, Layout(store=self.path, spec=spec, grid=Grid(**ours["grid"])))
        except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
            what = " ".join(str(error).split())
            raise CorruptItemError(f"{self.where}: {spec.path}: a small array cannot be read ({what})") from None


def _read_catalog(group: zarr.Group, ours: dict[str, Any], layout: Layout) -> Catalog:
    def values(name: str, length: int) -> Any:
        array = group[name]
        assert isinstance(array, zarr.Array)
        if array.shape[0] < length:
            raise ValueError(f"{name} has {array.shape[0]} rows, expected {length}")
        return np.asarray(array[:length])

    count = ours["num_records"]
    at = values("items/source_offsets", count + 1)
    records = Records(
        **{name: values(f"items/{name}", count) for name in ("key", "row", "size_bytes", "mtime_ns")},
        source_offsets=at,
        source=values("items/source", int(at[-1])),
    )
    catalog = Catalog(
        layout=layout,
        records=records,
        offsets=np.zeros(0, np.int64),
        generations=tuple((first, rows) for first, rows in ours["generations"]),
        provenance=tuple(ours["provenance"]),
    )
    found = {"receipts": values("receipts", catalog.num_shards).reshape(-1, RECEIPT_FIELDS + len(layout.data))}
    if layout.spec.ragged:
        found["offsets"] = values("offsets", catalog.num_rows + 1)
    vars(catalog).update(found)  # in place of what the properties would read from files
    return catalog


def _attributes(group: zarr.Group, where: str) -> dict[str, Any]:
    """Return what a group says under `talik`, held to its digest.

    Raises:
        StoreFormatError: nothing there, or not what the digest says.
    """
    ours = group.attrs.asdict().get("talik")
    if not isinstance(ours, dict) or "digest" not in ours:
        raise StoreFormatError(f"{where}: has no attributes of talik's; expected a store, or a whole copy of one")
    plain = {name: value for name, value in ours.items() if name != "digest"}
    if group_document(plain)["attributes"]["talik"]["digest"] != ours["digest"]:
        raise StoreFormatError(f"{where}: its attributes are not what their digest says; copy the store again")
    return plain
