"""Where a batch's states come from: the store (cached), or the media files themselves (live). Both give the same.

Letters: B questions, T segments, L text tokens, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cache.difference import differences
from ..cache.errors import MissingItemError, MissingMediaError
from ..cache.key import digest_text
from ..cache.reader import Batch, BoundaryReader, Verify
from ..cache.rows import ReadPath
from ..cache.store import FeatureStore
from ..extract.encoders import Encoder
from ..extract.features import FeatureEncoder, imported_key
from ..extract.items import source_of
from ..extract.left_out import read_left_out
from ..extract.manifest.types import Manifest, Question
from ..extract.media import ClipMedia, iter_media
from ..extract.media_frames import FrameFolder, digest_media, stat_media
from ..extract.sampling import Sampling
from ..extract.settings import EncoderSettings
from ..extract.state import State
from ..extract.work import clip_identity, text_identity
from .pinned import ReadSettings, Transfers, pinned_allocator
from .rungs import ClipRows, States
from .views import mixed_views, view_readers


@dataclass(frozen=True)
class JointBatch:
    """The states of B questions: visual and audio of B·T rows (t fastest), text of B rows.

    Where they were asked for by clip, visual and audio have the rows of each clip once (see `ClipRows`).
    """

    questions: tuple[Question, ...]
    states: Mapping[str, State]


class Source(Protocol):
    """Gives batches of states for lists of questions, in the order asked."""

    def holds(self, question: Question) -> bool: ...

    def why_not(self, question: Question) -> str: ...

    def batches(self, questions: Iterable[Sequence[Question]], *, by_clip: bool = False) -> Iterator[JointBatch]: ...


class CachedSource:
    """Batches from the store, each modality from its highest cached boundary at or below its start.

    Args:
        store: an open store.
        manifest: whose clips and texts are asked for.
        encoders: by modality.
        starts: by modality, the boundary above which something is trainable.
        sampling: how clips were sampled.
        dtype: storage data type of the states to read.
        verify: when checksums are checked.
        device: where the states go; to a GPU from pinned memory, without waiting.
        read_path: how the store's bytes are reached; see `FeatureStore.reader`.
        reads: by modality, further boundaries that the model reads; those that hold every item come with each batch.
        views: by modality, the settings that say how many augmented views of each clip are stored.
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
    ) -> None:
        self._store = store.path
        self._opened = store
        self._how = ReadSettings(verify=verify, path=read_path, allocate=pinned_allocator(device))
        self._transfers = Transfers(device)
        self._views = {m: s for m, s in (views or {}).items() if s.views}
        self._view_readers: dict[str, tuple[BoundaryReader, ...]] = {}
        self._manifest = manifest
        self._encoders = encoders
        self._device = device
        self._readers = {
            m: _reader(store, encoders[m], starts[m], sampling, dtype=dtype, how=self._how) for m in starts
        }
        self._stored = {m: {i.source: i.key for i in r.items} for m, r in self._readers.items()}
        self._sizes = {m: {i.source: i.size_bytes for i in r.items} for m, r in self._readers.items()}
        self._checked: dict[str, dict[str, str]] = {m: {} for m in self._readers}
        self._known = {m: set(keys.values()) for m, keys in self._stored.items()}
        self._above = {m: self._readers_above(store, m, k, sampling) for m, k in (reads or {}).items()}

    def _readers_above(
        self, store: FeatureStore, modality: str, wanted: Sequence[int], sampling: Sampling
    ) -> tuple[BoundaryReader, ...]:
        """Readers of the wanted boundaries above the one that batches start from, as far as they hold all its items."""
        base, encoder = self._readers[modality].spec, self._encoders[modality]
        found = {}
        for spec in store.boundaries():
            alike = (spec.modality, spec.dtype) == (modality, base.dtype) and base.boundary < spec.boundary in wanted
            if alike and not differences(_identity(encoder, spec.boundary, sampling), spec.identity):
                reader = store.reader(modality, spec.boundary, key=spec.key, **self._how)
                if self._known[modality] <= {i.key for i in reader.items}:
                    found[spec.boundary] = reader
        return tuple(found[k] for k in sorted(found))

    @property
    def boundaries(self) -> dict[str, int]:
        """The boundary that each modality is read from."""
        return {m: reader.spec.boundary for m, reader in self._readers.items()}

    def holds(self, question: Question) -> bool:
        """Whether every state that the question needs is stored."""
        return all(self._key(m, question) is not None for m in self._readers)

    def why_not(self, question: Question) -> str:
        """What of the question is not stored, and why, as far as stage 1 wrote it down."""
        lacking = [m for m in self._readers if self._key(m, question) is None]
        if lacking == ["text"]:
            return f"text {question.text!r}"
        source = source_of(self._manifest, self._manifest.clips[question.clip_id])
        reasons = {entry.source: entry.reason for entry in read_left_out(self._store)}
        reason = reasons.get(source or question.clip_id, "")
        return f"clip {question.clip_id!r}" + (f" ({reason})" if reason else "")

    def batches(
        self, questions: Iterable[Sequence[Question]], *, view_seed: int | None = None, by_clip: bool = False
    ) -> Iterator[JointBatch]:
        """Yield one batch of states for each list of questions; reading runs ahead in a thread a modality.

        Args:
            questions: one list a batch.
            view_seed: stands for a run's seed and epoch, and draws each clip's view; None for the plain view.
            by_clip: give each clip's rows once a batch, with the index that spreads them to its questions.

        Raises:
            MissingItemError: a clip or text that was never extracted.
            CorruptItemError: stored bytes that fail their checksum.
        """
        asked = [tuple(batch) for batch in questions]
        readers = {m: (reader, *self._above.get(m, ())) for m, reader in self._readers.items()}
        streams = {m: [self._stream(m, r, asked, view_seed) for r in several] for m, several in readers.items()}
        for batch in asked:
            clips = _clip_rows(batch) if by_clip else None
            states = {
                m: [
                    self._state(m, r, next(s), None if clips is not None and m != "text" else _places(m, batch))
                    for r, s in zip(several, streams[m], strict=True)
                ]
                for m, several in readers.items()
            }
            above = {m: s[1:] for m, s in states.items()}
            yield JointBatch(batch, States({m: s[0] for m, s in states.items()}, above, clips))

    def _stream(
        self, modality: str, reader: BoundaryReader, asked: Sequence[Sequence[Question]], view_seed: int | None
    ) -> Iterator[Batch]:
        settings = self._views.get(modality)
        if settings is None or view_seed is None:
            return reader.prefetch(self._all_keys(modality, asked))
        if reader.spec.key not in self._view_readers:
            self._view_readers[reader.spec.key] = view_readers(self._opened, reader, settings, how=self._how)
        readers = self._view_readers[reader.spec.key]
        return mixed_views(readers, self._all_keys(modality, asked), view_seed=view_seed)

    def _all_keys(self, modality: str, asked: Sequence[Sequence[Question]]) -> Iterator[list[str]]:
        for batch in asked:
            yield self._keys(modality, batch)

    def _keys(self, modality: str, batch: Sequence[Question]) -> list[str]:
        keys = []
        for question in _distinct(modality, batch):
            key = self._key(modality, question)
            if key is None:
                what = question.text if modality == "text" else question.clip_id
                raise MissingItemError(f"{modality} states of {what!r} are not in the store; run talik extract first")
            keys.append(key)
        return keys

    def _key(self, modality: str, question: Question) -> str | None:
        """The key of what a question needs: by the source's name, or, for a file that was moved, by its content."""
        if modality == "text":
            key = digest_text(question.text)
            return key if key in self._known[modality] else None
        if isinstance(self._encoders[modality], FeatureEncoder):
            return imported_key(self._stored[modality], question.clip_id)
        clip = self._manifest.clips[question.clip_id]
        source = source_of(self._manifest, clip)
        if source is None or clip.media is None:
            return None
        checked = self._checked[modality]
        if source not in checked:
            checked[source] = self._content_key(modality, source, clip.media)
        return checked[source] or None

    def _content_key(self, modality: str, source: str, media: Path | FrameFolder) -> str:
        """The key of a clip's content, "" where it is not stored: a moved, new or resized file is digested.

        A file of the same name and size passes for the one that was extracted; `talik extract` looks closer.
        """
        size_bytes = self._sizes[modality].get(source)
        if size_bytes is not None and size_bytes in (0, stat_media(media)[0]):
            return self._stored[modality][source]
        key = digest_media(media)
        return key if key in self._known[modality] else ""

    def _state(self, modality: str, reader: BoundaryReader, stored: Batch, places: Tensor | None) -> State:
        """The state of what was read, each item at the `places` that name it, or once where there are none."""
        encoder = self._encoders[modality]
        if places is not None and len(places) == len(stored.hidden):  # each once, in their order
            places = None
        with self._transfers.of(stored) as to_device:
            hidden = _as_states(to_device(stored.hidden), stored.dtype, places)
            inputs = {name: _at(to_device(value), places) for name, value in stored.inputs.items()}
            lengths = None if stored.lengths is None else _at(to_device(stored.lengths), places)
        if modality == "text":
            assert lengths is not None
            return encoder.restore(hidden, reader.spec.boundary, inputs, lengths=lengths)
        rows = {name: value.flatten(0, 1) for name, value in inputs.items()}
        return encoder.restore(hidden.flatten(0, 1), reader.spec.boundary, rows)


