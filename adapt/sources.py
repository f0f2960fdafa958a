"""Where a batch's states come from: the store (cached), or the media files themselves (live). Both give the same.

Letters: B questions, T segments, L text tokens, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..cache.difference import differences
from ..cache.errors import MissingItemError, MissingMediaError
from ..cache.key import digest_file, digest_text
from ..cache.reader import Batch, BoundaryReader, Verify
from ..cache.store import FeatureStore
from ..extract.encoders import Encoder
from ..extract.items import source_of
from ..extract.manifest.types import Manifest, Question
from ..extract.media import ClipMedia, iter_media
from ..extract.sampling import Sampling
from ..extract.state import State
from ..extract.work import clip_identity, text_identity


@dataclass(frozen=True)
class JointBatch:
    """The states of B questions: visual and audio of B·T rows (t fastest), text of B rows."""

    questions: tuple[Question, ...]
    states: Mapping[str, State]


class Source(Protocol):
    """Gives batches of states for lists of questions, in the order asked."""

    def batches(self, questions: Iterable[Sequence[Question]]) -> Iterator[JointBatch]: ...


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
        device: where the states go.
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
    ) -> None:
        self._manifest = manifest
        self._encoders = encoders
        self._device = device
        self._readers = {
            m: _reader(store, encoders[m], starts[m], sampling, dtype=dtype, verify=verify) for m in starts
        }
        self._stored = {m: {i.source: i.key for i in r.items} for m, r in self._readers.items()}
        self._known = {m: set(keys.values()) for m, keys in self._stored.items()}

    @property
    def boundaries(self) -> dict[str, int]:
        """The boundary that each modality is read from."""
        return {m: reader.spec.boundary for m, reader in self._readers.items()}

    def holds(self, question: Question) -> bool:
        """Whether every state that the question needs is stored."""
        return all(self._key(m, question) is not None for m in self._readers)

    def batches(self, questions: Iterable[Sequence[Question]]) -> Iterator[JointBatch]:
        """Yield one batch of states for each list of questions; reading runs ahead in a thread a modality.

        Raises:
            MissingItemError: a clip or text that was never extracted.
            CorruptItemError: stored bytes that fail their checksum.
        """
        asked = [tuple(batch) for batch in questions]
        streams = {m: reader.prefetch(self._all_keys(m, asked)) for m, reader in self._readers.items()}
        for batch in asked:
            yield JointBatch(batch, {m: self._state(m, next(stream), batch) for m, stream in streams.items()})

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
        clip = self._manifest.clips[question.clip_id]
        source = source_of(self._manifest, clip)
        if source is None or clip.path is None:
            return None
        stored = self._stored[modality]
        if source not in stored:
            key = digest_file(clip.path)
            stored[source] = key if key in self._known[modality] else ""
        return stored[source] or None

    def _state(self, modality: str, stored: Batch, batch: Sequence[Question]) -> State:
        encoder, reader = self._encoders[modality], self._readers[modality]
        hidden = _as_tensor(stored.hidden, stored.dtype)
        places = _places(modality, batch)
        hidden = hidden[places].to(self._device)
        if modality == "text":
            inputs = {name: torch.from_numpy(value)[places].to(self._device) for name, value in stored.inputs.items()}
            assert stored.lengths is not None
            lengths = torch.from_numpy(stored.lengths)[places].to(self._device)
            return encoder.restore(hidden, reader.spec.boundary, inputs, lengths=lengths)
        return encoder.restore(hidden.flatten(0, 1), reader.spec.boundary, {})


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

    def batches(self, questions: Iterable[Sequence[Question]]) -> Iterator[JointBatch]:
        """Yield one batch of states for each list of questions.

        Raises:
            MediaError: a file that cannot be decoded.
        """
        for batch in questions:
            yield JointBatch(tuple(batch), {m: self._state(m, batch) for m in self._starts})

    @torch.no_grad()
    def _state(self, modality: str, batch: Sequence[Question]) -> State:
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
        else:
            t = self._sampling.num_segments
            rows = (places[:, None] * t + torch.arange(t)).flatten()
            inputs = {k: v[rows.to(v.device)] for k, v in inputs.items()}
        return encoder.run(encoder.embed(inputs), 0, self._starts[modality])

    def _decode(self, modality: str, questions: Sequence[Question]) -> list[ClipMedia]:
        clips = [self._manifest.clips[q.clip_id] for q in questions]
        paths = [c.path for c in clips if c.path is not None]
        if len(paths) < len(clips):
            gone = next(c.id for c in clips if c.path is None)
            raise MissingMediaError(f"{self._manifest.root}: the file of clip {gone!r} is missing; expected it there")
        outcomes = list(iter_media(paths, self._sampling.media_settings({modality}, self._encoders)))
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [o.media for o in outcomes if o.media is not None]


def _reader(
    store: FeatureStore, encoder: Encoder, start: int, sampling: Sampling, *, dtype: str, verify: Verify
) -> BoundaryReader:
    modality = encoder.modality
    below = [s for s in store.boundaries() if s.modality == modality and s.boundary <= start and s.dtype == dtype]
    for spec in sorted(below, key=lambda s: s.boundary, reverse=True):
        if not differences(_identity(encoder, spec.boundary, sampling), spec.identity):
            return store.reader(modality, spec.boundary, key=spec.key, verify=verify)
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


def _as_tensor(hidden: np.ndarray, dtype: str) -> Tensor:
    tensor = torch.from_numpy(hidden)
    return (tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor).float()
