"""Stage 1: the states of every clip and text at the named boundaries, computed once and written to the store.

Work is cut into units: the rows of one shard, for all boundaries that miss it, so that a clip is decoded once and a
prefix runs once however many boundaries and modalities want it. A unit that is interrupted is done again, a finished
one never; which items share a forward is fixed by their rows, so a resumed store equals an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..cache.errors import MediaError
from ..cache.store import FeatureStore
from .manifest.load import load_manifest
from .run_clips import extract_clips
from .run_texts import extract_texts
from .settings import ExtractSettings, extract_settings, read_toml
from .work import Ledger


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What one run of stage 1 did.

    Args:
        items: number of items computed for each boundary, by "modality/name".
        bytes_written: bytes of states written.
        seconds: wall time.
        up_to_date: nothing was missing, nothing was computed.
        skipped: (source, reason) of media left out because the settings allow it.
    """

    items: dict[str, int]
    bytes_written: int
    seconds: float
    up_to_date: bool
    skipped: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        out = [f"left out {source}: {reason}" for source, reason in self.skipped]
        if self.up_to_date:
            return [*out, "nothing to do: every state is in the store"]
        out += [f"{name}: {count} items computed" for name, count in self.items.items() if count]
        return [*out, f"{self.bytes_written / 1e6:.1f} MB written in {self.seconds:.1f} s"]


def extract(experiment: Path | str | ExtractSettings, *, device: str = "cpu", progress: bool = True) -> ExtractReport:
    """Compute every state that the experiment names and the store does not hold.

    Args:
        experiment: an experiment's TOML, or its settings for stage 1.
        device: where the encoders run.
        progress: show tqdm bars with rates.

    Raises:
        SettingsError: a key or value of the file.
        ManifestError, MissingMediaError: annotations, or media they name that are not there.
        MediaError: files that could not be decoded; all others are finished and kept.
        StoreError: a folder that is no store, a full disk, another writer.
    """
    settings = experiment if isinstance(experiment, ExtractSettings) else _read(Path(experiment))
    started = time.perf_counter()
    store = FeatureStore.open(settings.store_path, mode="a")
    manifest = load_manifest(settings.data, base=settings.base)
    done = Ledger()
    with ExitStack() as stack:
        extract_clips(settings, manifest, store, stack, done, device=device, progress=progress)
        extract_texts(settings, manifest, store, stack, done, device=device, progress=progress)
    if done.failures:
        raise MediaError(_failure_line(done.failures, len(manifest.clips)))
    return ExtractReport(
        items=done.items,
        bytes_written=done.bytes_written,
        seconds=time.perf_counter() - started,
        up_to_date=not any(done.items.values()),
        skipped=tuple(done.skipped),
    )


def _read(path: Path) -> ExtractSettings:
    return extract_settings(read_toml(path), path=path)


def _failure_line(failures: Sequence[tuple[str, str]], total: int) -> str:
    first = "; ".join(reason for _, reason in failures[:3])
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    return (
        f"{len(failures)} of {total} clips could not be decoded, all others are stored: {first}{more}; "
        "replace or remove them and run again, or set allow_missing = true in [data]"
    )