class LiveSource:
    """Batches computed from the media files, with no store: decode, preprocess, run the prefix."""

    def __init__(
        self,
        manifest: Manifest,
        encoders: Mapping[str, Encoder],
        starts: Mapping[str, int],
        sampling: Sampling,
        *,
        device: str = "cpu",
    ) -> None:
        self._manifest = manifest
        self._encoders = encoders
        self._starts = dict(starts)
        self._sampling = sampling
        self._device = device

    def holds(self, question: Question) -> bool:
        """Whether the file that the question is about is there."""
        return self._manifest.clips[question.clip_id].media is not None

    def why_not(self, question: Question) -> str:
        """What of the question is not there."""
        return f"clip {question.clip_id!r} (the file is missing)"

    def batches(
        self, questions: Iterable[Sequence[Question]], *, view_seed: int | None = None, by_clip: bool = False
    ) -> Iterator[JointBatch]:
        """Yield one batch of states for each list of questions; always the plain view, whatever `view_seed` is.

        Args:
            questions: one list a batch.
            view_seed: of no effect.
            by_clip: give each clip's rows once a batch, with the index that spreads them to its questions.

        Raises:
            MediaError: a file that cannot be decoded.
        """
        for batch in questions:
            clips = _clip_rows(batch) if by_clip else None
            states = {m: self._state(m, batch, once=clips is not None and m != "text") for m in self._starts}
            yield JointBatch(tuple(batch), States(states, clip_rows=clips))

    @torch.no_grad()
    def _state(self, modality: str, batch: Sequence[Question], *, once: bool) -> State:
        encoder = self._encoders[modality]
        distinct = _distinct(modality, batch)
        if modality == "text":
            inputs = encoder.preprocess([q.text for q in distinct])
        else:
            inputs = self._sampling.inputs(encoder, self._decode(modality, distinct))
        inputs = {k: v.to(self._device) for k, v in inputs.items()}
        places = _places(modality, batch)
        if modality == "text":
            inputs = {k: v[places.to(v.device)] for k, v in inputs.items()}
        elif not once:
            t = encoder.rows_per_clip(self._sampling.num_segments)
            rows = (places[:, None] * t + torch.arange(t)).flatten()
            inputs = {k: v[rows.to(v.device)] for k, v in inputs.items()}
        return encoder.run(encoder.embed(inputs), 0, self._starts[modality])

    def _decode(self, modality: str, questions: Sequence[Question]) -> list[ClipMedia]:
        clips = [self._manifest.clips[q.clip_id] for q in questions]
        paths = [c.media for c in clips if c.media is not None]
        if len(paths) < len(clips):
            gone = next(c.id for c in clips if c.path is None)
            raise MissingMediaError(f"{self._manifest.root}: the file of clip {gone!r} is missing; expected it there")
        outcomes = list(iter_media(paths, self._sampling.media_settings({modality}, self._encoders)))
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [o.media for o in outcomes if o.media is not None]


