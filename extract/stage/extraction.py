"""Computes what an experiment names and a store lacks: plans it, has it computed shard by shard, reports it.

A unit of work is the rows of one shard, for all boundaries that miss it, so that a clip is decoded once and a prefix
runs once however many boundaries and modalities need it. An interrupted unit is done again, a finished one never.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...cache.feature_store import FeatureStore
from ...errors import MediaError, NumericsError, StoreError, TalikError
from ..datasets.types import Manifest
from ..executors.device import machine_name
from ..executors.open import open_executor
from ..executors.tasks import ReceiptFile
from ..executors.threads import torch_threads
from ..trunk.exact_float32 import exact_float32
from .compute_shards import ExtractionResult, compute_shards
from .extract_report import ExtractReport
from .item_order import in_order_of_need
from .items import FILE_MISSING, failed_clip_record
from .known_boundaries import KnownBoundary, remember_boundaries
from .plan import StateRequest, plan_shards, request_states, without_stateless
from .run_records import FailedClip, failed_clips_path, receipts_path, record_cost
from .settings import ExtractSettings, RunOptions
from .shard_worker import ShardUnit
from .version_notes import version_notes

_REASONS, _NAMES = 3, 100  # of the items without states, how many a message tells in full, and by name

_THREADS_BESIDE_A_GPU = 2  # for sound's spectra; more would wait for cores that decode


Planned = Mapping[str, Sequence[int]]
"""The shards that are to be computed, by path of their boundary."""


def compute_missing(
    settings: ExtractSettings,
    manifest: Manifest,
    store: FeatureStore,
    options: RunOptions,
    *,
    started: float,
    planned: Callable[[Planned], object] | None = None,
) -> ExtractReport:
    """Compute every state that the settings name and the store does not hold; what `extract` does and raises.

    Args:
        settings: of the experiment.
        manifest: the data set.
        store: open for writing.
        options: of the run.
        started: when the run began, by `time.perf_counter`.
        planned: called when every item has its row, before the first shard is computed.
    """
    threads = settings.engine.threads or (None if options.device_kind == "cpu" else _THREADS_BESIDE_A_GPU)
    with torch_threads(threads), exact_float32():
        requests = request_states(settings, manifest, store, options)
        _remember(settings, requests)
        result = _new_result(settings, manifest, store, requests)
        requests = [_with_states(request, result, store, settings, options) for request in requests]
        prepared = time.perf_counter()
        try:
            _compute(requests, settings, store, result, options, planned)
        finally:  # what was computed is kept, so its cost counts
            ended = time.perf_counter() if result.receipts is None else prepared + result.worker_seconds
            with suppress(StoreError):  # a disk that is full says so by itself
                record_cost(
                    store.path,
                    seconds=ended - started,
                    device=options.device_kind,
                    size_bytes=result.bytes_written,
                    items=result.items,
                    machine=machine_name(options.device) if settings.engine.is_local else "",
                )
    result.write_record()
    store.put_records()
    if result.failed and not settings.data.allow_missing:
        raise _failure(result.failed, manifest, store.path)
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
    planned: Callable[[Planned], object] | None,
) -> None:
    """Give rows to the items, plan the missing shards, and have them computed and written."""
    boundaries = [boundary for request in requests for boundary in request.boundaries]
    device = options.worker_device(settings.engine)
    with (
        open_executor(settings.engine, device=options.device, base=settings.base) as executor,
        store.writers(boundaries) as writers,
    ):
        for files in (request.files for request in requests if request.files is not None):
            store.record_files(files)
        for writer in writers:
            now = next(b.provenance for b in boundaries if b.spec.path == writer.spec.path) or {}
            result.notes += version_notes(writer.spec.modality, now, writer.provenance_before)
        work = [(request, _in_order(plan_shards(request, writers), request, options)) for request in requests]
        if options.order is not None:
            work.sort(key=lambda one: one[0].kind != "texts")  # few, and each batch needs some
        if planned is not None:
            planned(_shards_of(unit for _, units in work for unit in units))
        for request, units in work:
            decoders = options.decoders(settings.engine, sum(len(unit.items) for unit in units))
            compute_shards(request, units, executor, result, options, device=device, decoders=decoders)


def _in_order(units: list[ShardUnit], request: StateRequest, options: RunOptions) -> list[ShardUnit]:
    """Return units in the order in which they are needed, where the options name one: the items' own."""
    if options.order is None or not request.boundaries:
        return units
    ranks = {request.content(item): number for number, item in enumerate(request.boundaries[0].items)}
    return [units[n] for n in in_order_of_need([[item.key for item in unit.items] for unit in units], ranks)]


