"""Batches of states computed from the media files, without a store."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ...cache.cores import available_cores
from ...errors import MissingMediaError
from ...extract.datasets.types import Manifest, Question
from ...extract.encoders.encoder import Encoder
from ...extract.media.clip_media import ClipMedia
from ...extract.media.decode_pool import Decoder, DecodeRequest, open_decoder
from ...extract.media.frame_folder import MediaSource
from ...extract.stage.frame_inputs import FrameInputs
from ...extract.stage.in_hand import in_hand
from ...extract.stage.prefix import boundary_states
from ...extract.stage.sampling import Sampling
from ...extract.trunk.state import State
from .batch import Batch, ClipRows, distinct, distinct_index


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What computes states as stage 1 does, of an encoder whose prefix is computed in another type than float32.

    Attributes:
        encoder: opened with `compute`.
        boundaries: rising; states at the first are what a batch starts from, those at the others are known too.
    """

    encoder: Encoder
    boundaries: tuple[int, ...]


class LiveSource:
    """Batches of states computed from the media files: decode, preprocess, run the prefix.

    Files are decoded ahead of the batches, each once a batch for sound and picture: beside a GPU by a process a core,
    on a CPU by two threads.

    Args:
        manifest: whose clips and texts the questions name.
        encoders: by modality.
        starts: by modality, the boundary that states are computed up to.
        sampling: how clips are sampled.
        device: where the inputs go.
        prefixes: by modality, what computes states in the place of `encoders`, up to boundaries of its own.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoders: Mapping[str, Encoder],
        starts: Mapping[str, int],
        sampling: Sampling,
        *,
        device: str = "cpu",
        prefixes: Mapping[str, Prefix] | None = None,
    ) -> None:
        self._manifest = manifest
        self._encoders = encoders
        self._starts = dict(starts)
        self._sampling = sampling
        self._device = device
        self._prefixes = prefixes or {}

    def holds(self, question: Question) -> bool:
        """Return whether the media file of the question's clip exists."""
        return self._manifest.clips[question.clip_id].media is not None

    def why_not(self, question: Question) -> str:
        """Name the clip whose media file is missing."""
        return f"clip {question.clip_id!r} (the file is missing)"

    def batches(
        self, questions: Iterable[Sequence[Question]], *, view_seed: int | None = None, by_clip: bool = False
    ) -> Iterator[Batch]:
        """Yield one batch of states for each list of questions; always the plain view, whatever `view_seed` is.

        Args:
            questions: one list a batch.
            view_seed: of no effect.
            by_clip: give each clip's rows once a batch, with the index that spreads them to its questions.

        Raises:
            MediaError: a file that cannot be decoded.
        """
        for batch, media in self._decoded(questions):
            clips = ClipRows.of_questions(batch, self._device) if by_clip else None
            states = {m: self._states(m, batch, media, once=clips is not None and m != "text") for m in self._starts}
            yield Batch(
                questions=tuple(batch),
                states={m: found[0] for m, found in states.items()},
                num_segments=self._sampling.num_segments,
                clips=clips,
                above={m: tuple(found[1:]) for m, found in states.items()},
            )

    @torch.no_grad()
    def _states(
        self, modality: str, batch: Sequence[Question], media: Mapping[str, ClipMedia], *, once: bool
    ) -> list[State]:
        found = distinct(modality, batch)
        names = [repr(q.text) if modality == "text" else q.clip_id for q in found]
        raw = [] if modality == "text" else [media[q.clip_id] for q in found]
        with in_hand(names):
            return self._run(modality, batch, raw, once=once)

    def _run(self, modality: str, batch: Sequence[Question], decoded: list[ClipMedia], *, once: bool) -> list[State]:
        """Preprocess the distinct clips (decoded), or texts, of a batch, and run the prefix on one row a question."""
        encoder = self._encoders[modality]
        if modality == "text":
            inputs = encoder.preprocess([q.text for q in distinct(modality, batch)])
        else:
            inputs = self._sampling.inputs(encoder, decoded)
        inputs = {k: v.to(self._device) for k, v in inputs.items()}
        places = distinct_index(modality, batch)
        if modality == "text":
            inputs = {k: v[places.to(v.device)] for k, v in inputs.items()}
        elif not once:
            t = encoder.rows_per_clip(self._sampling.num_segments)
            rows = (places[:, None] * t + torch.arange(t)).flatten()
            inputs = {k: v[rows.to(v.device)] for k, v in inputs.items()}
        prefix = self._prefixes.get(modality)
        if prefix is None:
            return [encoder.run(encoder.embed(inputs), 0, self._starts[modality])]
        small = encoder.context_inputs(inputs)
        states = boundary_states(prefix.encoder, inputs, prefix.boundaries)
        return [encoder.restore(state.hidden, state.boundary, small, state.lengths) for state in states]

    @cached_property
    def _modalities(self) -> set[str]:
        return {modality for modality in self._starts if modality != "text"}

    @cached_property
    def _decoder(self) -> Decoder:
        frames = FrameInputs(self._encoders["visual"]) if "visual" in self._modalities else None
        workers = 0 if torch.device(self._device).type == "cpu" else available_cores()
        decoder = open_decoder(workers, frames)
        weakref.finalize(self, decoder.close)
        return decoder

    def _decoded(
        self, questions: Iterable[Sequence[Question]]
    ) -> Iterator[tuple[Sequence[Question], dict[str, ClipMedia]]]:
        """Yield each batch with its clips, decoded, by id; those of the next batches are decoded meanwhile."""
        if not self._modalities:
            yield from ((batch, {}) for batch in questions)
            return
        begun: deque[tuple[Sequence[Question], int]] = deque()  # batches, with the number of clips of each

        def requests() -> Iterator[DecodeRequest]:
            wanted = self._sampling.media_settings(self._modalities, self._encoders)
            views = (0,) if "visual" in self._modalities else ()
            for batch in questions:
                ids = [question.clip_id for question in distinct(next(iter(self._modalities)), batch)]
                begun.append((batch, len(ids)))
                for clip_id in ids:
                    yield DecodeRequest(source=self._media(clip_id), settings=wanted, views=views, tag=clip_id)

        outcomes = self._decoder.outcomes(requests())
        try:
            media: dict[str, ClipMedia] = {}
            for request, outcome in outcomes:
                if outcome.media is None:
                    assert outcome.error is not None
                    raise outcome.error
                media[request.tag] = outcome.media
                if len(media) == begun[0][1]:
                    yield begun.popleft()[0], media
                    media = {}
        finally:
            outcomes.close()  # type: ignore[attr-defined]

    def _media(self, clip_id: str) -> MediaSource:
        media = self._manifest.clips[clip_id].media
        if media is None:
            raise MissingMediaError(
                f"{self._manifest.root}: the file of clip {clip_id!r} is missing; expected it there"
            )
        return media