def stored_questions(source: Source, questions: Sequence[Question], *, allow_missing: bool) -> list[Question]:
    """Return the questions whose states a source holds.

    Raises:
        MissingItemError: it lacks some, and `allow_missing` is false: how many, and the first ten clips or texts; or it
            lacks all.
    """
    held = {q.id: source.holds(q) for q in questions}
    lacking = [q for q in questions if not held[q.id]]
    if not lacking or (allow_missing and len(lacking) < len(questions)):
        return [q for q in questions if held[q.id]]
    what = list(dict.fromkeys(source.why_not(q) for q in lacking[:200]))
    shown = ", ".join(what[:10]) + (", …" if len(what) > 10 else "")
    raise MissingItemError(
        f"{len(lacking)} of {len(questions)} questions need states that are not in the store: {shown}; run talik "
        "extract first" + ("" if allow_missing else ", or go on without them with allow_missing = true in [data]")
    )


def _reader(
    store: FeatureStore, encoder: Encoder, start: int, sampling: Sampling, *, dtype: str, how: ReadSettings
) -> BoundaryReader:
    modality = encoder.modality
    if isinstance(encoder, FeatureEncoder):
        return store.reader(modality, 0, key=encoder.stored.key, **how)
    below = [s for s in store.boundaries() if s.modality == modality and s.boundary <= start and s.dtype == dtype]
    for spec in sorted(below, key=lambda s: s.boundary, reverse=True):
        if not differences(_identity(encoder, spec.boundary, sampling), spec.identity):
            return store.reader(modality, spec.boundary, key=spec.key, **how)
    if below:
        highest = max(s.boundary for s in below)
        store.reader(modality, highest, identity=_identity(encoder, highest, sampling))  # says which field differs
    raise MissingItemError(
        f"{store.path}: no {modality} states at or below boundary {start} as {dtype}; add a cut there to the "
        "experiment and run talik extract"
    )


