"""Stage 1: the states of every clip and text at the named boundaries, computed once and written to the store.

Work is cut into units: the rows of one shard, for all boundaries that miss it, so that a clip is decoded once and a
prefix runs once however many boundaries and modalities want it. A unit that is interrupted is done again, a finished
one never; which items share a forward is fixed by their rows, so a resumed store equals an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..cache.errors import MediaError
from ..cache.key import digest_text
from ..cache.store import ArraySpec, BoundarySpec, BoundaryWriter, FeatureStore, Item, Shard
from .encoders import Encoder, load_encoder
from .items import clip_items
from .manifest.load import load_manifest
from .manifest.types import Manifest
from .media import ClipMedia, iter_media
from .sampling import Sampling, sampling_of
from .settings import EncoderSettings, ExtractSettings, extract_settings, read_toml
from .state import State

UNIT_SECONDS = 30.0  # a kill costs at most about this much work
TEXTS_PER_FORWARD = 64


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


def extract(experiment: Path | str | ExtractSettings, *, device: str = "cpu", progress: bool = True) -> ExtractReport:
    """Compute every state that the experiment names and the store does not hold.

    Args:
        experiment: an experiment's TOML, or its settings for stage 1.
        device: where the encoders run.
        progress: show tqdm bars with rates.

    Raises:
        SettingsError: a key or value of the file.
        ManifestError, MissingMediaError: annotations, or media they name that are not there.
        MediaError: files that could not be decoded; all others are finished and kept.
        StoreError: a folder that is no store, a full disk, another writer.
    """
    settings = experiment if isinstance(experiment, ExtractSettings) else _read(Path(experiment))
    started = time.perf_counter()
    store = FeatureStore.open(settings.store_path, mode="a")
    manifest = load_manifest(settings.data, base=settings.base)
    done = _Ledger()
    with ExitStack() as stack:
        _extract_clips(settings, manifest, store, stack, done, device=device, progress=progress)
        _extract_texts(settings, manifest, store, stack, done, device=device, progress=progress)
    if done.failures:
        raise MediaError(_failure_line(done.failures, len(manifest.clips)))
    return ExtractReport(
        items=done.items,
        bytes_written=done.bytes_written,
        seconds=time.perf_counter() - started,
        up_to_date=not any(done.items.values()),
        skipped=tuple(done.skipped),
    )


@dataclass
class _Ledger:
    items: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, writer: BoundaryWriter, count: int, size_bytes: int) -> None:
        name = f"{writer.spec.modality}/{writer.spec.name}"
        self.items[name] = self.items.get(name, 0) + count
        self.bytes_written += size_bytes


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """One shard's items, and every boundary that misses that shard."""

    items: tuple[Item, ...]
    targets: tuple[tuple[BoundaryWriter, Shard], ...]

    @property
    def modalities(self) -> set[str]:
        return {writer.spec.modality for writer, _ in self.targets}


def _read(path: Path) -> ExtractSettings:
    return extract_settings(read_toml(path), path=path)


def _extract_clips(
    settings: ExtractSettings,
    manifest: Manifest,
    store: FeatureStore,
    stack: ExitStack,
    done: _Ledger,
    *,
    device: str,
    progress: bool,
) -> None:
    chosen = {m: s for m, s in settings.encoders.items() if m in ("visual", "audio")}
    if not chosen or not manifest.clips:
        return
    found = clip_items(manifest, _known_items(store, chosen), progress=progress)
    done.skipped += [(name, "the file is missing") for name in manifest.missing]
    paths = {item.key: path for item, path in found.values()}
    items = list({item.key: item for item, _ in found.values()}.values())
    if not items:
        return
    encoders = {m: open_encoder(s, modality=m, device=device) for m, s in chosen.items()}
    sampling = sampling_of(settings, encoders)
    writers: list[BoundaryWriter] = []
    shapes = _Shapes(encoders, sampling)
    for modality, encoder in encoders.items():
        for cut in sorted({encoder.boundary(k) for k in chosen[modality].cuts}):
            spec = BoundarySpec(
                modality=modality,
                boundary=cut,
                identity=clip_identity(encoder, cut, sampling),
                dtype=settings.store.dtype,
                shape=shapes.of(modality, cut),
            )
            writers.append(
                stack.enter_context(
                    store.writer(spec, items, provenance=encoder.provenance(), max_seconds_per_item=shapes.seconds)
                )
            )
    units = _units(writers)
    for modality, encoder in encoders.items():
        encoder.drop_above(max(encoder.boundary(k) for k in chosen[modality].cuts))
    total = sum(len(unit.items) for unit in units)
    with tqdm(total=total, unit="clip", desc="clips", disable=not progress or not total) as bar:
        for unit in units:
            _run_unit(unit, encoders, sampling, paths, chosen, done, bar)