def _shards_of(units: Iterable[ShardUnit]) -> Planned:
    found: dict[str, list[int]] = {}
    for writer, shard in (target for unit in units for target in unit.targets):
        found.setdefault(writer.spec.path, []).append(shard.index)
    return found


def _remember(settings: ExtractSettings, requests: Sequence[StateRequest]) -> None:
    """Keep what the models were opened for: a run that has nothing to do then needs none of them."""
    read_from = [encoder.read_from for request in requests for encoder in request.encoders.values()]
    stamps = [one for one in read_from if one is not None]
    known: dict[str, list[KnownBoundary]] = {}
    for request in requests:
        for one in request.boundaries:
            stand_ins = request.sampling.stand_ins(one.spec.modality) if request.sampling is not None else {}
            if stand_ins.keys() & one.spec.identity.get("sampling", {}).keys():  # as an older store has it
                return
            boundary = KnownBoundary(spec=one.spec, provenance=one.provenance or {}, stand_ins=stand_ins)
            known.setdefault(request.kind, []).append(boundary)
    if len(stamps) == len(read_from):
        remember_boundaries(settings, known, stamps)


def _new_result(
    settings: ExtractSettings, manifest: Manifest, store: FeatureStore, requests: Sequence[StateRequest]
) -> ExtractionResult:
    """Return a result with the clips that have no file, if any encoder would decode them."""
    result = ExtractionResult(
        record=failed_clip_record(store, manifest),
        boundaries=frozenset(boundary.spec.path for request in requests for boundary in request.boundaries),
    )
    if not settings.engine.in_process:
        result.receipts = ReceiptFile(receipts_path(store.path), run="extract")
    decoded = any(modality != "text" for modality, _ in settings.encoders.live())
    if decoded and not any(request.kind == "clips" for request in requests):  # not one clip has a file
        result.missing += [FailedClip(source=id_, key="", reason=FILE_MISSING) for id_ in manifest.missing]
    for request in requests:
        result.missing += request.missing
        result.failed += request.unreadable
    return result


def _with_states(
    request: StateRequest,
    result: ExtractionResult,
    store: FeatureStore,
    settings: ExtractSettings,
    options: RunOptions,
) -> StateRequest:
    """Take out of a request what is known to have no states, and note it in the result; see `without_stateless`."""
    request, failed, gone = without_stateless(
        request, store, result.record.entries, allowed=settings.data.allow_missing, deep=options.deep
    )
    if failed:
        result.add_failed(failed)
    result.missing += [FailedClip(source=item.source, key="", reason=FILE_MISSING) for item in gone]
    return request


def _unseen_line(line: str, sources: Sequence[str]) -> str:
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    return f"{', '.join(sources[:3])}{more}: {line}"


def _failure(failed: Sequence[FailedClip], manifest: Manifest, store: Path) -> TalikError:
    """Return the error that names all items without states, with the reasons of the first ones."""
    clips = [one for one in failed if not one.boundary]
    states = [one for one in failed if one.boundary]
    what = [f"{len(clips)} of {len(manifest.clips)} clips could not be decoded"] if clips else []
    what += [f"{_count(states)} whose states cannot be stored"] if states else []
    said = [one.reason if one.source in one.reason else f"{one.source}: {one.reason}" for one in failed[:_REASONS]]
    if len(failed) > _REASONS:
        names = ", ".join(one.source for one in failed[_REASONS:_NAMES]) + (", …" if len(failed) > _NAMES else "")
        said.append(f"and {len(failed) - _REASONS} more, listed in {failed_clips_path(store).name}: {names}")
    line = (
        f"{' and '.join(what)}, all others are stored: {'; '.join(said)}; "
        "replace or remove them and run again, or go on without them (--allow-missing; in [data], allow_missing = true)"
    )
    return MediaError(line) if clips else NumericsError(line)


def _count(failed: Sequence[FailedClip]) -> str:
    texts = sum(one.boundary.startswith("text/") for one in failed)
    counts = ((len(failed) - texts, "clip"), (texts, "text"))
    return " and ".join(f"{n} {kind}{'s' * (n != 1)}" for n, kind in counts if n)
