"""Estimate extraction and sweep on clusters of GPUs for `plan --simulate`: operations over a rate, bytes over a disk.

Nothing of the cluster is measured here. Operations are counted exactly, on architectures with random weights where the
weights are absent; seconds are operations over a rate that is given, or, on a GPU, measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ...cache.format.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ...errors import SettingsError
from ..config.experiment import Experiment, VariantSettings, load_experiment
from ..sweep.sweep import run_groups
from .choose_cuts import cached_seconds
from .cluster import MOST_GPUS, PEAK_TFLOPS, UTILISATION, Phase, SimulateSettings, Work, phase, stops_helping
from .cost_model import EncoderCosts, MachineCosts, VariantCosts, variant_costs
from .counting import EncoderCounts, PublishedSizesContext, count_encoder, count_variant
from .measurement_cache import cached_measurement, machine_name
from .plan import STORED_BYTES, variant_identity
from .workload import SampleStates

_TEXTS = 16
_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Estimated time of an experiment on clusters.

    Args:
        settings: assumptions about the cluster.
        machine: where operations were counted.
        notes: on the data set.
        rate: operations a second of a GPU; None where each encoder has its measured one.
        num_clips, num_texts, num_runs: of the experiment.
        counts: of each encoder.
        encoders, variants: in seconds of one of the cluster's GPUs.
        num_bytes: of the store.
        clusters: extraction and sweep by number of GPUs.
        helps: GPUs beyond which twice as many gain under 10 %, of extraction and of the sweep.
        enough: the fewest GPUs that end within `settings.hours`; None where no hours are given, or none do.
    """

    settings: SimulateSettings
    machine: str
    notes: tuple[str, ...]
    rate: float | None
    num_clips: int
    num_texts: int
    num_runs: int
    counts: Mapping[str, EncoderCounts]
    encoders: Mapping[str, EncoderCosts]
    variants: tuple[VariantCosts, ...]
    num_bytes: int
    clusters: Mapping[int, tuple[Phase, Phase]]
    helps: tuple[int, int]
    enough: int | None


def simulate(
    experiment: Experiment | Path | str,
    settings: SimulateSettings,
    *,
    device: str = "cpu",
    fresh: bool = False,
    progress: bool = True,
) -> Simulation:
    """Estimate extraction and sweep on clusters from counted operations. Needs neither weights nor clips.

    Args:
        experiment: an experiment's TOML, or the experiment itself, with its boundaries named.
        settings: assumptions about the cluster.
        device: where operations are counted, and, if a GPU, timed.
        fresh: count again what an earlier call counted.
        progress: show a tqdm bar.

    Raises:
        SettingsError, ManifestError, EncoderError: an experiment of imported features, unnamed boundaries, or a data
            set or encoder of unknown size.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    if not experiment.variants:
        raise SettingsError(f"{experiment.name}: no [[variants]]; a simulation is about variants")
    for modality, chosen in experiment.extraction.encoders.items():
        if chosen.cut == "auto":
            raise SettingsError(f'encoders.{modality}: cut = "auto" needs a plan; name the boundaries to simulate')
    with tempfile.TemporaryDirectory(prefix="talik-simulate-") as folder:
        context = PublishedSizesContext(experiment, Path(folder), device=device)
        counts, variants = _count(context, settings, device=device, fresh=fresh, progress=progress)
        cuts = {
            m: tuple(context.encoders[m].boundary(k) for k in e.cuts) for m, e in experiment.extraction.encoders.items()
        }
    texts, clips = context.texts, context.manifest.clips
    encoders = {
        m: _encoder_costs(m, c, experiment, settings, device, len(texts if m == "text" else clips))
        for m, c in counts.items()
    }
    _check_cuts(cuts, variants)
    disk = settings.disk * 1e9
    shards = _extraction_work(experiment, encoders, cuts, settings, num_clips=len(clips))

    def extraction(count: int) -> Phase:
        return phase(shards, count, disk=disk)

    def sweep(count: int) -> Phase:
        return phase(_sweep_work(experiment, encoders, cuts, variants, count), count, disk=disk)

    def enough(hours: float) -> int | None:
        counts = range(1, MOST_GPUS + 1)
        return next((n for n in counts if extraction(n).seconds + sweep(n).seconds <= 3600 * hours), None)

    return Simulation(
        settings=settings,
        machine=machine_name(device),
        notes=context.manifest.notes,
        rate=_given_rate(settings, device),
        num_clips=len(clips),
        num_texts=len(texts),
        num_runs=sum(v.num_seeds for v in variants),
        counts=counts,
        encoders=encoders,
        variants=tuple(variants),
        num_bytes=int(sum(u.num_bytes for u in shards)),
        clusters={count: (extraction(count), sweep(count)) for count in settings.shown},
        helps=(stops_helping(extraction), stops_helping(sweep)),
        enough=None if settings.hours is None else enough(settings.hours),
    )


def _given_rate(settings: SimulateSettings, device: str) -> float | None:
    """Operations a second of a GPU; None where each encoder's measured rate is taken."""
    if settings.tflops is None and torch.device(device).type == "cuda":
        return None
    return 1e12 * (PEAK_TFLOPS * UTILISATION if settings.tflops is None else settings.tflops)


