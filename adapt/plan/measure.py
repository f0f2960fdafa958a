"""Measure this machine: decoding, each unit forward and backward, reading and writing the store.

Everything runs on a few of the experiment's own clips and questions; medians of interleaved repeats.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...cache.feature_store import BoundarySpec, FeatureStore, Item
from ...cache.format.digests import digest_text
from ...errors import MissingMediaError
from ...extract.datasets.types import Clip, Manifest
from ...extract.encoders.encoder import Encoder
from ...extract.media.decode import ClipMedia, iter_media
from ...extract.stage.prefix import boundary_states
from ...extract.stage.sampling import Sampling
from ...extract.trunk.state import State
from .cost_model import EncoderCosts, MachineCosts

SAMPLE_CLIPS = 6
REPEATS = 3
LASTING_SECONDS = 0.03
_STORE_ITEMS, _STORE_ITEM_BYTES = 64, 1 << 20


def sample_clips(manifest: Manifest, count: int = SAMPLE_CLIPS) -> list[Clip]:
    """Choose up to `count` clips whose files exist, spread over the manifest.

    Raises:
        MissingMediaError: no clip's file exists.
    """
    existing = [c for c in manifest.clips.values() if c.path is not None and c.path.exists()]
    if not existing:
        raise MissingMediaError(f"{manifest.root}: no clip's file exists; expected a few to measure on")
    step = max(1, len(existing) // count)
    return existing[::step][:count]


def measure_decoding(
    clips: Sequence[Clip], sampling: Sampling, encoders: Mapping[str, Encoder]
) -> tuple[dict[str, float], list[ClipMedia]]:
    """Measure the seconds per clip of decoding each combination of modalities; return the decoded clips too."""
    modalities = [m for m in ("visual", "audio") if m in encoders]
    combinations = [{m} for m in modalities] + ([set(modalities)] if len(modalities) > 1 else [])
    paths = [c.path for c in clips if c.path is not None]
    times: dict[str, list[float]] = {}
    media: list[ClipMedia] = []
    for _ in range(REPEATS):
        for wanted in combinations:
            settings = sampling.media_settings(wanted, encoders)
            started = time.perf_counter()
            outcomes = list(iter_media(paths, settings))
            times.setdefault("+".join(m for m in modalities if m in wanted), []).append(time.perf_counter() - started)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
            media = [o.media for o in outcomes if o.media is not None]
    return {name: statistics.median(taken) / len(paths) for name, taken in times.items()}, media


def measure_store(folder: Path) -> tuple[float, float]:
    """Measure the seconds per byte of reading (checked on first touch) and writing a store below `folder`.

    Args:
        folder: of the experiment's store; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    channels = 512
    shape = (_STORE_ITEM_BYTES // (2 * channels), channels)
    values = random.standard_normal((8, *shape)).astype(np.float16)
    items = [Item(key=digest_text(str(i)), source=str(i)) for i in range(_STORE_ITEMS)]
    spec = BoundarySpec(modality="visual", boundary=0, identity={"plan": 1}, dtype="float16", shape=shape)
    total = _STORE_ITEMS * _STORE_ITEM_BYTES
    with tempfile.TemporaryDirectory(prefix=".talik-plan-", dir=folder) as name:
        store = FeatureStore.open(Path(name) / "store.zarr", mode="a")
        started = time.perf_counter()
        with store.writer(spec, items) as writer:
            for shard in writer.missing():
                writer.write(shard, ((values[i % 8], {}) for i in range(len(shard.items))))
        writing = (time.perf_counter() - started) / total
        with store.reader("visual", 0, key=spec.key) as reader:
            keys = [i.key for i in items]
            taken = []
            for _ in range(4):
                order = [keys[i] for i in random.permutation(len(keys))]
                started = time.perf_counter()
                for batch in reader.prefetch(order[i : i + 16] for i in range(0, len(order), 16)):
                    with batch:
                        torch.from_numpy(batch.hidden).float()
                taken.append(time.perf_counter() - started)
    return statistics.mean(taken) / total, writing


def measure_transfer(device: str, num_bytes: int = 64 << 20) -> float:
    """Measure the seconds per byte from host to device; 0 on a CPU."""
    if torch.device(device).type == "cpu":
        return 0.0
    block = torch.empty(num_bytes, dtype=torch.uint8)
    return _median(lambda: block.to(device), device) / num_bytes


def measure_machine(
    clips: Sequence[Clip], sampling: Sampling, encoders: Mapping[str, Encoder], folder: Path, *, device: str
) -> tuple[MachineCosts, list[ClipMedia]]:
    """Measure the machine's costs; return the decoded sample clips too."""
    media: list[ClipMedia] = []
    decode: dict[str, float] = {}
    if any(m in encoders for m in ("visual", "audio")):
        decode, media = measure_decoding(clips, sampling, encoders)
    read, write = measure_store(folder)
    return MachineCosts(decode=decode, read=read, write=write, to_device=measure_transfer(device)), media


def measure_encoder(
    encoder: Encoder,
    sampling: Sampling,
    media: Sequence[ClipMedia],
    texts: Sequence[str],
    *,
    num_items: int,
    item_bytes: int,
) -> EncoderCosts:
    """Measure one encoder's costs per item, unit by unit, on the sample's clips, or texts, as one batch.

    Args:
        encoder, sampling: as the experiment has them.
        media: the sample's clips, decoded.
        texts: sample texts, for a text encoder.
        num_items: clips, or distinct texts, of the whole experiment.
        item_bytes: stored bytes of one number.
    """
    device = str(encoder.device)
    count = len(texts) if encoder.modality == "text" else len(media)

    def make_inputs() -> dict[str, Tensor]:
        return encoder.preprocess(list(texts)) if encoder.modality == "text" else sampling.inputs(encoder, media)

    with torch.no_grad():
        inputs = make_inputs()
        embed = _median(lambda: encoder.embed(make_inputs()), device)
        states = list(boundary_states(encoder, inputs, range(encoder.num_units + 1)))
        forward = _unit_times(encoder, lambda k: encoder.run(states[k], k, k + 1), device)
        finish = _median(lambda: encoder.finish(states[-1]), device)
    both = _unit_times(encoder, lambda k: _forward_backward(encoder, states[k], k), device)
    return EncoderCosts(
        modality=encoder.modality,
        num_items=num_items,
        embed=embed / count,
        forward=tuple(t / count for t in forward),
        forward_backward=tuple(t / count for t in both),
        finish=finish / count,
        state_bytes=tuple(stored_numbers(s) * item_bytes // count for s in states),
    )


def stored_numbers(state: State) -> int:
    """Count the numbers of a batch's hidden tensor as the store holds it."""
    if state.lengths is None:
        return state.hidden.numel()
    return int(state.lengths.sum()) * state.hidden.shape[-1]  # texts are stored without their padding


def _unit_times(encoder: Encoder, run: Callable[[int], Any], device: str) -> list[float]:
    units = range(encoder.num_units)
    taken: list[list[float]] = [[] for _ in units]
    for _ in range(REPEATS):  # interleaved: what disturbs the machine for a moment disturbs all units alike
        for k in units:
            taken[k].append(lasting(lambda k=k: run(k), device))  # type: ignore[misc]
    return [statistics.median(t) for t in taken]


def _forward_backward(encoder: Encoder, state: Any, k: int) -> None:
    leaf = state.hidden.detach().clone().requires_grad_()
    out = encoder.run(state.replace(hidden=leaf), k, k + 1).hidden
    torch.autograd.backward(out, torch.ones_like(out))


def timed(call: Callable[[], Any], device: str) -> float:
    """Time one call in seconds, synchronised on a GPU."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def lasting(call: Callable[[], Any], device: str) -> float:
    """Time one call in seconds: the mean of as many as last `LASTING_SECONDS`.

    A call that is over before the machine turns to its other work would seem to be alone on it.
    """
    _wait(device)
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() - started < LASTING_SECONDS:
        call()
        count += 1
    _wait(device)
    return (time.perf_counter() - started) / count


def _median(call: Callable[[], Any], device: str, repeats: int = REPEATS) -> float:
    call()
    return statistics.median(lasting(call, device) for _ in range(repeats))


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
