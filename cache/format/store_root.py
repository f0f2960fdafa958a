"""The document at the root of a store, and the list of boundaries below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import NoStoreError, StoreFormatError
from .catalog import read_attributes
from .spec import FORMAT_VERSION, STORE_KIND, BoundarySpec
from .zarr_metadata import METADATA_NAME, group_document, read_document


def root_document() -> dict[str, Any]:
    """Return the metadata document that makes a folder a feature store."""
    return group_document({"format": FORMAT_VERSION, "kind": STORE_KIND})


def check_root(path: Path) -> None:
    """Refuse a path that holds no feature store of this format.

    Raises:
        NoStoreError: nothing is there.
        StoreFormatError: a file, another folder, a damaged document or another format version.
    """
    if not path.exists():
        raise NoStoreError(f"{path}: there is no store; run `talik extract` to make one")
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


def list_boundaries(path: Path) -> tuple[BoundarySpec, ...]:
    """Return the boundaries under a store's folder, finished or not, sorted by modality and boundary.

    Raises:
        StoreFormatError: damaged metadata.
    """
    folders = sorted(p.parent for p in path.glob(f"*/b*-*/{METADATA_NAME}"))
    return sorted_boundaries([BoundarySpec.from_json(read_attributes(folder)) for folder in folders])


def sorted_boundaries(specs: list[BoundarySpec]) -> tuple[BoundarySpec, ...]:
    """Return boundaries in the order in which a store lists them: modality, boundary, key."""
    return tuple(sorted(specs, key=lambda s: (s.modality, s.boundary, s.key)))
