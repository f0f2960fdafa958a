"""Batches of states out of the store; `live_source` gives the same from the media files.

Letters: B questions, T segments, L text tokens, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...cache.feature_store import BoundarySpec, FeatureStore
from ...cache.format.digests import digest_text
from ...cache.format.spec import differences
from ...cache.read.batch import Batch as StoredBatch
from ...cache.read.boundary_reader import BoundaryReader, Verify
from ...cache.read.local_rows import ReadPath
from ...errors import MissingItemError
from ...extract.datasets.types import Manifest, Question
from ...extract.encoders.encoder import Encoder
from ...extract.encoders.imported_features import imported_key
from ...extract.executors.device import sent
from ...extract.stage.in_hand import in_hand
from ...extract.stage.items import ClipDigests
from ...extract.stage.missing_streams import is_older, replaced_key
from ...extract.stage.prefix import clip_identity, text_identity
from ...extract.stage.run_records import read_failed_clips
from ...extract.stage.sampling import Sampling
from ...extract.stage.settings import EncoderSettings
from ...extract.trunk.state import State
from .augmented_views import mixed_views, view_readers
from .batch import Batch, ClipRows, distinct, distinct_index, tensors_of
from .device_transfer import ReadSettings, SideStream, Transfers, made_ahead, pinned_allocator


class CachedSource:
    """Batches from the store, each modality from its highest cached boundary at or below its start.

    Args:
        store: an open store.
        manifest: whose clips and texts the questions name.
        encoders: by modality.
        starts: by modality, the boundary above which something is trainable.
        sampling: how clips were sampled.
        dtype: storage data type of the states to read.
        verify: when checksums are checked.
        device: where the states go; to a GPU from pinned memory, in their stored type, without waiting.
        read_path: how the store's bytes are reached; see `FeatureStore.reader`.
        reads: by modality, further boundaries that the model reads; those that hold every item come with each batch.
        views: by modality, the settings that say how many augmented views of each clip are stored.
        digests: finds the content of the manifest's clips; sources of one manifest may share it.
    """

    def __init__(
        self,
        store: FeatureStore,
        manifest: Manifest,
        encoders: Mapping[str, Encoder],
        starts: Mapping[str, int],
        sampling: Sampling,
        *,
        dtype: str,
        verify: Verify = "first",
        device: str = "cpu",
        read_path: ReadPath = "auto",
        reads: Mapping[str, Sequence[int]] | None = None,
        views: Mapping[str, EncoderSettings] | None = None,
        digests: ClipDigests | None = None,
    ) -> None:
        self._store = store.path
        self._opened = store
        self._how = ReadSettings(verify=verify, path=read_path, allocate=pinned_allocator(device))
        self._device = device
        self._transfers = Transfers(device)
        self._side = SideStream(device) if torch.device(device).type == "cuda" else None
        self._views = {m: s for m, s in (views or {}).items() if s.views}
        self._view_readers: dict[str, tuple[BoundaryReader, ...]] = {}
        self._manifest = manifest
        self._encoders = encoders
        self._num_segments = sampling.num_segments
        self._sampling = sampling
        self._digests = digests or ClipDigests(store, manifest)
        self._readers = {m: self._open(m, starts[m], dtype=dtype) for m in starts}
        self._stored = {m: {i.source: i.key for i in r.items} for m, r in self._readers.items()}
        self._known = {m: {i.key for i in r.items} for m, r in self._readers.items()}
        self._above = {m: self._readers_above(m, k) for m, k in (reads or {}).items()}

    def _open(self, modality: str, start: int, *, dtype: str) -> BoundaryReader:
        """The reader of the highest stored boundary at or below `start`."""
        store, encoder = self._opened, self._encoders[modality]
        if encoder.stored is not None:
            return store.reader(modality, 0, key=encoder.stored.key, **self._how)
        below = [s for s in store.boundaries() if s.modality == modality and s.boundary <= start and s.dtype == dtype]
        for boundary in sorted({s.boundary for s in below}, reverse=True):
            plain = _named(below, boundary, _identity(encoder, boundary, self._sampling))
            older = _named(below, boundary, _identity(encoder, boundary, self._sampling, stand_ins=True))
            if older is not None and plain is not None and older != plain:
                plain = older if is_older(store, plain, older, self._contents()) else plain
            if (spec := plain or older) is not None:
                return store.reader(modality, boundary, key=spec.key, **self._how)
        if below:
            highest = max(s.boundary for s in below)
            store.reader(modality, highest, identity=_identity(encoder, highest, self._sampling))  # says what differs
        raise MissingItemError(
            f"{store.path}: no {modality} states at or below boundary {start} as {dtype}; add a cut there to the "
            "experiment and run talik extract"
        )

    def _contents(self) -> list[str]:
        return [file.key for clip_id in self._manifest.clips if (file := self._digests.find(clip_id)) is not None]

    def _readers_above(self, modality: str, wanted: Sequence[int]) -> tuple[BoundaryReader, ...]:
        """Readers of the wanted boundaries above the one that batches start from, as far as they hold all its items."""
        base, encoder, store = self._readers[modality].spec, self._encoders[modality], self._opened
        stand_ins = self._has_stand_ins(modality)
        found = {}
        for spec in store.boundaries():
            alike = (spec.modality, spec.dtype) == (modality, base.dtype) and base.boundary < spec.boundary in wanted
            identity = _identity(encoder, spec.boundary, self._sampling, stand_ins=stand_ins) if alike else {}
            if alike and not differences(identity, spec.identity):
                reader = store.reader(modality, spec.boundary, key=spec.key, **self._how)
                if self._known[modality] <= {i.key for i in reader.items}:
                    found[spec.boundary] = reader
        return tuple(found[k] for k in sorted(found))

    def _has_stand_ins(self, modality: str) -> bool:
        """Return whether the boundary that batches start from has stand-ins for missing streams in its identity."""
        sampling = self._readers[modality].spec.identity.get("sampling", {})
        return any(name in sampling for name in self._sampling.stand_ins(modality))

    @property
    def boundaries(self) -> dict[str, int]:
        """The boundary that each modality is read from."""
        return {m: reader.spec.boundary for m, reader in self._readers.items()}

    def holds(self, question: Question) -> bool:
        """Whether every state that the question needs is stored."""
        return all(self._key(m, question) is not None for m in self._readers)

    def item_keys(self, question: Question) -> dict[str, str]:
        """Return by modality the key of the stored item that a question needs; those that are not stored left out."""
        found = {m: self._key(m, question) for m in self._readers}
        return {m: key for m, key in found.items() if key is not None}

    @property
    def boundary_paths(self) -> dict[str, str]:
        """The path in the store, with its key, of the boundary that each modality is read from."""
        return {m: reader.spec.path for m, reader in self._readers.items()}

    def why_not(self, question: Question) -> str:
        """What of the question is not stored, and why, as far as stage 1 wrote it down."""
        lacking = [m for m in self._readers if self._key(m, question) is None]
        if lacking == ["text"]:
            return f"text {question.text!r}"
        source = self._digests.sources[question.clip_id]
        place = self._digests.place.root
        reasons = {e.source: e.reason for e in read_failed_clips(self._store) if e.root in ("", place)}
        reason = reasons.get(source or question.clip_id, "")
        if source is None and self._digests.find(question.clip_id) is None:
            reason = self._digests.why_unknown(question.clip_id)
        return f"clip {question.clip_id!r}" + (f" ({reason})" if reason else "")

    def batches(
        self, questions: Iterable[Sequence[Question]], *, view_seed: int | None = None, by_clip: bool = False
    ) -> Iterator[Batch]:
        """Yield one batch of states for each list of questions; reading runs ahead in a thread a modality.

        On a GPU one more thread makes the next batch, on a stream of its own, while this one is used.

        Args:
            questions: one list a batch.
            view_seed: stands for a run's seed and epoch, and draws each clip's view; None for the plain view.
            by_clip: give each clip's rows once a batch, with the index that spreads them to its questions.

        Raises:
            MissingItemError: a clip or text that was never extracted.
            CorruptItemError: stored bytes that fail their checksum.
        """
        batches = [tuple(batch) for batch in questions]
        readers = {m: (reader, *self._above.get(m, ())) for m, reader in self._readers.items()}
        streams = {m: [self._stream(m, r, batches, view_seed) for r in several] for m, several in readers.items()}

        def made(batch: tuple[Question, ...]) -> Batch:
            clips = ClipRows.of_questions(batch, self._device) if by_clip else None
            with in_hand([q.clip_id for q in distinct("visual", batch)]):
                states = {
                    m: [
                        self._state(
                            m, r, next(s), None if clips is not None and m != "text" else distinct_index(m, batch)
                        )
                        for r, s in zip(several, streams[m], strict=True)
                    ]
                    for m, several in readers.items()
                }
            return Batch(
                questions=batch,
                states={m: s[0] for m, s in states.items()},
                num_segments=self._num_segments,
                clips=clips,
                above={m: tuple(s[1:]) for m, s in states.items()},
            )

        yield from map(made, batches) if self._side is None else made_ahead(made, batches, self._side, tensors_of)

    def _stream(
        self, modality: str, reader: BoundaryReader, batches: Sequence[Sequence[Question]], view_seed: int | None
    ) -> Iterator[StoredBatch]:
        settings = self._views.get(modality)
        if settings is None or view_seed is None:
            return reader.prefetch(self._all_keys(modality, batches))
        if reader.spec.key not in self._view_readers:
            self._view_readers[reader.spec.key] = view_readers(self._opened, reader, settings, how=self._how)
        readers = self._view_readers[reader.spec.key]
        return mixed_views(readers, self._all_keys(modality, batches), view_seed=view_seed)

    def _all_keys(self, modality: str, batches: Sequence[Sequence[Question]]) -> Iterator[list[str]]:
        for batch in batches:
            yield self._keys(modality, batch)

    def _keys(self, modality: str, batch: Sequence[Question]) -> list[str]:
        keys = []
        for question in distinct(modality, batch):
            key = self._key(modality, question)
            if key is None:
                what = question.text if modality == "text" else question.clip_id
                raise MissingItemError(f"{modality} states of {what!r} are not in the store; run talik extract first")
            keys.append(key)
        return keys

    def _key(self, modality: str, question: Question) -> str | None:
        """The key of what a question needs, None where it is not stored: of a clip by its content."""
        known = self._known[modality]
        if modality == "text":
            key = digest_text(question.text)
        elif self._encoders[modality].stored is not None:
            return imported_key(self._stored[modality], question.clip_id)
        else:
            file = self._digests.find(question.clip_id)
            if file is None:
                return None
            key = file.key
            if key not in known and self._sampling.stand_ins(modality) and not self._has_stand_ins(modality):
                key = replaced_key(key, self._sampling, modality)
        return key if key in known else None

    def _state(self, modality: str, reader: BoundaryReader, stored: StoredBatch, places: Tensor | None) -> State:
        """The state of what was read, each item at the `places` that name it, or once where there are none."""
        encoder = self._encoders[modality]
        if places is not None and len(places) == len(stored.hidden):  # each once, in their order
            places = None
        if places is not None:
            places = sent(places, self._device)
        with self._transfers.of(stored) as to_device:
            hidden = _as_states(to_device(stored.hidden), stored.dtype, places, encoder.state_dtype)
            inputs = {name: _at(to_device(value), places) for name, value in stored.inputs.items()}
            lengths = None if stored.lengths is None else _at(to_device(stored.lengths), places)
        if modality == "text":
            assert lengths is not None
            return encoder.restore(hidden, reader.spec.boundary, inputs, lengths=lengths)
        rows = {name: value.flatten(0, 1) for name, value in inputs.items()}
        return encoder.restore(hidden.flatten(0, 1), reader.spec.boundary, rows)


def _named(specs: Sequence[BoundarySpec], boundary: int, identity: dict[str, Any]) -> BoundarySpec | None:
    """Return the first of `specs` at a boundary that has an identity."""
    alike = (s for s in specs if s.boundary == boundary and not differences(identity, s.identity))
    return next(alike, None)


def _identity(encoder: Encoder, boundary: int, sampling: Sampling, *, stand_ins: bool = False) -> dict[str, Any]:
    if encoder.modality == "text":
        return text_identity(encoder, boundary)
    return clip_identity(encoder, boundary, sampling, stand_ins=stand_ins)


def _at(values: Tensor, places: Tensor | None) -> Tensor:
    """Return the rows at `places`, or all of them, as a copy: the batch that `values` may view is released."""
    return values.clone() if places is None else values[places]


def _as_states(tensor: Tensor, dtype: str, places: Tensor | None, wanted: torch.dtype) -> Tensor:
    """Return the rows at `places`, or all of them, in the wanted type, as a copy; gathered in their stored type."""
    arranged = tensor if places is None else tensor[places]
    states = arranged.view(torch.bfloat16) if dtype == "bfloat16" else arranged
    return states.to(wanted, copy=places is None and tensor.device.type == "cpu")
