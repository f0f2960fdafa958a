"""The worker on clips, a pipeline: clips are decoded ahead, run through each prefix in batches, and written behind.

    decoder (threads or processes) → batches → prefix on the device → states on their way to the host → writer threads

No stage waits for another while there is work, also between one unit and the next. Which clips share a forward follows
from their unit alone, so neither the number of workers nor the order of their work changes a byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.feature_store import BoundarySpec, Item, Shard
from ...cache.format.int8 import Int8Error
from ...cache.read.boundary_reader import prefetched
from ...errors import MediaError, NumericsError
from ..media.clip_media import ClipMedia
from ..media.decode_pool import Decoder, DecodeRequest, open_decoder
from ..media.frame_folder import stat_media
from .augment import view_inputs
from .frame_inputs import FrameInputs
from .host_states import HostStates
from .in_hand import in_hand
from .prefix import boundary_states
from .run_records import FailedClip
from .sampling import Sampling
from .shard_worker import Place, ShardTask, ShardUnit, ShardWorker, UnitDone
from .unit_output import UnitOutput, UnitResult, WriterThreads

_BATCHES_READY = 2  # put together ahead of the device
_BATCHES_RUNNING = 1  # on the device, beside the one whose states are being copied
_UNITS_FINISHING = 2
_SECONDS_TO_END = 1.0  # that an interrupt waits for the clip in hand


@dataclass(eq=False)
class _UnitInHand:
    """A unit on its way through the pipeline."""

    task: ShardTask
    unit: ShardUnit | None  # of this process; None where the plan is another's
    output: UnitOutput
    places: dict[Place, BoundarySpec]
    left_out: frozenset[str]  # keys of items that are known to have no states
    failed: dict[str, FailedClip] = field(default_factory=dict)  # by key
    unseen: dict[str, list[str]] = field(default_factory=dict)  # by source: what of the clip is not looked at
    waiting: dict[str, dict[str, ClipMedia]] = field(default_factory=dict)  # by modality and key: for a forward
    decoded: int = 0  # clips that came back from the decoder, those that failed too

    @cached_property
    def numbers(self) -> dict[str, list[int]]:
        """The numbers of the unit's items by key."""
        found: dict[str, list[int]] = {}
        for number, item in enumerate(self.task.items):
            found.setdefault(item.key, []).append(number)
        return found

    @property
    def num_requests(self) -> int:
        """Clips that are decoded for the unit."""
        return len(self.numbers.keys() - self.left_out) if self.places else 0

    @property
    def has_unstorable(self) -> bool:
        """Whether an item's state is NaN or beyond the storage type, while others of that item may be written."""
        return any(failed.boundary for failed in self.failed.values())

    def views(self, modality: str) -> tuple[int, ...]:
        """The numbers of the views that are computed of a modality."""
        return tuple(sorted({view for found, _, view in self.places if found == modality}))


@dataclass(frozen=True)
class _Batch:
    """Clips that share a forward."""

    unit: _UnitInHand
    modality: str
    items: dict[str, Item]
    inputs: dict[int, dict[str, Tensor]]  # by view
    alone: Callable[[int], object] | None  # runs the item of one number by itself


@dataclass(frozen=True)
class _UnitEnd:
    """After the last batch of a unit."""

    unit: _UnitInHand


@dataclass(frozen=True)
class _Running:
    """A batch whose states are on their way to the host."""

    batch: _Batch
    states: dict[Place, tuple[HostStates, dict[str, NDArray[Any]]]]


