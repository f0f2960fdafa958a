"""Measure this machine: decoding, each unit forward and backward, reading and writing the store.

Everything runs on a few of the experiment's own clips and questions; medians of interleaved repeats. Measurements are
stored in the user's cache folder by machine and by what they depend on, so that a second plan is quick. A machine that
others use too is not always as fast: beside each measurement stands the machine's pace then, the time of a fixed piece
of work, so that what was measured on an idle machine is not announced on a busy one.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...cache.atomic_io import write_file
from ...cache.feature_store import BoundarySpec, FeatureStore, Item
from ...cache.format.digests import digest_json, digest_text
from ...errors import MissingMediaError, StoreError
from ...extract.datasets.types import Clip, Manifest
from ...extract.encoders.cache_folder import cache_folder
from ...extract.encoders.encoder import Encoder
from ...extract.executors.device import machine_name
from ...extract.media.clip_media import ClipMedia
from ...extract.media.decode import iter_media
from ...extract.stage.frame_inputs import FrameInputs
from ...extract.stage.prefix import boundary_states
from ...extract.stage.sampling import Sampling
from ...extract.trunk.state import State
from .cost_model import MachineCosts

Meter = Callable[[Sequence[Callable[[], object]]], Iterable[float]]

SAMPLE_CLIPS = 6
REPEATS = 3
LASTING_SECONDS = 0.03
_STORE_ITEMS, _STORE_ITEM_BYTES = 64, 1 << 20
_VERSION = 3  # of stored measurements
_SPREAD = 1.25


def sample_clips(manifest: Manifest, count: int = SAMPLE_CLIPS) -> list[Clip]:
    """Choose up to `count` clips whose files exist, spread over the manifest.

    Raises:
        MissingMediaError: no clip's file exists.
    """
    existing = [c for c in manifest.clips.values() if c.path is not None and c.path.exists()]
    if not existing:
        raise MissingMediaError(f"{manifest.root}: no clip's file exists; expected a few to measure on")
    return existing[:: max(1, len(existing) // count)][:count]


def measure_machine(
    clips: Sequence[Clip], sampling: Sampling, encoders: Mapping[str, Encoder], folder: Path, *, device: str
) -> tuple[MachineCosts, list[ClipMedia]]:
    """Measure the machine's costs; return the decoded clips too.

    Args:
        clips: a few, whose files exist.
        sampling, encoders: of the experiment.
        folder: where a small store is written and removed again, on the disk of the experiment's own.
        device: where encoders and training will run.
    """
    modalities = [m for m in ("visual", "audio") if m in encoders]
    decode, media = _measure_decoding(clips, sampling, encoders, modalities) if modalities else ({}, [])
    read, write = _measure_store(folder)
    to_device = 0.0
    if torch.device(device).type != "cpu":
        block = torch.empty(64 << 20, dtype=torch.uint8)
        to_device = seconds_of([lambda: block.to(device)], device)[0] / len(block)
    return MachineCosts(decode=decode, read=read, write=write, to_device=to_device), media


def _measure_decoding(
    clips: Sequence[Clip], sampling: Sampling, encoders: Mapping[str, Encoder], modalities: Sequence[str]
) -> tuple[dict[str, float], list[ClipMedia]]:
    """Measure the seconds a clip of each modality and of all together, which come last; return their media."""
    combinations = [[m] for m in modalities] + ([[*modalities]] if len(modalities) > 1 else [])
    paths = [clip.media for clip in clips if clip.media is not None]
    times: dict[str, list[float]] = {"+".join(wanted): [] for wanted in combinations}
    for _ in range(REPEATS):
        for wanted in combinations:
            settings = sampling.media_settings(set(wanted), encoders)
            frames = FrameInputs(encoders["visual"]) if "visual" in wanted else None
            started = time.perf_counter()
            outcomes = list(iter_media(paths, settings, each_frame=frames))
            times["+".join(wanted)].append(time.perf_counter() - started)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
    media = [o.media for o in outcomes if o.media is not None]
    return {name: statistics.median(taken) / len(paths) for name, taken in times.items()}, media


def _measure_store(folder: Path) -> tuple[float, float]:
    """Measure the seconds a byte of reading (checked on first touch) and writing; nothing is left behind."""
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
            taken = []
            for _ in range(4):
                order = [items[i].key for i in random.permutation(len(items))]
                started = time.perf_counter()
                for batch in reader.prefetch(order[i : i + 16] for i in range(0, len(order), 16)):
                    with batch:
                        torch.from_numpy(batch.hidden).float()
                taken.append(time.perf_counter() - started)
    return statistics.mean(taken) / total, writing


def encoder_costs(
    encoder: Encoder,
    inputs: Callable[[], dict[str, Tensor]],
    meter: Meter,
    *,
    count: int,
    item_bytes: int,
    backward: bool = True,
) -> dict[str, Any]:
    """Measure one encoder's costs per item, unit by unit, on one batch.

    Args:
        encoder: the encoder.
        inputs: makes the batch.
        meter: gives the cost of each of some calls: their seconds, or their operations.
        count: items of the batch.
        item_bytes: stored bytes of one number.
        backward: whether each unit is measured with its backward pass too.

    Returns:
        The fields of `EncoderCosts` as plain values, without `num_items`.
    """
    units = range(encoder.num_units)

    def forward_backward(k: int) -> None:
        leaf = states[k].hidden.detach().clone().requires_grad_()
        out = encoder.run(states[k].replace(hidden=leaf), k, k + 1).hidden
        torch.autograd.backward(out, torch.ones_like(out))

    with torch.no_grad():
        states = list(boundary_states(encoder, inputs(), range(encoder.num_units + 1)))
        calls = [partial(encoder.run, states[k], k, k + 1) for k in units]
        embed, *forward, finish = meter([lambda: encoder.embed(inputs()), *calls, partial(encoder.finish, states[-1])])
    both = meter([partial(forward_backward, k) for k in units]) if backward else ()
    return {
        "modality": encoder.modality,
        "embed": embed / count,
        "forward": [cost / count for cost in forward],
        "forward_backward": [cost / count for cost in both],
        "finish": finish / count,
        "state_bytes": [_stored_numbers(s) * item_bytes // count for s in states],
    }


def _stored_numbers(state: State) -> int:
    """Count the numbers of a batch's hidden tensor as the store holds it."""
    if state.lengths is None:
        return state.hidden.numel()
    return int(state.lengths.sum()) * state.hidden.shape[-1]  # texts are stored without their padding


