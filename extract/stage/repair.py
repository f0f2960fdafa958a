"""Repair of a store: bad shards are forgotten, then computed again where an experiment says how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...cache.maintenance.repair import repair
from ...cache.maintenance.verify import verify
from ...cache.open import open_store
from ...errors import StoreError
from .extract import ExtractReport, extract


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair found and did.

    Args:
        findings: what `verify` found, a line each.
        forgotten: (boundary, shard) that are to be computed again.
        extraction: of what was computed again; None without an experiment.
    """

    findings: tuple[str, ...]
    forgotten: tuple[tuple[str, int], ...]
    extraction: ExtractReport | None = None

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        if not self.findings:
            return ["every checksum holds; nothing to repair"]
        lines = [*self.findings, *(f"to be computed again: {name}, shard {shard}" for name, shard in self.forgotten)]
        if self.extraction is None:
            return [*lines, "run `talik extract` with the experiment that made the store to compute them again"]
        return lines + self.extraction.lines()


def repair_store(
    store: Path | str, experiment: Path | str | None = None, *, device: str = "cpu", progress: bool = True
) -> RepairReport:
    """Forget the shards that fail their checksums; with an experiment, compute them again at once.

    Raises:
        StoreError: damage that only a new store mends; a shard computed again that is still bad.
    """
    findings = verify(open_store(store, check=False))
    forgotten, beyond = repair(open_store(store, "a", check=False), findings) if findings else ([], [])
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise StoreError(f"{store}: {beyond[0]}{more}: cannot be derived again; remove that boundary's folder, extract")
    said = tuple(str(finding) for finding in findings)
    if experiment is None or not findings:
        return RepairReport(findings=said, forgotten=tuple(forgotten))
    extraction = extract(Path(experiment), device=device, progress=progress)
    left = verify(open_store(store))
    if left:
        raise StoreError(
            f"{store}: still bad after computing it again: {left[0]}; does the experiment fill this store?"
        )
    return RepairReport(findings=said, forgotten=tuple(forgotten), extraction=extraction)