def _known_items(store: FeatureStore, modalities: Iterable[str]) -> Iterator[Item]:
    for spec in store.boundaries():
        if spec.modality in modalities:
            with store.reader(spec.modality, spec.boundary, key=spec.key) as reader:
                yield from reader.items


class _Shapes:
    """The shape of a clip's state at every boundary, and the seconds that one clip takes, from one blank clip."""

    def __init__(self, encoders: dict[str, Encoder], sampling: Sampling) -> None:
        self._encoders = encoders
        self._sampling = sampling
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        self.seconds: float | None = None

    def of(self, modality: str, cut: int) -> tuple[int, ...]:
        if modality not in self._shapes:
            started = time.perf_counter()
            self._shapes[modality] = self._run(self._encoders[modality])
            self.seconds = (self.seconds or 0.0) + time.perf_counter() - started
        return self._shapes[modality][cut]

    @torch.no_grad()
    @torch.no_grad()
    def _run(self, encoder: Encoder) -> list[tuple[int, ...]]:
        length = self._sampling.num_segments
        inputs = encoder.preprocess(self._sampling.blank(encoder))
        states = boundary_states(encoder, inputs, range(encoder.num_units + 1))
        return [(length, *state.hidden.shape[1:]) for state in states]


def open_encoder(settings: EncoderSettings, *, modality: str, device: str) -> Encoder:
    """Load the encoder that the settings name."""
    return load_encoder(
        settings.model,
        modality=modality,
        weights=settings.weights,
        image_size=settings.image_size,
        fit=settings.fit,
        window_seconds=settings.window_seconds,
        device=device,
        trust_remote_code=settings.trust_remote_code,
    )


def clip_identity(encoder: Encoder, cut: int, sampling: Sampling) -> dict[str, Any]:
    """What identifies the states of clips at one boundary: the prefix, and how clips are sampled."""
    return {"encoder": encoder.identity(cut), "sampling": sampling.identity(encoder.modality)}


def text_identity(encoder: Encoder, cut: int) -> dict[str, Any]:
    """What identifies the states of texts at one boundary: the prefix, tokenizer included."""
    return {"encoder": encoder.identity(cut)}


def _text_spec(encoder: Encoder, cut: int, *, dtype: str) -> BoundarySpec:
    state, inputs = _embed_texts(encoder, ["a"])
    small = encoder.context_inputs(inputs)
    return BoundarySpec(
        modality="text",
        boundary=cut,
        identity=text_identity(encoder, cut),
        dtype=dtype,
        shape=(encoder.run(state, 0, cut).hidden.shape[-1],),
        ragged=True,
        inputs={
            name: ArraySpec(dtype=str(value.cpu().numpy().dtype), shape=tuple(value.shape[2:]))
            for name, value in small.items()
        },
    )


def _units(writers: Sequence[BoundaryWriter]) -> list[_Unit]:
    groups: dict[tuple[str, ...], list[tuple[BoundaryWriter, Shard]]] = {}
    for writer in writers:
        for shard in writer.missing():
            groups.setdefault(tuple(item.key for item in shard.items), []).append((writer, shard))
    return [_Unit(items=targets[0][1].items, targets=tuple(targets)) for targets in groups.values()]