@dataclass(kw_only=True)
class ClipWorker(ShardWorker):
    """Computes units of clips.

    Args:
        sampling: of every clip.
        decoders: processes that decode; 0 for two threads of this process.
    """

    sampling: Sampling
    decoders: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what this process has opened."""
        return {name: value for name, value in super().__getstate__().items() if name != "decoder"}

    @cached_property
    def decoder(self) -> Decoder:
        """What decodes; it lasts until `close`."""
        visual = self.encoders.get("visual")
        frames = None if visual is None else FrameInputs(visual, augment=self.settings["visual"].augment)
        return open_decoder(self.decoders, frames)

    def close(self) -> None:
        """End the threads or processes that decode."""
        if "decoder" in vars(self):
            self.decoder.close()
            del self.decoder

    def run(self, task: ShardTask) -> dict[str, Any]:
        """Compute and write a unit; if an item has no states that can be stored, write nothing.

        Returns:
            JSON: `written` (see `written_record`), or `failed`; and `unseen`, by source, what of clips is not looked
            at.
        """
        (done,) = self._run([(None, task)], frozenset())
        return done.result

    def results(self, units: Iterable[ShardUnit], media: Mapping[str, Any], left_out: set[str]) -> Iterator[UnitDone]:
        """See `ShardWorker.results`: while a unit is computed the next is decoded and the last is written."""
        waiting = deque(units)
        while waiting:
            again: list[ShardUnit] = []  # in which a state was NaN or too large, which was known too late
            for done in self._run(((unit, unit.task(media)) for unit in waiting), left_out):
                left_out |= done.failed_keys
                if "written" not in done.result and done.unit is not None:
                    again.append(done.unit)
                yield done
            waiting = deque(left for unit in again if (left := unit.without(left_out)) is not None)
            self.advance = None  # these clips were counted

    def _run(
        self, tasks: Iterable[tuple[ShardUnit | None, ShardTask]], left_out: set[str] | frozenset[str]
    ) -> Iterator[UnitDone]:
        """Take units through the pipeline and yield them in order; one with a NaN or an overflow is not written."""
        threads = WriterThreads()
        open_: list[_UnitInHand] = []
        running: deque[_Running | _UnitEnd] = deque()
        finishing: deque[tuple[_UnitInHand, UnitResult | None]] = deque()
        on_cpu = torch.device(self.device).type == "cpu"
        room = 0 if on_cpu else _BATCHES_RUNNING
        events: Iterator[_Batch | _UnitEnd] = self._events(tasks, left_out, threads, open_)
        if not on_cpu:
            events = prefetched(lambda event: event, events, _BATCHES_READY, patience_seconds=_SECONDS_TO_END)
        try:
            while True:
                event = next(events, None)
                if event is not None:
                    running.append(self._launch(event) if isinstance(event, _Batch) else event)
                while running and (event is None or len(running) > room):
                    first = running.popleft()
                    if isinstance(first, _Running):
                        self._collect(first)
                    else:
                        finishing.append((first.unit, self._finish(first.unit)))
                while finishing and (event is None or _is_done(finishing[0][1]) or len(finishing) > _UNITS_FINISHING):
                    unit, result = finishing.popleft()
                    yield _done(unit, result)
                    open_.remove(unit)
                if event is None:
                    return
        finally:
            events.close()  # type: ignore[attr-defined]
            threads.close()
            for unit in open_:
                unit.output.close()

    def _events(
        self,
        tasks: Iterable[tuple[ShardUnit | None, ShardTask]],
        left_out: set[str] | frozenset[str],
        threads: WriterThreads,
        open_: list[_UnitInHand],
    ) -> Iterator[_Batch | _UnitEnd]:
        """Decode the clips of units; yield each batch as soon as its clips are there, and the end of each unit."""
        begun: deque[_UnitInHand] = deque()

        def requests() -> Iterator[DecodeRequest]:
            for unit, task in tasks:
                begun.append(self._begin(unit, task, frozenset(left_out), threads))
                open_.append(begun[-1])
                yield from self._requests(begun[-1])

        outcomes = self.decoder.outcomes(requests())
        try:
            for request, outcome in outcomes:
                unit, item = request.tag
                while begun[0] is not unit:
                    yield from self._rest(begun.popleft())
                if outcome.media is None:
                    unit.failed[item.key] = _failed(item, outcome.error)
                elif stat_media(request.source)[:2] != (item.size_bytes, item.mtime_ns):
                    changed = MediaError(f"{item.source}: was changed while it was read; run again")
                    unit.failed[item.key] = _failed(item, changed)
                else:
                    yield from self._take(unit, item, outcome.media)
                if self.advance is not None:
                    self.advance(1)
                unit.decoded += 1
                if unit.decoded == unit.num_requests:  # no clip of the next unit is waited for
                    begun.popleft()
                    yield from self._rest(unit)
            while begun:
                yield from self._rest(begun.popleft())
        finally:
            outcomes.close()  # type: ignore[attr-defined]

    def _begin(
        self, unit: ShardUnit | None, task: ShardTask, left_out: frozenset[str], threads: WriterThreads
    ) -> _UnitInHand:
        output = UnitOutput(task, threads)
        return _UnitInHand(
            task=task, unit=unit, output=output, places=output.open(owned=unit is not None), left_out=left_out
        )

    def _requests(self, unit: _UnitInHand) -> Iterator[DecodeRequest]:
        """Yield what is to be decoded for a unit: each of its clips, once."""
        modalities = {modality for modality, _, _ in unit.places}
        if not unit.num_requests:
            return
        unit.waiting = {modality: {} for modality in self.settings if modality in modalities}
        wanted = self.sampling.media_settings(modalities, self.encoders)
        views = unit.views("visual")
        for key, numbers in unit.numbers.items():
            if key not in unit.left_out:
                item, source = unit.task.items[numbers[0]], unit.task.media[numbers[0]]
                yield DecodeRequest(source=source, settings=wanted, key=key, views=views, tag=(unit, item))

    def _take(self, unit: _UnitInHand, item: Item, media: ClipMedia) -> Iterator[_Batch]:
        if media.notes:
            unit.unseen[item.source] = list(media.notes)
        for modality, clips in unit.waiting.items():
            clips[item.key] = media
            if len(clips) == max(1, self.settings[modality].batch_size // self.sampling.rows(modality)):
                yield self._batch(unit, modality)

    def _rest(self, unit: _UnitInHand) -> Iterator[_Batch | _UnitEnd]:
        for modality, clips in unit.waiting.items():
            if clips:
                yield self._batch(unit, modality)
        yield _UnitEnd(unit)

    def _batch(self, unit: _UnitInHand, modality: str) -> _Batch:
        """Put the clips that wait for a forward together; any error that leaves names the clip that it is about."""
        encoder, augment = self.encoders[modality], self.settings[modality].augment
        clips, unit.waiting[modality] = unit.waiting[modality], {}
        items = {key: unit.task.items[unit.numbers[key][0]] for key in clips}

        def inputs(some: Mapping[str, ClipMedia]) -> dict[int, dict[str, Tensor]]:
            return {view: view_inputs(encoder, some, self.sampling, augment, view) for view in unit.views(modality)}

        def alone(number: int) -> None:
            key = list(clips)[number]
            self._states(unit, modality, 1, inputs({key: clips[key]}))

        find = alone if torch.device(self.device).type == "cpu" else None
        with in_hand([item.source for item in items.values()], find):
            return _Batch(unit, modality, items, inputs(clips), find)

    def _launch(self, batch: _Batch) -> _Running:
        """Run every view of a batch through the prefix; any error that leaves names the clip that it is about."""
        with in_hand([item.source for item in batch.items.values()], batch.alone):
            return _Running(batch, self._states(batch.unit, batch.modality, len(batch.items), batch.inputs))

    @torch.no_grad()
    def _states(
        self, unit: _UnitInHand, modality: str, num_clips: int, inputs: Mapping[int, dict[str, Tensor]]
    ) -> dict[Place, tuple[HostStates, dict[str, NDArray[Any]]]]:
        """Return the states of some clips at every boundary of each view, and their small inputs (B, rows, …)."""
        encoder, found = self.encoders[modality], {}
        for view, given in inputs.items():
            cuts = sorted(k for m, k, v in unit.places if (m, v) == (modality, view))
            small = {
                name: value.cpu().numpy().reshape(num_clips, -1, *value.shape[1:])
                for name, value in encoder.context_inputs(given).items()
            }
            for state in boundary_states(encoder, given, cuts):
                place = (modality, state.boundary, view)
                found[place] = (HostStates(state.hidden, num_clips, unit.places[place]), small)
        return found

    def _collect(self, running: _Running) -> None:
        """Hand the states of a batch to the writers, but for items of which one is NaN or beyond the storage type."""
        batch, unit = running.batch, running.batch.unit
        stored: dict[Place, list[tuple[int, tuple[NDArray[Any], dict[str, NDArray[Any]]]]]] = {}
        for place, (states, small) in running.states.items():
            for number, (key, item) in enumerate(batch.items.items()):
                try:
                    hidden = states.item(number, item.source)
                except NumericsError as error:
                    found = FailedClip(source=item.source, key=key, reason=str(error), boundary=unit.places[place].path)
                    unit.failed.setdefault(key, found)
                    continue
                inputs = {name: value[number] for name, value in small.items()}
                stored.setdefault(place, []).extend((n, (hidden, inputs)) for n in unit.numbers[key])
        if not unit.has_unstorable:
            for place, some in stored.items():
                unit.output.add(place, some)

    def _finish(self, unit: _UnitInHand) -> UnitResult | None:
        """Have a unit's shards finished; None, and they are given up, if it is to be computed again."""
        gone = unit.left_out | unit.failed.keys()
        if unit.failed and self.failed is not None:
            self.failed(list(unit.failed.values()))
        owner = unit.unit
        if unit.has_unstorable or (owner is None and gone):  # only who plans the rows can give some up
            unit.output.give_up()
            return None
        if owner is None:
            return unit.output.finish()

        def shard_now(number: int) -> Shard | None:
            writer, shard = owner.targets[number]
            named = {item.key for item in shard.items if unit.task.content(item) in gone}
            return writer.give_up(shard, named) if named else shard

        def measured(number: int, error: Int8Error) -> None:
            if error.num_items:
                owner.targets[number][0].measured(error)

        return unit.output.finish(shard_now, measured)


def _is_done(result: UnitResult | None) -> bool:
    return result is None or result.is_done


def _done(unit: _UnitInHand, result: UnitResult | None) -> UnitDone:
    said: dict[str, Any] = {}
    if unit.failed:
        order = [item.key for item in unit.task.items]
        said["failed"] = [vars(unit.failed[key]) for key in dict.fromkeys(order) if key in unit.failed]
    if result is not None:
        said["written"] = result.written()
    if unit.unseen:
        said["unseen"] = unit.unseen
    return UnitDone(unit=unit.unit, result=said)


def _failed(item: Item, error: MediaError | None) -> FailedClip:
    return FailedClip(source=item.source, key=item.key, reason=str(error))
