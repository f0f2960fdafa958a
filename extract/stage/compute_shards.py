"""Has an executor compute planned shards and adds up what its workers report; re-plans a shard whose clip failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...cache.feature_store import BoundaryWriter
from ...cache.format.int8 import Int8Error
from ...progress import progress_bar
from ..executors.base import Executor
from ..executors.tasks import Receipt, ReceiptFile, Task
from .clip_worker import ClipWorker
from .plan import StateRequest
from .prefix import cut_boundaries
from .run_records import FailedClip, FailedClipRecord
from .settings import RunOptions
from .shard_worker import ShardUnit, ShardWorker
from .text_worker import TextWorker


@dataclass(kw_only=True)
class ExtractionResult:
    """What one run of stage 1 has computed so far.

    Attributes:
        record: where failed clips and texts are written, as soon as they are known.
        boundaries: paths of the boundaries that were asked for.
        receipts: where the receipts of other processes are kept; None where this process computes.
        items: computed for each boundary, by "modality/name".
        bytes_written: data files only.
        missing: clips without a file.
        failed: clips and texts that have no states that can be stored.
        unseen: what of clips is not looked at, each line with the sources of the clips.
        retried: receipts of the units that were begun more than once.
        notes: what differs between this environment and those that computed what is stored.
        worker_seconds: of other processes' units.
    """

    record: FailedClipRecord
    boundaries: frozenset[str] = frozenset()
    receipts: ReceiptFile | None = None
    items: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    missing: list[FailedClip] = field(default_factory=list)
    failed: list[FailedClip] = field(default_factory=list)
    unseen: dict[str, set[str]] = field(default_factory=dict)
    retried: list[Receipt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    worker_seconds: float = 0.0

    def add_failed(self, clips: Iterable[FailedClip]) -> None:
        """Add what has no states, each item once, and write the record: a run that is killed knows them."""
        known = {clip.key or clip.source for clip in self.failed}
        found = {clip.key or clip.source: clip for clip in clips}
        self.failed += [clip for name, clip in found.items() if name not in known]
        self.write_record()

    def write_record(self) -> None:
        """Write the record of failed clips and texts beside the store."""
        self.record.write([*self.missing, *self.failed], self.boundaries)

    def add(self, receipt: Receipt) -> None:
        """Add a unit that was computed, or has failed."""
        if self.receipts is not None:
            self.receipts.add(receipt)
            self.worker_seconds += receipt.seconds
        if receipt.attempts > 1:
            self.retried.append(receipt)
        for source, lines in receipt.result.get("unseen", {}).items():
            for line in lines:
                self.unseen.setdefault(line, set()).add(source)
        for written in receipt.result.get("written", ()):
            self.items[written["boundary"]] = self.items.get(written["boundary"], 0) + written["items"]
            self.bytes_written += written["size_bytes"]


def open_worker(request: StateRequest, *, device: str, in_process: bool, decoders: int = 0) -> ShardWorker:
    """Return the worker that computes a request's shards.

    Args:
        request: of clips or texts; units above its encoders' cuts are dropped.
        device: where workers run the encoders.
        in_process: the worker is of this process, and uses the request's encoders.
        decoders: processes that decode clips for it; 0 for threads of its own.
    """
    for modality, encoder in request.encoders.items():
        encoder.drop_above(cut_boundaries(encoder, request.settings[modality])[-1])
    opened = request.encoders if in_process else None
    if request.sampling is None:
        return TextWorker(
            settings=request.settings,
            device=device,
            provenance=request.provenance,
            base=request.base,
            imports=request.imports,
            opened=opened,
        )
    return ClipWorker(
        settings=request.settings,
        device=device,
        provenance=request.provenance,
        base=request.base,
        imports=request.imports,
        num_segments=request.sampling.num_segments,
        sampling=request.sampling,
        opened=opened,
        decoders=decoders,
    )


def compute_shards(
    request: StateRequest,
    units: Sequence[ShardUnit],
    executor: Executor,
    result: ExtractionResult,
    options: RunOptions,
    *,
    device: str,
    decoders: int,
) -> None:
    """Have planned units computed and written; a unit with an item that has no states is stored without it.

    Args:
        request: that the units were planned for.
        units: see `plan_shards`.
        executor: computes them.
        result: is added to.
        options: of the run.
        device: where workers run the encoders.
        decoders: processes that decode clips for each worker.

    Raises:
        TalikError: units that could not be computed; all others are stored.
    """
    worker = open_worker(request, device=device, in_process=executor.in_process, decoders=decoders)
    total = sum(len(unit.items) for unit in units)
    with progress_bar(
        total=total, unit=request.kind[:-1], desc=request.kind, disable=not (options.progress and total)
    ) as bar:
        if executor.in_process:
            worker.advance, worker.failed = bar.update, result.add_failed
            _compute_here(worker, request, units, result)
        else:
            _compute_elsewhere(worker, request, units, executor, result, bar)


def _compute_here(
    worker: ShardWorker, request: StateRequest, units: Sequence[ShardUnit], result: ExtractionResult
) -> None:
    """Compute units in this process, one after the other."""
    try:
        for done in worker.results(units, request.media, {clip.key for clip in result.failed}):
            result.add(Receipt(task=request.kind, result=done.result))
    finally:
        worker.close()


def _compute_elsewhere(
    worker: ShardWorker,
    request: StateRequest,
    units: Sequence[ShardUnit],
    executor: Executor,
    result: ExtractionResult,
    bar: Any,
) -> None:
    """Have units computed by other processes; one with an item without states is computed again without it."""
    waiting = {f"{request.kind} {number}": unit for number, unit in enumerate(units)}
    while waiting:
        keys = {clip.key for clip in result.failed}
        batch = {name: left for name, unit in waiting.items() if (left := unit.without(keys)) is not None}
        tasks = [Task(name=name, given=unit.task(request.media)) for name, unit in batch.items()]
        waiting = {}
        for receipt in _added(result, executor.run(worker, tasks), batch):
            failed = [FailedClip(**clip) for clip in receipt.result.get("failed", ())]
            if failed:
                result.add_failed(failed)
                waiting[receipt.task] = batch[receipt.task]
            bar.update(len(failed) or len(batch[receipt.task].items))


def _added(result: ExtractionResult, receipts: Iterable[Receipt], units: Mapping[str, ShardUnit]) -> Iterator[Receipt]:
    """Add receipts to the result as they come, and yield those of units that were computed.

    Raises:
        TalikError: at the end, if units failed: the first one's error.
    """
    writers = {writer.spec.path: writer for unit in units.values() for writer, _ in unit.targets}
    measured: dict[str, Receipt] = {}
    failed = []
    try:
        for receipt in receipts:
            result.add(receipt)
            measured[receipt.task] = receipt
            if receipt.error:
                failed.append(receipt)
            else:
                yield receipt
    finally:
        for name in units:  # in their order, for the last bits of a sum depend on it
            if name in measured:
                _add_int8_error(measured[name], writers)
    if failed:
        first = failed[0].exception()
        raise type(first)(f"{len(failed)} of {len(units)} units failed, all others are stored; the first: {first}")


def _add_int8_error(receipt: Receipt, writers: Mapping[str, BoundaryWriter]) -> None:
    for written in receipt.result.get("written", ()):
        error = Int8Error(**written["int8"])
        if error.num_items:
            writers[written["boundary"]].measured(error)
