"""Stage 1 of texts: each distinct text once, tokens and the small inputs that rebuild its context beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...cache.feature_store import ArraySpec, BoundarySpec, BoundaryWriter, FeatureStore, Item
from ...cache.format.digests import digest_text
from ..datasets.types import Manifest
from ..encoders.encoder import Encoder
from ..executors.base import Executor
from ..executors.tasks import Task
from ..trunk.state import State
from .progress import Ledger
from .settings import EncoderSettings, ExtractSettings
from .units import (
    Targets,
    boundary_states,
    missing_targets,
    open_encoder,
    open_planned,
    planned_provenance,
    targets_of,
    text_identity,
    units_of,
    write_targets,
)

TEXTS_PER_FORWARD = 64
SECONDS_PER_TEXT = 0.05  # bounds a shard; far above what a text takes


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


@dataclass(frozen=True, kw_only=True)
class AskedTexts:
    """What an experiment asks of a store about its texts: each distinct one an item.

    Args:
        encoder: open.
        specs: of every boundary.
        items, lengths: the texts, and the tokens of each.
    """

    encoder: Encoder
    specs: Sequence[BoundarySpec]
    items: Sequence[Item]
    lengths: Sequence[int]


def ask_texts(settings: ExtractSettings, manifest: Manifest, *, device: str) -> AskedTexts | None:
    """Open the text encoder and count the tokens of every text; None without texts or encoder."""
    chosen = settings.encoders.text
    texts = list(dict.fromkeys(q.text for q in manifest.questions if q.text))
    if chosen is None or not texts:
        return None
    encoder = open_encoder(chosen, modality="text", device=device)
    cuts = sorted({encoder.boundary(k) for k in chosen.cuts})
    return AskedTexts(
        encoder=encoder,
        specs=[_text_spec(encoder, k, dtype=settings.store.dtype) for k in cuts],
        items=[Item(key=digest_text(text), source=text, size_bytes=len(text.encode())) for text in texts],
        lengths=[int(n) for n in _lengths(encoder, texts)],
    )


def extract_texts(
    asked: AskedTexts | None,
    settings: ExtractSettings,
    store: FeatureStore,
    engine: Executor,
    done: Ledger,
    *,
    device: str,
    progress: bool,
) -> None:
    """Have every state of every text that the store does not hold computed."""
    chosen = settings.encoders.text
    if asked is None or chosen is None:
        return
    encoder = asked.encoder
    work = TextWork(
        chosen=chosen,
        device=device,
        provenance=planned_provenance(encoder, settings.engine, device),
        opened=encoder if engine.in_process else None,
    )
    with ExitStack() as stack:
        writers = {spec.path: stack.enter_context(_writer(store, spec, asked, work)) for spec in asked.specs}
        units = {
            f"texts {n}": TextUnit(texts=tuple(item.source for item in unit.items), targets=targets_of(unit))
            for n, unit in enumerate(units_of(list(writers.values())))
        }
        tasks = [Task(name=name, given=unit) for name, unit in units.items()]
        total = sum(len(unit.texts) for unit in units.values())
        with tqdm(total=total, unit="text", desc="texts", disable=not progress or not units) as bar:
            for receipt in done.taken(engine.run(work, tasks), list(units), writers):
                bar.update(len(units[receipt.task].texts))


def _writer(store: FeatureStore, spec: BoundarySpec, asked: AskedTexts, work: TextWork) -> BoundaryWriter:
    return store.writer(
        spec,
        asked.items,
        lengths=asked.lengths,
        provenance=work.provenance,
        max_seconds_per_item=SECONDS_PER_TEXT,
    )


@dataclass(frozen=True, kw_only=True)
class TextUnit:
    """One shard's texts, and every boundary that misses that shard."""

    texts: tuple[str, ...]
    targets: Targets


@dataclass(kw_only=True)
class TextWork:
    """What computes units of texts, in this process or, pickled, in others.

    Args:
        chosen: the encoder's settings.
        device: where it runs.
        provenance: what the states are said to be made with; a worker that would differ refuses.
        opened: the encoder, where this process has it; never pickled.
    """

    chosen: EncoderSettings
    device: str
    provenance: dict[str, Any]
    opened: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "device": self.device, "provenance": self.provenance, "opened": None}

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder."""
        if self.opened is not None:
            return self.opened
        return open_planned(self.chosen, self.provenance, modality="text", device=self.device)

    def run(self, unit: TextUnit) -> dict[str, Any]:
        """Compute and write a unit; `written` in what is returned is as `work.write_targets` says it."""
        missing = missing_targets(unit.targets)
        states = self._states(unit, sorted(writer.layout.spec.boundary for writer, _ in missing)) if missing else {}
        return {"written": write_targets(unit.targets, lambda spec, _: states[spec.boundary])}

    def _states(
        self, unit: TextUnit, boundaries: Sequence[int]
    ) -> dict[int, list[tuple[np.ndarray, dict[str, np.ndarray]]]]:
        rows: dict[int, list[tuple[np.ndarray, dict[str, np.ndarray]]]] = {k: [] for k in boundaries}
        for start in range(0, len(unit.texts), TEXTS_PER_FORWARD):
            texts = unit.texts[start : start + TEXTS_PER_FORWARD]
            for state, inputs in _text_states(self.encoder, texts, boundaries):
                assert state.lengths is not None
                hidden = state.hidden.float().cpu().numpy()
                for i, length in enumerate(state.lengths.tolist()):
                    stored = {name: value[i, :length].cpu().numpy() for name, value in inputs.items()}
                    rows[state.boundary].append((hidden[i, :length], stored))
        return rows


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
