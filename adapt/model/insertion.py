"""Where a variant's adapters sit: "last K", boundaries, or depths, resolved for given encoders.

Encoders differ in depth (24 units beside 12 beside 6). They are joined

- from the end: "last K" is boundaries n-K … n-1 of each, clamped at 0 where an encoder has fewer units;
- by relative depth: a fraction f of an encoder of n units is boundary floor(f·n), never deeper than f;
- by another encoder: "aligned" takes the relative depths of the one whose boundaries are given, by the same rule; so
  boundary 23 of 24 is 11 of 12 and 5 of 6, each the place before the last unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import SettingsError, unknown_name

Placement = Literal["between", "parallel", "inside"]
Wanted = str | Sequence[float] | Mapping[str, str | Sequence[float]]


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
        return min(self.of(modality), default=num_units)

    def of(self, modality: str) -> tuple[int, ...]:
        """The boundaries at which `modality` is touched, in order."""
        return tuple(i.boundaries[modality] for i in self.insertions if modality in i.boundaries)

    def summary(self, num_units: Mapping[str, int]) -> str:
        """What was resolved, in one line: "visual at 22, 23 of 24 units; audio at 10, 11 of 12 units"."""
        parts = [f"{m} at {', '.join(map(str, self.of(m)))} of {n} units" for m, n in num_units.items() if self.of(m)]
        return "; ".join(parts)


def resolve_insertions(
    wanted: Wanted | None, num_units: Mapping[str, int], *, placement: Placement = "between"
) -> ResolvedInsertions:
    """Resolve what a variant's `insertion` says.

    Args:
        wanted: "last K"; depths (fractions from 0 to 1) for every encoder; or, by modality, a list of boundaries (whole
            numbers, negative ones from the end) and depths, or "aligned" with the one that has such a list. The i-th
            entries meet, so that lists are of one length. None for no insertion.
        num_units: n of each encoder, by modality.
        placement: "between" adds at a boundary. "parallel" and "inside" need the unit after it, so that n itself is
            refused (a depth of 1.0 is clamped), and take each unit once; "inside", where units are trained themselves
            and nothing meets, takes lists of unlike length.

    Raises:
        SettingsError: an unknown modality, a boundary outside the encoder, lists of unequal length or out of order.
    """
    if wanted is None:
        return ResolvedInsertions(())
    resolver = _Resolver(num_units, placement)
    if isinstance(wanted, str):
        lists = resolver.last(wanted)
    elif isinstance(wanted, Mapping):
        lists = resolver.by_modality(wanted)
    else:
        lists = {m: resolver.boundaries(m, [_as_depth(v) for v in wanted]) for m in num_units}
    lists = {m: resolver.checked(m, values) for m, values in lists.items()}
    lengths = {m: len(values) for m, values in lists.items()}
    if 0 in lengths.values() or (len(set(lengths.values())) != 1 and placement != "inside"):
        raise SettingsError(f"insertion: lists of {lengths} boundaries; expected lists of one length, at least 1")
    longest = max(lengths.values())
    made = [Insertion({m: lists[m][i] for m in lists if i < lengths[m]}) for i in range(longest)]
    return ResolvedInsertions(tuple(made), tuple(resolver.notes))


def check_reach(wanted: Wanted | None, num_units: Mapping[str, int]) -> None:
    """Refuse "last K" that reaches below the first unit of every encoder: most adapters would stand at boundary 0.

    Args:
        wanted: what a variant's `insertion` says; anything but "last K" passes.
        num_units: n of each encoder, by modality.

    Raises:
        SettingsError: K is more than the units of the deepest encoder.

    >>> check_reach("last 8", {"visual": 12, "text": 6})
    >>> check_reach("last 99", {"audio": 6})
    Traceback (most recent call last):
    talik.errors.SettingsError: insertion: 'last 99' of 6 units (audio); expected "last 6" at most
    """
    match = re.fullmatch(r"last (\d+)", wanted.strip()) if isinstance(wanted, str) else None
    deepest = max(num_units, key=lambda m: num_units[m], default="")
    if match and deepest and int(match[1]) > num_units[deepest]:
        n = num_units[deepest]
        raise SettingsError(f'insertion: {wanted!r} of {n} units ({deepest}); expected "last {n}" at most')


def insertion_lines(resolved: ResolvedInsertions, num_units: Mapping[str, int], wanted: Wanted | None) -> list[str]:
    """What is to be told of a resolution: where it ended up, unless plain boundaries were given; and every note."""
    plain = isinstance(wanted, Mapping) and all(
        not isinstance(v, str) and all(isinstance(k, int) for k in v) for v in wanted.values()
    )
    first = [] if plain or not resolved.insertions else [f"insertion {wanted!r}: {resolved.summary(num_units)}"]
    return [*first, *resolved.notes]


class _Resolver:
    def __init__(self, num_units: Mapping[str, int], placement: Placement) -> None:
        self.num_units = num_units
        self.placement = placement
        self.notes: list[str] = []

    def highest(self, modality: str) -> int:
        return self.num_units[modality] - (self.placement != "between")

    def last(self, wanted: str) -> dict[str, list[int]]:
        match = re.fullmatch(r"last (\d+)", wanted.strip())
        if match is None or int(match[1]) < 1:
            raise SettingsError(
                f'insertion: found {wanted!r}, expected "last K" with K at least 1, or boundaries by modality'
            )
        count = int(match[1])
        for modality in self.num_units:
            self._check_units(modality)
        if self.placement == "parallel" and any(count > n for n in self.num_units.values()):
            raise SettingsError(
                f"insertion: {wanted!r} reaches below the first unit; a unit takes one parallel adapter"
            )
        lists = {}
        for modality, n in self.num_units.items():
            if count > n:
                self.notes.append(f"{modality}: {wanted!r} reaches below the first of {n} units; clamped at boundary 0")
            lists[modality] = [max(0, n - count + i) for i in range(count)]
            if self.placement == "inside":
                lists[modality] = sorted(set(lists[modality]))
        return lists

    def by_modality(self, wanted: Mapping[str, str | Sequence[float]]) -> dict[str, list[int]]:
        for modality in wanted:
            if modality not in self.num_units:
                raise SettingsError(f"insertion: {unknown_name('modality', modality, self.num_units)}")
        lists = {m: self.boundaries(m, values) for m, values in wanted.items() if not isinstance(values, str)}
        for modality, values in wanted.items():
            if isinstance(values, str):
                lists[modality] = self.aligned(modality, values, lists)
        return {m: lists[m] for m in wanted}

    def _check_units(self, modality: str) -> None:
        if self.highest(modality) < 0:
            raise SettingsError(f"insertion.{modality}: this encoder has no units; expected it left out")

    def boundaries(self, modality: str, values: Sequence[float]) -> list[int]:
        self._check_units(modality)
        return [self._boundary(modality, v) for v in values]

    def _boundary(self, modality: str, value: float) -> int:
        n, highest = self.num_units[modality], self.highest(modality)
        if isinstance(value, float):
            if not 0 <= value <= 1:
                raise SettingsError(f"insertion.{modality}: found {value}, expected a depth from 0.0 to 1.0")
            k = math.floor(value * n + 1e-9)
            if k > highest:
                self.notes.append(f"{modality}: depth {value} is after the last of {n} units; clamped at {highest}")
            return max(0, min(k, highest))
        k = value + n if value < 0 else value
        if not 0 <= k <= highest:
            raise SettingsError(f"insertion.{modality}: found {value}, expected a boundary from 0 to {highest}")
        return k

    def aligned(self, modality: str, value: str, lists: Mapping[str, list[int]]) -> list[int]:
        given = [m for m in lists if m in self.num_units]
        if value != "aligned" or not given:
            raise SettingsError(
                f'insertion.{modality}: found {value!r}, expected boundaries, or "aligned" beside a modality with them'
            )
        other = max(given, key=lambda m: self.num_units[m])
        self._check_units(modality)
        n, of = self.num_units[modality], self.num_units[other]
        return [k * n // of for k in lists[other]]

    def checked(self, modality: str, values: list[int]) -> list[int]:
        if values != sorted(values):
            raise SettingsError(f"insertion.{modality}: found {values}, expected boundaries in rising order")
        if len(set(values)) == len(values):
            return values
        if self.placement == "parallel":
            raise SettingsError(f"insertion.{modality}: found {values}; a unit takes one parallel adapter, not two")
        if self.placement == "inside":
            raise SettingsError(f"insertion.{modality}: found {values}, expected each unit once")
        if not any(note.startswith(f"{modality}:") for note in self.notes):
            self.notes.append(f"{modality}: several insertions share a boundary: {', '.join(map(str, values))}")
        return values


def _as_depth(value: float) -> float:
    return float(value)