def _identity(encoder: Encoder, boundary: int, sampling: Sampling) -> dict[str, Any]:
    if encoder.modality == "text":
        return text_identity(encoder, boundary)
    return clip_identity(encoder, boundary, sampling)


def _distinct(modality: str, batch: Sequence[Question]) -> list[Question]:
    return list({q.text if modality == "text" else q.clip_id: q for q in batch}.values())


def _places(modality: str, batch: Sequence[Question]) -> Tensor:
    names = [q.text if modality == "text" else q.clip_id for q in batch]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])


def _clip_rows(batch: Sequence[Question]) -> ClipRows | None:
    """Which clip each question is about, None where no two are about one."""
    of = _places("visual", batch)
    num = int(of.max()) + 1
    return ClipRows(of, num) if num < len(of) else None


def _at(values: Tensor, places: Tensor | None) -> Tensor:
    """A copy in either case: what was read lies in buffers that the reader uses again."""
    return values.clone() if places is None else values[places]


def _as_states(tensor: Tensor, dtype: str, places: Tensor | None) -> Tensor:
    """What was read as float32, arranged while it is small; a copy in any case, for the same reason."""
    arranged = tensor if places is None else tensor[places]
    states = arranged.view(torch.bfloat16) if dtype == "bfloat16" else arranged
    return states.to(torch.float32, copy=places is None)
