"""Estimate extraction and sweep on clusters of GPUs for `plan --simulate`: operations over a rate, bytes over a disk.

Nothing of the cluster is measured here. Operations are counted exactly, on architectures with random weights where the
weights are absent; seconds are operations over a rate that is given, or, on a GPU, measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...cache.format.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ...extract.executors.device import chosen_device, machine_name, say_device
from ...extract.stage.experiment_file import ExperimentSource
from ...progress import progress_bar
from ..config.experiment import Experiment
from ..model.flops import operations
from ..model.joint_model import JointModel
from ..model.precision import Precision
from ..sweep.sweep import run_groups
from .choose_cuts import cached_seconds
from .cluster import MOST_GPUS, PEAK_TFLOPS, UTILISATION, Phase, SimulateSettings, Work, phase, stops_helping
from .cost_model import EncoderCosts, MachineCosts, VariantCosts, distinct_texts, variant_costs
from .measure import cached_measurement, encoder_costs, timed
from .plan import STORED_BYTES, encoder_key, plannable, restored_costs, sample_inputs, variant_key
from .published_sizes import PublishedSizesContext
from .workload import SampleStates, answer_pass, train_pass

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
        counts: of each encoder, in operations.
        unit_seconds: of each encoder, all units on one item, on the machine that counted.
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
    counts: Mapping[str, EncoderCosts]
    unit_seconds: Mapping[str, float]
    encoders: Mapping[str, EncoderCosts]
    variants: tuple[VariantCosts, ...]
    num_bytes: int
    clusters: Mapping[int, tuple[Phase, Phase]]
    helps: tuple[int, int]
    enough: int | None


def simulate(
    experiment: Experiment | ExperimentSource,
    settings: SimulateSettings,
    *,
    device: str = "auto",
    fresh: bool = False,
    progress: bool = True,
) -> Simulation:
    """Estimate extraction and sweep on clusters from counted operations. Needs neither weights nor clips.

    Args:
        experiment: an experiment's TOML, or the experiment itself, with its boundaries named.
        settings: assumptions about the cluster.
        device: where operations are counted, and, if a GPU, timed; "auto" is a GPU where there is one.
        fresh: ignore the counts of earlier calls.
        progress: show a tqdm bar.

    Raises:
        SettingsError, ManifestError, EncoderError: an experiment of imported features, unnamed boundaries, or a data
            set or encoder of unknown size.
    """
    experiment, device = plannable(experiment), chosen_device(device)
    for modality, chosen in experiment.extraction.encoders.items():
        if chosen.cut == "auto":
            raise SettingsError(f'encoders.{modality}: cut = "auto" needs a plan; name the boundaries to simulate')
    if progress:
        say_device(device)
    rate = None  # each encoder's own
    if settings.tflops is not None or torch.device(device).type != "cuda":
        rate = 1e12 * (settings.tflops or PEAK_TFLOPS * UTILISATION)
    with tempfile.TemporaryDirectory(prefix="talik-simulate-") as folder:
        context = PublishedSizesContext(experiment, Path(folder), device=device)
        count = partial(cached_measurement, device=device, fresh=fresh)
        counts, unit_seconds = _count_encoders(context, count, progress=progress)
        mean_rate = sum(sum(c.forward) for c in counts.values()) / sum(unit_seconds.values())
        variants = _count_variants(context, count, rate=rate or mean_rate, progress=progress)
        cuts = {
            m: tuple(context.encoders[m].boundary(k) for k in e.cuts) for m, e in experiment.extraction.encoders.items()
        }
    encoders = {m: c.scaled(1 / (rate or sum(c.forward) / unit_seconds[m])) for m, c in counts.items()}
    _check_cuts(cuts, variants)
    disk, num_clips = settings.disk * 1e9, len(context.manifest.clips)
    shards = _extraction_work(experiment, encoders, cuts, settings, num_clips=num_clips)

    def extraction(count: int) -> Phase:
        return phase(shards, count, disk=disk)

    def sweep(count: int) -> Phase:
        return phase(_sweep_work(experiment, encoders, cuts, variants, count), count, disk=disk)

    def ends(count: int, hours: float) -> bool:
        return extraction(count).seconds + sweep(count).seconds <= 3600 * hours

    return Simulation(
        settings=settings,
        machine=machine_name(device),
        notes=context.manifest.notes,
        rate=rate,
        num_clips=num_clips,
        num_texts=len(distinct_texts(context.manifest)),
        num_runs=sum(v.num_seeds for v in variants),
        counts=counts,
        unit_seconds=unit_seconds,
        encoders=encoders,
        variants=tuple(variants),
        num_bytes=int(sum(u.num_bytes for u in shards)),
        clusters={count: (extraction(count), sweep(count)) for count in settings.shown},
        helps=(stops_helping(extraction), stops_helping(sweep)),
        enough=next((n for n in range(1, MOST_GPUS + 1) if settings.hours and ends(n, settings.hours)), None),
    )


def _count_encoders(
    context: PublishedSizesContext, stored: Callable[..., tuple[Any, float]], *, progress: bool
) -> tuple[dict[str, EncoderCosts], dict[str, float]]:
    """Count the operations of every encoder on one item, and time its units, or take both from an earlier call."""
    texts, blank = distinct_texts(context.manifest)[:_TEXTS] or ["a"], context.blank()

    def count(encoder: Encoder) -> dict[str, Any]:
        num = len(texts) if encoder.modality == "text" else 1
        inputs = sample_inputs(context, encoder, [blank], texts)
        item_bytes = STORED_BYTES[context.experiment.extraction.store.dtype]
        operations_of = partial(map, operations)
        costs = encoder_costs(encoder, lambda: inputs, operations_of, count=num, item_bytes=item_bytes, backward=False)
        with torch.no_grad():
            state = encoder.embed(inputs)
            seconds = timed(lambda: encoder.run(state, 0, encoder.num_units), context.device, lasting=0) / num
        return {"operations": costs, "unit_seconds": seconds}

    counts, unit_seconds = {}, {}
    for modality, encoder in progress_bar(context.encoders.items(), desc="counting", disable=not progress):
        what = encoder_key(context, encoder, texts) | {"count": "encoder"}
        found, _ = stored(what, partial(count, encoder))
        unit_seconds[modality] = found["unit_seconds"]
        counts[modality] = restored_costs(found["operations"], context.manifest)
    return counts, unit_seconds


def _count_variants(
    context: PublishedSizesContext, stored: Callable[..., tuple[Any, float]], *, rate: float, progress: bool
) -> list[VariantCosts]:
    """Count the operations of every variant above its starts, or take them from an earlier call, and divide by rate."""
    experiment, manifest, blank = context.experiment, context.manifest, context.blank()
    questions = list(manifest.questions[:_BATCH])
    states = SampleStates(context.encoders, context.sampling, {q.clip_id: blank for q in questions})
    variants = []
    for variant in progress_bar(experiment.variants, desc="counting", disable=not progress):
        model = context.build(variant, seed=0, precision=Precision())  # no count depends on it

        def count(model: JointModel = model) -> list[int]:
            batch, found = states.batch(model.starts(), questions), []
            for run in (train_pass, answer_pass):
                model.train(run is train_pass)
                found.append(operations(partial(run, model, batch)) // len(questions))
            return found

        (train, answer), _ = stored(variant_key(context, variant, questions) | {"count": "step"}, count)
        seconds = {"train": train / rate, "answer": answer / rate}
        variants.append(variant_costs(experiment, variant, manifest, model.starts(), **seconds))
    return variants


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
