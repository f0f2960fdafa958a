"""Frozen prefixes: opens an experiment's encoders, identifies the states at their cuts, runs the units below a cut."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cache.feature_store import ArraySpec, FeatureStore
from ...errors import StoreError, StoreMismatchError
from ..encoders.encoder import Encoder
from ..encoders.load import load_encoder
from ..encoders.pretrained_encoder import EARLIER, PretrainedEncoder
from ..executors.settings import EngineSettings
from ..media.decoder_versions import decoder_versions
from ..trunk.state import State
from .sampling import Sampling
from .settings import EncoderSettings

_log = logging.getLogger(__name__)


def open_encoder(
    settings: EncoderSettings,
    *,
    modality: str,
    device: str,
    num_segments: int | None = None,
    base: Path = Path(),
) -> PretrainedEncoder:
    """Load the encoder that the settings name.

    Args:
        settings: of the encoder.
        modality: "visual", "audio" or "text".
        device: where it runs.
        num_segments: T, which regroups the tokens of an encoder that takes whole clips.
        base: the folder that relative paths of models and weights count from: the experiment's.

    Raises:
        SettingsError, EncoderError, TrunkError: as `load_encoder` does.
    """
    return load_encoder(
        settings.model,
        modality=modality,
        weights=settings.weights,
        image_size=settings.image_size,
        fit=settings.fit,
        num_frames=settings.num_frames,
        num_segments=num_segments,
        window_seconds=settings.window_seconds,
        picture=settings.picture,
        compute=settings.compute,
        device=device,
        trust_remote_code=settings.trust_remote_code,
        base=base,
    )


def follow_store(encoder: PretrainedEncoder, open_store: Callable[[], FeatureStore]) -> None:
    """Prepare raw items as an earlier version did, and say so, where a store holds states of this encoder made so.

    Args:
        encoder: of any modality.
        open_store: called only for an encoder whose preprocessing has changed; it raises a StoreError where there is
            no store, as a live run needs none.
    """
    if not encoder.has_earlier:
        return
    try:
        specs = open_store().boundaries()
    except StoreError:  # whoever reads the store says so
        return
    modality = encoder.modality
    known = [spec.identity["encoder"] for spec in specs if spec.modality == modality and "encoder" in spec.identity]
    if encoder.follow(known):
        _log.warning(
            "%s: the store's states are of an earlier version, which prepared its inputs in another way; "
            "this goes on with that way (a new store takes today's, see the changelog)",
            modality,
        )


def cut_boundaries(encoder: Encoder, settings: EncoderSettings) -> list[int]:
    """Return the boundaries to cache, ascending, negative numbers resolved; units above the last never run."""
    return sorted({encoder.boundary(k) for k in settings.cuts})


def clip_identity(encoder: Encoder, cut: int, sampling: Sampling, *, stand_ins: bool = False) -> dict[str, Any]:
    """Identify the states of clips at one boundary by the prefix and the sampling of clips, as JSON.

    Args:
        encoder: of the prefix.
        cut: the boundary.
        sampling: of clips.
        stand_ins: with what stands for a missing stream, as older stores have it (see `missing_streams`).
    """
    found = sampling.identity(encoder.modality, stand_ins=stand_ins)
    return {"encoder": encoder.identity(cut), "sampling": found}


def text_identity(encoder: Encoder, cut: int) -> dict[str, Any]:
    """Identify the states of texts at one boundary by the prefix, tokenizer included, as JSON."""
    return {"encoder": encoder.identity(cut)}


def boundary_states(encoder: Encoder, inputs: dict[str, Tensor], cuts: Sequence[int]) -> Iterator[State]:
    """Run the prefix once and yield its state at each of `cuts` (ascending boundaries).

    Args:
        encoder: whose units are run.
        inputs: as `encoder.preprocess` makes them, batch first.
        cuts: ascending; units above the last never run.
    """
    state = encoder.embed(inputs)
    for k in cuts:
        state = encoder.run(state, state.boundary, k)
        yield state


@dataclass(frozen=True, kw_only=True)
class PrefixMeasurement:
    """What one forward of a prefix shows.

    Attributes:
        shapes: of the hidden tensor at each cut, batch first.
        inputs: dtype and shape, batch first, of the small inputs that rebuild the context.
        seconds: that the forward took, preprocessing and the copy to the host included.
    """

    shapes: dict[int, tuple[int, ...]]
    inputs: dict[str, ArraySpec]
    seconds: float


@torch.no_grad()
def measure_prefix(encoder: Encoder, raw: Any, cuts: Sequence[int]) -> PrefixMeasurement:
    """Run the prefix once on a raw item; return the shapes at every cut, and the time.

    Args:
        encoder: whose units are run, up to the last cut.
        raw: as `encoder.preprocess` takes it: frames, waveforms or texts.
        cuts: ascending boundaries.
    """
    started = time.perf_counter()
    inputs = encoder.preprocess(raw)
    states = [(state.boundary, state.hidden.float().cpu()) for state in boundary_states(encoder, inputs, cuts)]
    seconds = time.perf_counter() - started
    small = encoder.context_inputs(inputs).items()
    return PrefixMeasurement(
        shapes={boundary: tuple(hidden.shape) for boundary, hidden in states},
        inputs={name: ArraySpec(dtype=str(v.cpu().numpy().dtype), shape=tuple(v.shape)) for name, v in small},
        seconds=seconds,
    )


def planned_provenance(encoder: Encoder, engine: EngineSettings, device: str) -> dict[str, Any]:
    """Return the provenance that workers will have, if all of them have the environment of this process."""
    found = state_provenance(encoder)
    return found if engine.in_process else {**found, "device": device, "threads": engine.num_threads}


def state_provenance(encoder: Encoder) -> dict[str, Any]:
    """Return the provenance of states that this process computes: the encoder's, and the versions of what decodes."""
    return {**encoder.provenance(), **decoder_versions(encoder.modality)}


def open_planned(
    settings: EncoderSettings,
    planned: Mapping[str, Any],
    *,
    modality: str,
    device: str,
    num_segments: int | None = None,
    base: Path = Path(),
) -> Encoder:
    """Open an encoder in a worker, for states whose provenance is `planned`; drop the units above its cuts.

    Raises:
        StoreMismatchError: the provenance of this process differs from the planned one.
    """
    encoder = open_encoder(settings, modality=modality, device=device, num_segments=num_segments, base=base)
    if EARLIER in planned.get("notes", ()):
        encoder.follow_earlier()
    found = state_provenance(encoder)
    differs = [
        f"{name} {found.get(name)!r}, not {planned.get(name)!r}"
        for name in sorted({*found, *planned})
        if found.get(name) != planned.get(name)
    ]
    if differs:
        raise StoreMismatchError(
            f"{modality}: this worker has {'; '.join(differs)}; give all workers the environment of the one that plans"
        )
    encoder.drop_above(cut_boundaries(encoder, settings)[-1])
    return encoder