def seconds_of(calls: Sequence[Callable[[], object]], device: str) -> list[float]:
    """Time each call in seconds: the median of repeats, interleaved so that a disturbance slows all calls alike."""
    taken = [[timed(call, device) for call in calls] for _ in range(REPEATS)]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


def timed(call: Callable[[], object], device: str, *, lasting: float = LASTING_SECONDS) -> float:
    """Time one call in seconds, synchronised on a GPU: the mean of as many as last `lasting` seconds, one at least.

    A call that is over before the machine turns to its other work would seem to be alone on it.
    """
    _wait(device)
    started, count = time.perf_counter(), 0
    while not count or (lasting and time.perf_counter() - started < lasting):
        call()
        count += 1
    _wait(device)
    return (time.perf_counter() - started) / count


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.device(device).type == "mps":
        torch.mps.synchronize()


@cache
def pace(device: str) -> float:
    """Time a fixed piece of work (matrix products and GELU), once a process, in seconds."""
    rows, weights = (torch.ones(shape, device=device) for shape in ((1024, 384), (384, 1536)))

    def work() -> None:
        for _ in range(4):
            torch.nn.functional.gelu(rows @ weights)

    return max(statistics.median(timed(work, device) for _ in range(5)), 1e-9)


def cached_measurement(what: Any, measure: Callable[[], Any], *, device: str, fresh: bool = False) -> tuple[Any, float]:
    """Return an earlier measurement of `what` on this machine, or measure and store it.

    Args:
        what: JSON of everything that the measurement depends on.
        measure: gives a JSON value.
        device: where it runs.
        fresh: measure again.

    Returns:
        The value, and how many times slower the machine is now than when it was measured: 1 for a new measurement, and
        for a factor of less than a quarter, a measurement's own spread.
    """
    key = digest_json([_VERSION, machine_name(device), torch.__version__, what])
    path = cache_folder() / "measured" / f"{key}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not fresh:
            slower = pace(device) / found["pace"]
            return found["value"], 1.0 if 1 / _SPREAD < slower < _SPREAD else slower
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none that can be read
    made = {"machine": machine_name(device), "what": what, "pace": pace(device), "value": measure()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(made).encode())
    except (OSError, StoreError):
        pass  # a cache folder that cannot be written costs the next plan its time, nothing else
    return made["value"], 1.0
