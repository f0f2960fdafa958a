"""`plan --simulate`: an experiment's time on clusters of GPUs, counted from its encoders' and variants' operations.

Nothing of the cluster is measured here. Operations are counted exactly, on architectures with random weights where the
weights are not at hand; seconds are operations over a rate that is given, or, on a GPU, measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...cache.format.layout import TARGET_SHARD_BYTES, TARGET_SHARD_SECONDS
from ...config import to_mapping
from ...errors import SettingsError
from ...extract.datasets.types import Question
from ..config.experiment import Experiment, VariantSettings, load_experiment
from ..sweep.sweep import run_groups
from .choose_cuts import cached_seconds
from .cluster import PEAK_TFLOPS, UTILISATION, SimulateSettings
from .cost_model import EncoderCosts, MachineCosts, VariantCosts
from .counted import EncoderCounts, count_encoder, count_variant
from .measurement_cache import kept, machine_name
from .plan import STORED_BYTES, distinct_share
from .schedule import Phase, Work, phase, stops_helping
from .stand_in import PlaceholderContext
from .workload import SampleStates

_TEXTS = 16
_BATCH = 2
_MOST = 1024  # GPUs


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """One number of GPUs: both stages, one after the other."""

    extraction: Phase
    sweep: Phase

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.extraction.seconds + self.sweep.seconds


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What an experiment would take on clusters.

    Args:
        settings: what the cluster was taken to be.
        machine: where operations were counted.
        notes: on the data set.
        rate: operations a second of a GPU; None where each encoder has its measured one.
        num_clips, num_texts, num_runs: of the experiment.
        counts: of each encoder.
        encoders, variants: in seconds of one of the cluster's GPUs.
        num_bytes: of the store.
        clusters: by number of GPUs.
        helps: GPUs beyond which twice as many gain under 10 %, of extraction and of the sweep.
        enough: the fewest GPUs that end within `settings.hours`; None where none was asked for, or none do.
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
    clusters: Mapping[int, Simulated]
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
    """Count an experiment's operations and simulate extraction and sweep on clusters. Needs neither weights nor clips.

    Args:
        experiment: an experiment's TOML, or the experiment itself, with its boundaries named.
        settings: what the cluster is taken to be.
        device: where operations are counted, and, if a GPU, timed.
        fresh: count again what was kept from an earlier call.
        progress: show a tqdm bar.

    Raises:
        SettingsError, ManifestError, EncoderError: what the experiment names cannot be stood in for.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    if not experiment.variants:
        raise SettingsError(f"{experiment.name}: no [[variants]]; a simulation is about variants")
    for modality, chosen in experiment.extraction.encoders.items():
        if chosen.cut == "auto":
            raise SettingsError(f'encoders.{modality}: cut = "auto" needs a plan; name the boundaries to simulate')
    with tempfile.TemporaryDirectory(prefix="talik-simulate-") as folder:
        context = PlaceholderContext(experiment, Path(folder), device=device)
        return _Simulating(context, settings, device=device, fresh=fresh, progress=progress).made()


