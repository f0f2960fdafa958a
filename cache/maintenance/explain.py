"""What differs between what is asked of a boundary and what is stored: fields of the identity, and items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import counted
from ..feature_store import FeatureStore
from ..format.spec import BoundarySpec, FieldDifference, Item, differences


@dataclass(frozen=True, kw_only=True)
class Why:
    """The answer for one boundary.

    Args:
        asked: the boundary that was asked for.
        stored: the stored boundary that is nearest to it, or None if nothing is stored at this place.
        fields: in which it differs (identity, dtype, shape, inputs); () if it is the one asked for.
        new: sources whose content is not stored.
        changed: sources that are stored with another content.
        moved: sources whose content is stored under another name; nothing is to be computed.
        waiting: sources that have a row and no data yet.
        gone: stored sources that are no longer asked for, nor is their content under another name.
        num_missing: items that are to be computed.
    """

    asked: BoundarySpec
    stored: BoundarySpec | None
    fields: tuple[FieldDifference, ...]
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    num_missing: int = 0

    def lines(self) -> list[str]:
        """The answer as a person reads it."""
        if self.stored is None:
            place = f"{self.asked.modality} boundary {self.asked.boundary}"
            missing = counted(self.num_missing, "item")
            return [f"{self.asked.path}: nothing is stored of {place}; {missing} to be computed"]
        state = f"is not stored, the nearest is {self.stored.path}" if self.fields else "is stored"
        items = f"{counted(self.num_missing, 'item')} {'is' if self.num_missing == 1 else 'are'}"
        todo = items if self.fields or self.num_missing else "nothing is"
        lines = [f"{self.asked.path}: {state}; {todo} to be computed", *(f"  {field}" for field in self.fields)]
        for name in ("new", "changed", "moved", "waiting", "gone"):
            sources = getattr(self, name)
            if sources:
                shown = ", ".join(sources[:10]) + (", …" if len(sources) > 10 else "")
                lines.append(f"  {name}: {len(sources)} ({shown})")
        return lines


def why(store: FeatureStore, spec: BoundarySpec, items: Sequence[Item]) -> Why:
    """Say what a writer of `spec` for `items` would find; damaged data files do not matter.

    Args:
        store: open in any mode; nothing is written.
        spec: what is asked.
        items: all that the boundary is to hold.

    Raises:
        StoreFormatError, CorruptItemError: damaged metadata or small arrays.
    """
    asked = _fields(spec)
    distinct = {item.key: item for item in items}
    near = [s for s in store.boundaries() if (s.modality, s.boundary) == (spec.modality, spec.boundary)]
    if not near:
        new = tuple(item.source for item in items)
        return Why(asked=spec, stored=None, fields=(), new=new, num_missing=len(distinct))
    stored = min(near, key=lambda s: len(differences(asked, _fields(s))))
    fields = tuple(differences(asked, _fields(stored)))
    catalog = store.catalog(stored)
    assert catalog is not None
    rows_by_source = catalog.table.rows_by_source()
    row_by_key = dict(zip(distinct, catalog.table.index.find(list(distinct)).tolist(), strict=True))
    there = {row: bool(catalog.receipts[catalog.shard_of(row), 0]) for row in row_by_key.values() if row >= 0}
    found: dict[str, list[str]] = {"new": [], "changed": [], "moved": [], "waiting": []}
    for item in items:
        row = row_by_key[item.key]
        if row < 0:
            found["changed" if item.source in rows_by_source else "new"].append(item.source)
        elif not there[row]:
            found["waiting"].append(item.source)
        elif row not in rows_by_source.get(item.source, ()):
            found["moved"].append(item.source)
    asked_sources = {item.source for item in items}
    gone = sorted(s for s, rows in rows_by_source.items() if s not in asked_sources and not rows & there.keys())
    missing = len(distinct) if fields else sum(not there.get(row, False) for row in row_by_key.values())
    return Why(
        asked=spec,
        stored=stored,
        fields=fields,
        gone=tuple(gone),
        num_missing=missing,
        **{name: tuple(sources) for name, sources in found.items()},
    )


def _fields(spec: BoundarySpec) -> dict[str, Any]:
    fields = spec.to_json()
    return {**fields.pop("identity"), **{name: fields[name] for name in ("dtype", "shape", "ragged", "inputs")}}
