"""Stage 1 of texts: each distinct text once, tokens and the small inputs that rebuild its context beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..cache.key import digest_text
from ..cache.store import ArraySpec, BoundarySpec, FeatureStore, Item
from .encoders import Encoder
from .manifest.types import Manifest
from .settings import ExtractSettings
from .state import State
from .work import Ledger, Unit, boundary_states, open_encoder, text_identity, units_of

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
    asked: AskedTexts | None, store: FeatureStore, stack: ExitStack, done: Ledger, *, progress: bool
) -> None:
    """Compute and write every state of every text that the store does not hold."""
    if asked is None:
        return
    encoder = asked.encoder
    writers = [
        stack.enter_context(
            store.writer(
                spec,
                asked.items,
                lengths=asked.lengths,
                provenance=encoder.provenance(),
                max_seconds_per_item=SECONDS_PER_TEXT,
            )
        )
        for spec in asked.specs
    ]
    units = units_of(writers)
    with tqdm(
        total=sum(len(u.items) for u in units), unit="text", desc="texts", disable=not progress or not units
    ) as bar:
        for unit in units:
            _run_text_unit(unit, encoder, done, bar)


def _run_text_unit(unit: Unit, encoder: Encoder, done: Ledger, bar: Any) -> None:
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