def _count(
    context: PublishedSizesContext, settings: SimulateSettings, *, device: str, fresh: bool, progress: bool
) -> tuple[dict[str, EncoderCounts], list[VariantCosts]]:
    """Count the operations of every encoder and variant, or take them from an earlier call."""
    experiment, manifest, sampling, blank = context.experiment, context.manifest, context.sampling, context.blank()
    texts, batch = context.texts[:_TEXTS], list(manifest.questions[:_BATCH])
    states = SampleStates(context.encoders, sampling, {q.clip_id: blank for q in batch})
    stored = partial(cached_measurement, device=device, fresh=fresh)
    counts: dict[str, EncoderCounts] = {}
    variants: list[VariantCosts] = []
    parts = tqdm([*context.encoders.values(), *experiment.variants], desc="counting", disable=not progress)
    for part in parts:
        if not isinstance(part, VariantSettings):
            what = {"count": part.identity(part.num_units), "texts": texts}
            what |= {} if part.modality == "text" else {"sampling": sampling.identity(part.modality)}
            count = partial(count_encoder, part, sampling, blank, texts or ["a"])
            counts[part.modality] = EncoderCounts.from_json(stored(what, count))
            continue
        model = context.build(part, seed=0)
        what = variant_identity(context, part, model) | {"count": "step", "texts": [q.text for q in batch]}
        what |= {"answers": len(manifest.answers), "segments": sampling.num_segments}
        train, answer = stored(what, partial(count_variant, model, states, batch))
        rate = _given_rate(settings, device)
        if rate is None:
            rate = sum(sum(c.forward) for c in counts.values()) / sum(c.seconds for c in counts.values())
        costs = variant_costs(experiment, part, manifest, model.starts(), train=train / rate, answer=answer / rate)
        variants.append(costs)
    return counts, variants


def _encoder_costs(
    modality: str, counts: EncoderCounts, experiment: Experiment, settings: SimulateSettings, device: str, num: int
) -> EncoderCosts:
    """Divide an encoder's operations on one item by the rate; `num` items."""
    rate = _given_rate(settings, device) or counts.rate
    number = STORED_BYTES[experiment.extraction.store.dtype]
    return EncoderCosts(
        modality=modality,
        num_items=num,
        embed=counts.embed / rate,
        forward=tuple(n / rate for n in counts.forward),
        forward_backward=(),
        finish=counts.finish / rate,
        state_bytes=tuple(n * number for n in counts.numbers),
    )


def _check_cuts(cuts: Mapping[str, tuple[int, ...]], variants: Sequence[VariantCosts]) -> None:
    for variant in variants:
        for modality, start in variant.starts.items():
            if min(cuts[modality]) > start:
                raise SettingsError(
                    f"encoders.{modality}: cut: found {list(cuts[modality])}, expected a boundary of at most {start}, "
                    f"where variant {variant.name!r} starts"
                )


def _extraction_work(
    experiment: Experiment,
    encoders: Mapping[str, EncoderCosts],
    cuts: Mapping[str, tuple[int, ...]],
    settings: SimulateSettings,
    *,
    num_clips: int,
) -> list[Work]:
    """Divide extraction into shards of clips, and one unit of all texts."""
    views = {modality: 1 + chosen.views for modality, chosen in experiment.extraction.encoders.items()}
    seconds = {m: views[m] * (e.embed + e.run(0, max(cuts[m]))) for m, e in encoders.items()}
    sizes = {m: views[m] * sum(e.state_bytes[k] for k in cuts[m]) for m, e in encoders.items()}
    work = [
        Work(gpu=e.num_items * seconds[m], num_bytes=e.num_items * sizes[m]) for m, e in encoders.items() if m == "text"
    ]
    media = [m for m in encoders if m != "text"]
    if not media:
        return work
    gpu, num_bytes = sum(seconds[m] for m in media), sum(sizes[m] for m in media)
    clip = Work(gpu=gpu, num_bytes=num_bytes, decode=settings.decode / settings.cores)
    by_time = int(TARGET_SHARD_SECONDS / max(clip.seconds(settings.disk * 1e9), 1e-9))
    largest = max(encoders[m].state_bytes[k] for m in media for k in cuts[m])
    size = experiment.extraction.store.shard_items or max(1, min(by_time, TARGET_SHARD_BYTES // largest))
    shards = [min(size, num_clips - first) for first in range(0, num_clips, size)]
    return [*(Work(gpu=n * gpu, decode=n * clip.decode, num_bytes=n * num_bytes) for n in shards), *work]


def _sweep_work(
    experiment: Experiment,
    encoders: Mapping[str, EncoderCosts],
    cuts: Mapping[str, tuple[int, ...]],
    variants: Sequence[VariantCosts],
    num_gpus: int,
) -> list[Work]:
    """Estimate the groups of runs that the engines would distribute over so many workers."""
    machine = MachineCosts(decode={}, read=0.0, write=0.0)  # bytes are charged to the shared disk
    by_name = {v.name: v for v in variants}
    pairs = [(v.name, seed) for seed in experiment.sweep.seeds for v in variants]
    work = []
    for runs in run_groups(experiment, pairs, fuse=True, num_workers=num_gpus):
        group = [by_name[name] for name in runs.names]
        gpu = cached_seconds(machine, encoders, cuts, group) + sum(v.own_seconds for v in group)
        num_bytes = 0.0
        for modality, encoder in encoders.items():  # a group reads each boundary once for all its variants
            using = [v for v in group if modality in v.starts]
            boundaries = {max(k for k in cuts[modality] if k <= v.starts[modality]) for v in using}
            passes = max((v.passes * v.distinct[modality] for v in using), default=0.0)
            num_bytes += passes * sum(encoder.state_bytes[k] for k in boundaries)
        work.append(Work(gpu=gpu, num_bytes=num_bytes))
    return work
