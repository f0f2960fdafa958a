"""Stage 1: computes the states of every clip and text at the named boundaries, once, and writes them to the store.

    manifest → items that lack states → shards to compute → decode → preprocess → prefix → convert → shard → receipt

`extract` below takes the first steps in this order; `shard_worker` and `clip_worker` take the others, shard by shard.
A unit of work is the rows of one shard, for all boundaries that miss it, so that a clip is decoded once and a prefix
runs once however many boundaries and modalities need it. An interrupted unit is done again, a finished one never.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ...cache.feature_store import BoundarySpec, FeatureStore
from ...errors import MediaError, StoreError
from ..datasets.describe import describe
from ..datasets.load import load_manifest
from ..datasets.types import Manifest
from ..executors.open import open_executor
from ..executors.settings import EngineSettings
from ..executors.tasks import ReceiptFile
from ..executors.threads import torch_threads
from ..trunk.exact_float32 import exact_float32
from .compute_shards import ExtractionResult, compute_shards
from .items import source_of
from .plan import StateRequest, plan_shards, request_states, undecodable
from .prefix import version_notes
from .run_records import FailedClip, FailedClipRecord, failed_clips_path, receipts_path, record_cost
from .settings import ExtractSettings, RunOptions, read_settings


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
        out += [f"{name}: {count} items computed" for name, count in self.items.items() if count]
        out += [f"{name} was begun again: {reason}" for name, reason in self.retried]
        out += self.unseen
        return [*out, f"{self.bytes_written / 1e6:.1f} MB written in {self.seconds:.1f} s"]


def extract(
    experiment: Path | str | ExtractSettings,
    *,
    device: str = "cpu",
    progress: bool = True,
    deep: bool = False,
    engine: EngineSettings | None = None,
    manifest: Manifest | None = None,
) -> ExtractReport:
    r"""Compute every state that the experiment names and the store does not hold.

    Args:
        experiment: an experiment's TOML, or its settings for stage 1.
        device: where the encoders run: "cpu", "cuda", "cuda:1".
        progress: show tqdm bars with rates.
        deep: digest every media file, also those whose size and time are as they were.
        engine: who computes, in place of the experiment's [engine].
        manifest: the data set, in place of the one that [data] names.

    Returns:
        What was computed and written.

    Raises:
        SettingsError: a key or value of the file.
        ManifestError, MissingMediaError: annotations, or media that they name, are not found.
        MediaError: files that could not be decoded; all others are finished and kept. With `allow_missing` they are
            in the report instead. Either way they are listed beside the store (`run_records.failed_clips_path`).
        StoreError: a folder that is no store, a full disk, another writer.
        BackendError: the engine cannot run; or workers were lost on a unit again and again, all others are kept.

    Example:
        >>> import talik
        >>> talik.extract("exp.toml", progress=False).lines()[-1]
        'nothing to do: every state is in the store'
    """
    settings = experiment if isinstance(experiment, ExtractSettings) else read_settings(experiment)
    settings = settings if engine is None else replace(settings, engine=engine)
    options = RunOptions(device=device, progress=progress, deep=deep)
    started = time.perf_counter()
    store = settings.open_store("a")
    if manifest is None:
        manifest = load_manifest(settings.manifest_settings, base=settings.base)
        for line in describe(manifest, brief=True) if progress else ():
            tqdm.write(line, file=sys.stderr)
    result = _new_result(settings, manifest, store)
    with torch_threads(settings.engine.threads), exact_float32():
        requests = _decodable(request_states(settings, manifest, store, options), result)
        prepared = time.perf_counter()
        try:
            _compute(requests, settings, store, result, options)
        finally:  # what was computed is kept, so its cost counts
            ended = time.perf_counter() if result.receipts is None else prepared + result.worker_seconds
            with suppress(StoreError):  # a disk that is full says so by itself
                record_cost(
                    store.path,
                    seconds=ended - started,
                    device=options.device_kind,
                    size_bytes=result.bytes_written,
                    items=result.items,
                )
    result.write_record()
    store.put_records()
    if result.failed and not settings.data.allow_missing:
        raise MediaError(_failure_line(result.failed, len(manifest.clips), store.path))
    return ExtractReport(
        items=result.items,
        bytes_written=result.bytes_written,
        seconds=time.perf_counter() - started,
        up_to_date=not any(result.items.values()),
        boundaries=tuple(boundary.spec for request in requests for boundary in request.boundaries),
        skipped=tuple((clip.source, clip.reason) for clip in (*result.missing, *result.failed)),
        retried=tuple((receipt.task, "; ".join(receipt.lost)) for receipt in result.retried),
        notes=tuple(dict.fromkeys(result.notes)),
        unseen=tuple(_unseen_line(line, sorted(sources)) for line, sources in sorted(result.unseen.items())),
    )


def _compute(
    requests: Sequence[StateRequest],
    settings: ExtractSettings,
    store: FeatureStore,
    result: ExtractionResult,
    options: RunOptions,
) -> None:
    """Give rows to the items, plan the missing shards, and have them computed and written."""
    boundaries = [boundary for request in requests for boundary in request.boundaries]
    device = options.worker_device(settings.engine)
    with (
        open_executor(settings.engine, device=options.device, base=settings.base) as executor,
        store.writers(boundaries) as writers,
    ):
        for writer in writers:
            now = next(b.provenance for b in boundaries if b.spec.path == writer.spec.path) or {}
            result.notes += version_notes(writer.spec.modality, now, writer.provenance_before)
        for request in requests:
            units = plan_shards(request, writers)
            compute_shards(request, units, executor, result, options, device=device)


def _new_result(settings: ExtractSettings, manifest: Manifest, store: FeatureStore) -> ExtractionResult:
    """Return a result with the clips that have no file, if any encoder would decode them."""
    sources = {source_of(manifest, clip) for clip in manifest.clips.values()} | set(manifest.missing)
    result = ExtractionResult(record=FailedClipRecord(store.path, sources))
    if not settings.engine.in_process:
        result.receipts = ReceiptFile(receipts_path(store.path), run="extract")
    if any(modality != "text" for modality, _ in settings.encoders.live()):
        result.missing += [FailedClip(source=id_, key="", reason="the file is missing") for id_ in manifest.missing]
    return result


def _decodable(requests: Sequence[StateRequest], result: ExtractionResult) -> list[StateRequest]:
    """Take out of the requests the clips that an earlier run could not decode and that still cannot be decoded."""
    failed = [clip for request in requests for clip in undecodable(request, result.record.earlier_keys)]
    if failed:
        result.add_failed(failed)
    return [request.without({clip.key for clip in failed}) for request in requests]


def _unseen_line(line: str, sources: Sequence[str]) -> str:
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    return f"{', '.join(sources[:3])}{more}: {line}"


def _failure_line(failed: Sequence[FailedClip], total: int, store: Path) -> str:
    first = "; ".join(clip.reason for clip in failed[:3])
    more = f"; and {len(failed) - 3} more, listed in {failed_clips_path(store).name}" if len(failed) > 3 else ""
    return (
        f"{len(failed)} of {total} clips could not be decoded, all others are stored: {first}{more}; "
        "replace or remove them and run again, or go on without them (--allow-missing; in [data], allow_missing = true)"
    )
