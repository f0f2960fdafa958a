"""Where a variant's adapters sit: "last K" or named boundaries, resolved for the encoders at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..cache.errors import SettingsError, unknown_name


@dataclass(frozen=True)
class Insertion:
    """Where the modalities meet once: the boundary of each, between 0 and its number of units."""

    boundaries: Mapping[str, int]


@dataclass(frozen=True)
class ResolvedInsertions:
    """All insertions of a variant, in the order in which the trunks reach them, and what resolving them changed."""

    insertions: tuple[Insertion, ...]
    notes: tuple[str, ...] = ()

    def first(self, modality: str, num_units: int) -> int:
        """The lowest boundary at which `modality` is touched; num_units if it never is."""
        touched = [i.boundaries[modality] for i in self.insertions if modality in i.boundaries]
        return min(touched, default=num_units)


def resolve_insertions(
    wanted: str | Mapping[str, tuple[int, ...]] | None, num_units: Mapping[str, int], *, placement: str = "between"
) -> ResolvedInsertions:
    """Resolve what a variant's `insertion` says.

    Args:
        wanted: "last K" (boundaries n-K … n-1 of every encoder, clamped at 0), or lists of boundaries by modality, of
            one length; None for no insertion.
        num_units: n of each encoder, by modality.
        placement: "parallel" needs a unit after the boundary, so that n itself is refused.

    Raises:
        SettingsError: an unknown modality, a boundary outside the encoder, lists of unequal length or out of order.
    """
    if wanted is None:
        return ResolvedInsertions(())
    if isinstance(wanted, str):
        return _last(wanted, num_units, placement)
    lists = {m: _boundaries(m, values, num_units, placement) for m, values in wanted.items()}
    lengths = {m: len(values) for m, values in lists.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise SettingsError(f"insertion: lists of {lengths} boundaries; expected lists of one length, at least 1")
    count = next(iter(lengths.values()))
    return ResolvedInsertions(tuple(Insertion({m: lists[m][i] for m in lists}) for i in range(count)))


def _last(wanted: str, num_units: Mapping[str, int], placement: str) -> ResolvedInsertions:
    match = re.fullmatch(r"last (\d+)", wanted.strip())
    if match is None or int(match[1]) < 1:
        raise SettingsError(
            f'insertion: found {wanted!r}, expected "last K" with K at least 1, or boundaries by modality'
        )
    count = int(match[1])
    if placement == "parallel" and any(count > n for n in num_units.values()):
        raise SettingsError(f"insertion: {wanted!r} reaches below the first unit; a unit takes one parallel adapter")
    notes = tuple(
        f"{m}: {wanted!r} reaches below the first of {n} units; clamped at boundary 0"
        for m, n in num_units.items()
        if count > n
    )
    made = [Insertion({m: max(0, n - count + i) for m, n in num_units.items()}) for i in range(count)]
    return ResolvedInsertions(tuple(made), notes)


def _boundaries(modality: str, values: tuple[int, ...], num_units: Mapping[str, int], placement: str) -> list[int]:
    if modality not in num_units:
        raise SettingsError(f"insertion: {unknown_name('modality', modality, num_units)}")
    n = num_units[modality]
    resolved = [k + n if k < 0 else k for k in values]
    highest = n - 1 if placement == "parallel" else n
    for given, k in zip(values, resolved, strict=True):
        if not 0 <= k <= highest:
            raise SettingsError(f"insertion.{modality}: found {given}, expected a boundary from 0 to {highest}")
    if placement == "parallel" and len(set(resolved)) < len(resolved):
        raise SettingsError(f"insertion.{modality}: found {list(values)}; a unit takes one parallel adapter, not two")
    if resolved != sorted(resolved):
        raise SettingsError(f"insertion.{modality}: found {list(values)}, expected boundaries in rising order")
    return resolved