class _Simulating:
    def __init__(
        self, context: PlaceholderContext, settings: SimulateSettings, *, device: str, fresh: bool, progress: bool
    ) -> None:
        self.context, self.settings, self.device, self.fresh, self.progress = context, settings, device, fresh, progress
        self.experiment = context.experiment
        self.texts = list(dict.fromkeys(q.text for q in context.manifest.questions if q.text))
        measured = settings.tflops is None and torch.device(device).type == "cuda"
        given = PEAK_TFLOPS * UTILISATION if settings.tflops is None else settings.tflops
        self.rate = None if measured else given * 1e12
        self.disk = settings.disk * 1e9

    def made(self) -> Simulation:
        context, experiment = self.context, self.experiment
        parts = tqdm([*context.encoders, *experiment.variants], desc="counting", unit="part", disable=not self.progress)
        counts: dict[str, EncoderCounts] = {}
        variants: list[VariantCosts] = []
        blank = context.blank()
        states = SampleStates(context.encoders, context.sampling, {q.clip_id: blank for q in self._batch()})
        for part in parts:
            if isinstance(part, VariantSettings):
                variants.append(self._variant(part, states, self.rate or _mean_rate(counts)))
            else:
                counts[part] = self._counts(part)
        encoders = {m: self._costs(m, found) for m, found in counts.items()}
        self.cuts = {
            m: tuple(context.encoders[m].boundary(k) for k in chosen.cuts)
            for m, chosen in experiment.extraction.encoders.items()
        }
        self._check(variants)
        shards = self._extraction(encoders)

        def extraction(count: int) -> Phase:
            return phase(shards, count, disk=self.disk)

        def sweep(count: int) -> Phase:
            return phase(self._sweep(encoders, variants, count), count, disk=self.disk)

        def at(count: int) -> Simulated:
            return Simulated(extraction=extraction(count), sweep=sweep(count))

        return Simulation(
            settings=self.settings,
            machine=machine_name(self.device),
            notes=context.manifest.notes,
            rate=self.rate,
            num_clips=len(context.manifest.clips),
            num_texts=len(self.texts),
            num_runs=sum(v.num_seeds for v in variants),
            counts=counts,
            encoders=encoders,
            variants=tuple(variants),
            num_bytes=int(sum(u.num_bytes for u in shards)),
            clusters={count: at(count) for count in self.settings.shown},
            helps=(stops_helping(extraction), stops_helping(sweep)),
            enough=self._enough(at),
        )

    def _batch(self) -> list[Question]:
        return list(self.context.manifest.questions[:_BATCH])

    def _counts(self, modality: str) -> EncoderCounts:
        encoder = self.context.encoders[modality]
        what = {"count": encoder.identity(encoder.num_units), "texts": self.texts[:_TEXTS]}
        if modality != "text":
            what["sampling"] = self.context.sampling.identity(modality)

        def count() -> dict[str, Any]:
            texts = self.texts[:_TEXTS] or ["a"]
            return asdict(count_encoder(encoder, self.context.sampling, self.context.blank(), texts))

        found = kept(what, count, device=self.device, fresh=self.fresh)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        return EncoderCounts(**values)

    def _costs(self, modality: str, found: EncoderCounts) -> EncoderCosts:
        rate = self.rate or found.rate
        number = STORED_BYTES[self.experiment.extraction.store.dtype]
        return EncoderCosts(
            modality=modality,
            num_items=len(self.texts) if modality == "text" else len(self.context.manifest.clips),
            embed=found.embed / rate,
            forward=tuple(n / rate for n in found.forward),
            forward_backward=(),
            finish=found.finish / rate,
            state_bytes=tuple(n * number for n in found.numbers),
        )

    def _variant(self, variant: VariantSettings, states: SampleStates, rate: float) -> VariantCosts:
        context, settings = self.context, self.experiment.train_settings(variant)
        model, batch = context.build(variant, seed=0), self._batch()
        what = {
            "count": {m: e.identity(e.num_units) for m, e in model.encoders.items()},
            "adapter": to_mapping(variant.adapter),
            "insertion": to_mapping(variant.insertion or "none"),
            "placement": variant.placement,
            "task": to_mapping(self.experiment.task),
            "answers": len(context.manifest.answers),
            "segments": context.sampling.num_segments,
            "texts": [q.text for q in batch],
        }

        def count() -> list[int]:
            return list(count_variant(model, states, batch))

        train, answer = kept(what, count, device=self.device, fresh=self.fresh)
        manifest = context.manifest
        asked = {s: manifest.split(s) if s in manifest.splits else () for s in ("train", "val", "test")}
        return VariantCosts(
            name=variant.name,
            group=settings.data_order,
            starts=model.starts(),
            num_seeds=len(self.experiment.sweep.seeds),
            epochs=settings.epochs,
            num_train=len(asked["train"]),
            num_val=len(asked["val"]),
            num_test=len(asked["test"]),
            train=train / rate,
            answer=answer / rate,
            distinct=distinct_share(asked["train"], model.starts(), settings.batch_size),
            peak_bytes=0,
        )

    def _check(self, variants: Sequence[VariantCosts]) -> None:
        for variant in variants:
            for modality, start in variant.starts.items():
                if min(self.cuts[modality]) > start:
                    raise SettingsError(
                        f"encoders.{modality}: cut: found {list(self.cuts[modality])}, expected a boundary of at most "
                        f"{start}, where variant {variant.name!r} starts"
                    )

    def _extraction(self, encoders: Mapping[str, EncoderCosts]) -> list[Work]:
        """Shards of clips, and one unit of texts."""
        chosen = dict(self.experiment.extraction.encoders.items())
        clip = {"gpu": 0.0, "num_bytes": 0.0}
        works: list[Work] = []
        largest = 0
        for modality, costs in encoders.items():
            cuts, times = self.cuts[modality], 1 + chosen[modality].views
            seconds = times * (costs.embed + costs.run(0, max(cuts)))
            num_bytes = times * sum(costs.state_bytes[k] for k in cuts)
            if modality == "text":
                works.append(Work(gpu=costs.num_items * seconds, num_bytes=costs.num_items * num_bytes))
                continue
            clip["gpu"] += seconds
            clip["num_bytes"] += num_bytes
            largest = max(largest, *(costs.state_bytes[k] for k in cuts))
        if not clip["num_bytes"]:
            return works
        one = Work(**clip, decode=self.settings.decode / self.settings.cores)
        by_time = int(TARGET_SHARD_SECONDS / max(one.seconds(self.disk), 1e-9))
        size = self.experiment.extraction.store.shard_items or max(1, min(by_time, TARGET_SHARD_BYTES // largest))
        total = len(self.context.manifest.clips)
        shards = [min(size, total - first) for first in range(0, total, size)]
        return [*(Work(gpu=n * one.gpu, decode=n * one.decode, num_bytes=n * one.num_bytes) for n in shards), *works]

    def _sweep(
        self, encoders: Mapping[str, EncoderCosts], variants: Sequence[VariantCosts], num_gpus: int
    ) -> list[Work]:
        """The groups that the engines would deal out to so many workers."""
        machine = MachineCosts(decode={}, read=0.0, write=0.0)  # the disk is the schedule's
        by_name = {v.name: v for v in variants}
        pairs = [(v.name, seed) for seed in self.experiment.sweep.seeds for v in variants]
        units = []
        for runs in run_groups(self.experiment, pairs, fuse=True, num_workers=num_gpus):
            group = [by_name[name] for name in runs.names]
            gpu = cached_seconds(machine, encoders, self.cuts, group) + sum(v.own_seconds for v in group)
            units.append(Work(gpu=gpu, num_bytes=self._read(encoders, group)))
        return units

    def _read(self, encoders: Mapping[str, EncoderCosts], group: Sequence[VariantCosts]) -> float:
        """Bytes that variants trained on the same batches read: each boundary once for all."""
        total = 0.0
        for modality, costs in encoders.items():
            using = [v for v in group if modality in v.starts]
            boundaries = {max(k for k in self.cuts[modality] if k <= v.starts[modality]) for v in using}
            passes = max((v.passes * v.distinct[modality] for v in using), default=0.0)
            total += passes * sum(costs.state_bytes[k] for k in boundaries)
        return total

    def _enough(self, at: Callable[[int], Simulated]) -> int | None:
        """The fewest GPUs within the hours asked for."""
        hours = self.settings.hours
        if hours is None:
            return None
        return next((n for n in range(1, _MOST + 1) if at(n).seconds <= 3600 * hours), None)


def _mean_rate(counts: Mapping[str, EncoderCounts]) -> float:
    """Of all encoders' units together, where it was counted."""
    return sum(sum(c.forward) for c in counts.values()) / sum(c.seconds for c in counts.values())
