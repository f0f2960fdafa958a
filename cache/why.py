"""What differs between what is asked of a boundary and what is stored: fields of the identity, and items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .difference import FieldDifference, differences
from .spec import BoundarySpec, Item
from .store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Why:
    """The answer for one boundary.

    Args:
        stored: the stored boundary that is nearest to what is asked, or None if nothing is stored at this place.
        fields: in which it differs (identity, dtype, shape, inputs); () if it is the one asked for.
        new: sources whose content is not stored.
        changed: sources that are stored with another content.
        moved: sources whose content is stored under another name; nothing is to be computed.
        waiting: sources that have a row and no data yet.
        gone: stored sources that are no longer asked for.
    """

    stored: BoundarySpec | None
    fields: tuple[FieldDifference, ...]
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def why(store: FeatureStore, spec: BoundarySpec, items: Sequence[Item]) -> Why:
    """Say what a writer of `spec` for `items` would find.

    Args:
        store: open in any mode; nothing is written.
        spec: what is asked.
        items: all that the boundary is to hold.

    Raises:
        StoreFormatError, CorruptItemError: damage.
    """
    asked = _fields(spec)
    near = [s for s in store.boundaries() if (s.modality, s.boundary) == (spec.modality, spec.boundary)]
    if not near:
        return Why(stored=None, fields=(), new=tuple(item.source for item in items))
    stored = min(near, key=lambda s: len(differences(asked, _fields(s))))
    fields = tuple(differences(asked, _fields(stored)))
    with store.reader(stored.modality, stored.boundary, key=stored.key, verify="never") as reader:
        row_by_source, done = reader.row_by_source, {item.key for item in reader.items}
        rows = reader.allotted(item.key for item in items)
    found: dict[str, list[str]] = {"new": [], "changed": [], "moved": [], "waiting": []}
    for item, row in zip(items, rows, strict=True):
        if row < 0:
            found["changed" if item.source in row_by_source else "new"].append(item.source)
        elif item.key not in done:
            found["waiting"].append(item.source)
        elif row_by_source.get(item.source) != row:
            found["moved"].append(item.source)
    gone = sorted(set(row_by_source) - {item.source for item in items})
    return Why(stored=stored, fields=fields, gone=tuple(gone), **{name: tuple(v) for name, v in found.items()})


def _fields(spec: BoundarySpec) -> dict[str, Any]:
    fields = spec.to_json()
    return {**fields.pop("identity"), **{name: fields[name] for name in ("dtype", "shape", "ragged", "inputs")}}
