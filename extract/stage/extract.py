"""Stage 1: the states of every clip and text at the named boundaries, computed once and written to the store.

Work is cut into units: the rows of one shard, for all boundaries that miss it, so that a clip is decoded once and a
prefix runs once however many boundaries and modalities want it. A unit that is interrupted is done again, a finished
one never; which items share a forward is fixed by their rows, so a resumed store equals an uninterrupted one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ...errors import MediaError, StoreError
from ..datasets.describe import describe
from ..datasets.load import load_manifest
from ..datasets.types import Manifest
from ..executors.open import open_executor
from ..executors.receipts import ReceiptFile
from ..executors.settings import EngineSettings
from .clip_items import source_of
from .clips import ask_clips, extract_clips
from .failures import LeftOut, read_left_out, record_path, write_left_out
from .progress import Ledger
from .requested import refuse_what_cannot_fit, trainable
from .settings import ExtractSettings, extract_settings, read_toml
from .texts import ask_texts, extract_texts
from .time_log import add_spent


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What one run of stage 1 did.

    Args:
        items: number of items computed for each boundary, by "modality/name".
        bytes_written: bytes of states written.
        seconds: wall time.
        up_to_date: nothing was missing, nothing was computed.
        skipped: (source, reason) of media left out because the settings allow it.
        retried: units that were begun more than once, each with the reason.
    """

    items: dict[str, int]
    bytes_written: int
    seconds: float
    up_to_date: bool
    skipped: tuple[tuple[str, str], ...] = ()
    retried: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        out = [f"left out {source}: {reason}" for source, reason in self.skipped]
        if self.up_to_date:
            return [*out, "nothing to do: every state is in the store"]
        out += [f"{name}: {count} items computed" for name, count in self.items.items() if count]
        out += [f"{name} was begun again: {reason}" for name, reason in self.retried]
        return [*out, f"{self.bytes_written / 1e6:.1f} MB written in {self.seconds:.1f} s"]


def extract(
    experiment: Path | str | ExtractSettings,
    *,
    device: str = "cpu",
    progress: bool = True,
    deep: bool = False,
    engine: EngineSettings | None = None,
) -> ExtractReport:
    """Compute every state that the experiment names and the store does not hold.

    Args:
        experiment: an experiment's TOML, or its settings for stage 1.
        device: where the encoders run.
        progress: show tqdm bars with rates.
        deep: digest every media file, also those whose size and time are as they were.
        engine: in place of the experiment's: who computes.

    Raises:
        SettingsError: a key or value of the file.
        ManifestError, MissingMediaError: annotations, or media they name that are not there.
        MediaError: files that could not be decoded; all others are finished and kept. With `allow_missing` they stand
            in the report instead. Either way they are listed beside the store (`left_out.record_path`).
        StoreError: a folder that is no store, a full disk, another writer.
        BackendError: the engine cannot run; or workers were lost on a unit again and again, all others are kept.
    """
    settings = experiment if isinstance(experiment, ExtractSettings) else _read(Path(experiment))
    settings = settings if engine is None else replace(settings, engine=engine)
    started = time.perf_counter()
    store = settings.open_store("a")
    manifest = load_manifest(settings.manifest_settings, base=settings.base)
    for line in describe(manifest, brief=True) if progress else ():
        tqdm.write(line, file=sys.stderr)
    done = Ledger()
    with _threads(settings.engine):
        here = device if settings.engine.is_local or torch.cuda.is_available() else "cpu"
        clips = ask_clips(settings, manifest, store, device=here, progress=progress, deep=deep)
        texts = ask_texts(settings, trainable(settings, manifest), device=here)
        refuse_what_cannot_fit(store, clips, texts)
        if not settings.engine.in_process:
            done.receipts = ReceiptFile(receipts_path(store.path), run="extract")
        kind = torch.device(device).type
        where = device if settings.engine.in_process else kind  # each worker has its own first GPU
        prepared = time.perf_counter()
        try:
            with open_executor(settings.engine, device=device, base=settings.base) as workers:
                extract_clips(clips, settings, manifest, store, workers, done, device=where, progress=progress)
                extract_texts(texts, settings, store, workers, done, device=where, progress=progress)
        finally:  # what was computed is kept, so its cost counts
            ended = time.perf_counter() if done.receipts is None else prepared + done.worker_seconds
            seconds = ended - started
            with suppress(StoreError):  # a disk that is full says so by itself
                add_spent(store.path, seconds=seconds, device=kind, size_bytes=done.bytes_written, items=done.items)
    _record(store.path, manifest, done)
    store.put_records()
    if done.failures and not settings.data.allow_missing:
        raise MediaError(_failure_line(done.failures, len(manifest.clips), store.path))
    return ExtractReport(
        items=done.items,
        bytes_written=done.bytes_written,
        seconds=time.perf_counter() - started,
        up_to_date=not any(done.items.values()),
        skipped=tuple((entry.source, entry.reason) for entry in (*done.missing, *done.failures)),
        retried=tuple((receipt.task, "; ".join(receipt.lost)) for receipt in done.retried),
    )


def receipts_path(store: Path) -> Path:
    """Return where the receipts of a store's units lie, those that other processes have done."""
    return store.with_name(f"{store.name}.units.jsonl")


@contextmanager
def _threads(engine: EngineSettings) -> Iterator[None]:
    """Have this process use the threads that its engine's settings say, and give them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(engine.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