def _run_unit(
    unit: _Unit,
    encoders: dict[str, Encoder],
    sampling: Sampling,
    paths: dict[str, Path],
    chosen: dict[str, EncoderSettings],
    done: _Ledger,
    bar: Any,
) -> None:
    states: dict[tuple[str, int], list[np.ndarray]] = {(w.spec.modality, w.spec.boundary): [] for w, _ in unit.targets}
    per_forward = {m: max(1, chosen[m].batch_size // sampling.num_segments) for m in unit.modalities}
    pending: dict[str, list[ClipMedia]] = {m: [] for m in unit.modalities}
    failed = False
    outcomes = iter_media(
        [paths[item.key] for item in unit.items],
        sampling.media_settings(unit.modalities, encoders),
    )
    for index, (item, outcome) in enumerate(zip(unit.items, outcomes, strict=True)):
        if outcome.media is None:
            done.failures.append((item.source, str(outcome.error)))
            failed = True
        elif not failed:
            for modality, clips in pending.items():
                clips.append(outcome.media)
                if len(clips) == per_forward[modality] or index == len(unit.items) - 1:
                    _forward(encoders[modality], clips, states, sampling)
                    clips.clear()
        bar.update(1)
    if failed:
        return
    for writer, shard in unit.targets:
        before = writer.bytes_written
        rows = states.pop((writer.spec.modality, writer.spec.boundary))
        writer.write(shard, ((row, {}) for row in rows))
        done.add(writer, len(rows), writer.bytes_written - before)


@torch.no_grad()
def _forward(
    encoder: Encoder,
    clips: Sequence[ClipMedia],
    states: dict[tuple[str, int], list[np.ndarray]],
    sampling: Sampling,
) -> None:
    raw = sampling.stack(encoder.modality, clips)
    wanted = sorted(k for modality, k in states if modality == encoder.modality)
    for state in boundary_states(encoder, encoder.preprocess(raw), wanted):
        hidden = state.hidden.float().cpu().numpy()
        per_clip = hidden.reshape(len(clips), sampling.num_segments, *hidden.shape[1:])
        states[encoder.modality, state.boundary].extend(per_clip)


def boundary_states(encoder: Encoder, inputs: dict[str, torch.Tensor], wanted: Sequence[int]) -> Iterator[State]:
    """Yield the states at the boundaries `wanted` (ascending), each prefix unit run once, those above never."""
    state = encoder.embed(inputs)
    for k in wanted:
        state = encoder.run(state, state.boundary, k)
        yield state


def _extract_texts(
    settings: ExtractSettings,
    manifest: Manifest,
    store: FeatureStore,
    stack: ExitStack,
    done: _Ledger,
    *,
    device: str,
    progress: bool,
) -> None:
    chosen = settings.encoders.text
    texts = list(dict.fromkeys(q.text for q in manifest.questions if q.text))
    if chosen is None or not texts:
        return
    encoder = open_encoder(chosen, modality="text", device=device)
    lengths = [int(n) for n in _lengths(encoder, texts)]
    items = [Item(key=digest_text(text), source=text, size_bytes=len(text.encode())) for text in texts]
    writers = [
        stack.enter_context(
            store.writer(
                _text_spec(encoder, k, dtype=settings.store.dtype),
                items,
                lengths=lengths,
                provenance=encoder.provenance(),
                max_seconds_per_item=0.05,
            )
        )
        for k in sorted({encoder.boundary(k) for k in chosen.cuts})
    ]
    units = _units(writers)
    with tqdm(
        total=sum(len(u.items) for u in units), unit="text", desc="texts", disable=not progress or not units
    ) as bar:
        for unit in units:
            _run_text_unit(unit, encoder, done, bar)


def _run_text_unit(unit: _Unit, encoder: Encoder, done: _Ledger, bar: Any) -> None:
    rows: dict[int, list[tuple[np.ndarray, dict[str, np.ndarray]]]] = {w.spec.boundary: [] for w, _ in unit.targets}
    for start in range(0, len(unit.items), TEXTS_PER_FORWARD):
        texts = [item.source for item in unit.items[start : start + TEXTS_PER_FORWARD]]
        for state, inputs in _text_states(encoder, texts, sorted(rows)):
            assert state.lengths is not None
            hidden = state.hidden.float().cpu().numpy()
            for i, length in enumerate(state.lengths.tolist()):
                stored = {name: value[i, :length].cpu().numpy() for name, value in inputs.items()}
                rows[state.boundary].append((hidden[i, :length], stored))
        bar.update(len(texts))
    for writer, shard in unit.targets:
        before = writer.bytes_written
        writer.write(shard, rows[writer.spec.boundary])
        done.add(writer, len(shard.items), writer.bytes_written - before)


@torch.no_grad()
def _text_states(
    encoder: Encoder, texts: Sequence[str], wanted: Sequence[int]
) -> Iterator[tuple[State, dict[str, torch.Tensor]]]:
    inputs = encoder.preprocess(list(texts))
    small = encoder.context_inputs(inputs)
    for state in boundary_states(encoder, inputs, wanted):
        yield state, small


@torch.no_grad()
def _embed_texts(encoder: Encoder, texts: Sequence[str]) -> tuple[State, dict[str, torch.Tensor]]:
    inputs = encoder.preprocess(list(texts))
    return encoder.embed(inputs), inputs


def _lengths(encoder: Encoder, texts: Sequence[str]) -> Iterator[int]:
    for start in range(0, len(texts), 1024):
        state, _ = _embed_texts(encoder, texts[start : start + 1024])
        assert state.lengths is not None
        yield from state.lengths.tolist()


def _failure_line(failures: Sequence[tuple[str, str]], total: int) -> str:
    first = "; ".join(reason for _, reason in failures[:3])
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    return (
        f"{len(failures)} of {total} clips could not be decoded, all others are stored: {first}{more}; "
        "replace or remove them and run again, or set allow_missing = true in [data]"
    )
