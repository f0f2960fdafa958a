"""The report of one run of stage 1, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...cache.feature_store import BoundarySpec
from ...errors import counted


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What one run of stage 1 did.

    Args:
        items: number of items computed for each boundary, by "modality/name".
        bytes_written: bytes of states written.
        seconds: wall time.
        up_to_date: nothing was missing, nothing was computed.
        boundaries: what the experiment names, specification by specification.
        skipped: (source, reason) of media left out because the settings allow it.
        retried: units that were begun more than once, each with the reason.
        notes: versions that differ between this environment and those that computed what is stored.
        unseen: what of the clips computed is not looked at, a line each.
    """

    items: dict[str, int]
    bytes_written: int
    seconds: float
    up_to_date: bool
    boundaries: tuple[BoundarySpec, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    retried: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the report as a person reads it."""
        out = [*self.notes, *(f"left out {source}: {reason}" for source, reason in self.skipped)]
        if self.up_to_date:
            return [*out, "nothing to do: every state is in the store"]
        out += [f"{name}: {counted(count, 'item')} computed" for name, count in self.items.items() if count]
        out += [f"{name} was begun again: {reason}" for name, reason in self.retried]
        out += self.unseen
        return [*out, f"{self.bytes_written / 1e6:.1f} MB written in {self.seconds:.1f} s"]


def joined(reports: Sequence[ExtractReport]) -> ExtractReport:
    """Return one report of several runs of stage 1, one after another; of a single one, itself."""
    if len(reports) == 1:
        return reports[0]
    names = dict.fromkeys(name for r in reports for name in r.items)
    return ExtractReport(
        items={name: sum(r.items.get(name, 0) for r in reports) for name in names},
        bytes_written=sum(r.bytes_written for r in reports),
        seconds=sum(r.seconds for r in reports),
        up_to_date=all(r.up_to_date for r in reports),
        boundaries=tuple({spec.path: spec for r in reports for spec in r.boundaries}.values()),
        skipped=tuple(dict.fromkeys(one for r in reports for one in r.skipped)),
        retried=tuple(one for r in reports for one in r.retried),
        notes=tuple(dict.fromkeys(one for r in reports for one in r.notes)),
        unseen=tuple(dict.fromkeys(one for r in reports for one in r.unseen)),
    )
