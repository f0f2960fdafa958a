"""Stage 1: the states of every clip and text at the named boundaries, computed once and written to the store.

Work is cut into units: the rows of one shard, for all boundaries that miss it, so that a clip is decoded once and a
prefix runs once however many boundaries and modalities want it. A unit that is interrupted is done again, a finished
one never; which items share a forward is fixed by their rows, so a resumed store equals an uninterrupted one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..cache.errors import MediaError, StoreError
from ..cache.store import FeatureStore
from .asked import refuse_what_cannot_fit, trainable
from .items import source_of
from .left_out import LeftOut, read_left_out, record_path, write_left_out
from .manifest.describe import describe
from .manifest.load import load_manifest
from .manifest.types import Manifest
from .run_clips import ask_clips, extract_clips
from .run_texts import ask_texts, extract_texts
from .settings import ExtractSettings, extract_settings, read_toml
from .spent import add_spent
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


def extract(
    experiment: Path | str | ExtractSettings, *, device: str = "cpu", progress: bool = True, deep: bool = False
) -> ExtractReport:
    """Compute every state that the experiment names and the store does not hold.

    Args:
        experiment: an experiment's TOML, or its settings for stage 1.
        device: where the encoders run.
        progress: show tqdm bars with rates.
        deep: digest every media file, also those whose size and time are as they were.

    Raises:
        SettingsError: a key or value of the file.
        ManifestError, MissingMediaError: annotations, or media they name that are not there.
        MediaError: files that could not be decoded; all others are finished and kept. With `allow_missing` they stand
            in the report instead. Either way they are listed beside the store (`left_out.record_path`).
        StoreError: a folder that is no store, a full disk, another writer.
    """
    settings = experiment if isinstance(experiment, ExtractSettings) else _read(Path(experiment))
    started = time.perf_counter()
    store = FeatureStore.open(settings.store_path, mode="a")
    manifest = load_manifest(settings.manifest_settings, base=settings.base)
    for line in describe(manifest, brief=True) if progress else ():
        tqdm.write(line, file=sys.stderr)
    done = Ledger()
    clips = ask_clips(settings, manifest, store, device=device, progress=progress, deep=deep)
    texts = ask_texts(settings, trainable(settings, manifest), device=device)
    refuse_what_cannot_fit(store, clips, texts)
    try:
        extract_clips(clips, settings, manifest, store, done, progress=progress)
        with ExitStack() as stack:
            extract_texts(texts, store, stack, done, progress=progress)
    finally:  # what was computed is kept, so its cost counts
        seconds, kind = time.perf_counter() - started, torch.device(device).type
        with suppress(StoreError):  # a disk that is full says so by itself
            add_spent(store.path, seconds=seconds, device=kind, size_bytes=done.bytes_written, items=done.items)
    _record(store.path, manifest, done)
    if done.failures and not settings.data.allow_missing:
        raise MediaError(_failure_line(done.failures, len(manifest.clips), store.path))
    return ExtractReport(
        items=done.items,
        bytes_written=done.bytes_written,
        seconds=time.perf_counter() - started,
        up_to_date=not any(done.items.values()),
        skipped=tuple((entry.source, entry.reason) for entry in (*done.missing, *done.failures)),
    )


def _read(path: Path) -> ExtractSettings:
    return extract_settings(read_toml(path), path=path)


def _record(store: Path, manifest: Manifest, done: Ledger) -> None:
    """Write down what was left out; what other data sets of this store left out stays."""
    here = {source_of(manifest, clip) for clip in manifest.clips.values()} | set(manifest.missing)
    others = [entry for entry in read_left_out(store) if entry.source not in here and entry.key]
    entries = [*others, *done.missing, *done.failures]
    if entries or read_left_out(store):
        write_left_out(store, entries)


def _failure_line(failures: Sequence[LeftOut], total: int, store: Path) -> str:
    first = "; ".join(entry.reason for entry in failures[:3])
    more = f"; and {len(failures) - 3} more, listed in {record_path(store).name}" if len(failures) > 3 else ""
    return (
        f"{len(failures)} of {total} clips could not be decoded, all others are stored: {first}{more}; "
        "replace or remove them and run again, or go on without them with allow_missing = true in [data]"
    )
