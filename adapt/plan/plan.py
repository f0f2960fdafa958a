"""`plan`: measure this machine on a few clips, then say what to cache, what every variant costs, and what fuses.

The outcome is written beside the experiment as <name>.plan.json: `cut = "auto"` takes its boundaries from there, and
the report shows what was predicted beside what a run took.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...cache.atomic_io import write_file
from ...cache.format.spec import STORAGE_DTYPES
from ...config import to_mapping
from ...errors import SettingsError
from ...extract.datasets.types import Question
from ...extract.encoders.encoder import Encoder
from ...extract.stage.settings import plan_path
from ..config.experiment import Experiment, VariantSettings, load_experiment
from ..training.experiment_context import ExperimentContext
from .choose_cuts import Choice, cached_seconds, choose, groups_of, live_seconds
from .cost_model import EncoderCosts, MachineCosts, VariantCosts
from .measure import measure_encoder, measure_machine, sample_clips, timed
from .measurement_cache import kept_times, machine_name
from .workload import SampleStates, measure_step

STORED_BYTES = {name: np.dtype(code).itemsize for name, code in STORAGE_DTYPES.items()}
_TEXTS = 32


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """What one variant will cost, all seeds together.

    Args:
        name: the variant's.
        num_seeds, epochs: how often, and how long, it is trained.
        cut: the boundary that each modality is read from; empty without a cache.
        starts: the boundary that each modality needs.
        seconds: training and evaluation from the cache, trained alone; 0 without a cache.
        seconds_live: the same decoding and encoding every batch anew.
        epochs_until_paid: epochs of this variant alone, one seed, after which extracting has paid; None if never.
        peak_bytes: memory of one training step.
    """

    name: str
    num_seeds: int
    epochs: int
    cut: Mapping[str, int]
    starts: Mapping[str, int]
    seconds: float
    seconds_live: float
    epochs_until_paid: float | None
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an experiment will cost on one machine.

    Args:
        machine: processor or GPU that was measured.
        device: "cpu", "cuda", …
        cuts: boundaries to cache by modality; empty where nothing is.
        reason: why nothing is cached.
        num_bytes: of the store. free_bytes: left on its disk now.
        opening: seconds of opening the encoders and the data set, by each of stage 1 and the sweep; 0 where they
            were open already.
        extraction: seconds of stage 1 after that.
        groups: names of the variants that train in lockstep.
        group_seconds: training seconds of each group, all seeds.
        variants: each alone.
        machine_costs, encoder_costs: what was measured.
    """

    machine: str
    device: str
    cuts: Mapping[str, tuple[int, ...]]
    reason: str
    num_bytes: int
    free_bytes: int
    opening: float
    extraction: float
    groups: tuple[tuple[str, ...], ...]
    group_seconds: tuple[float, ...]
    variants: tuple[VariantPlan, ...]
    machine_costs: MachineCosts
    encoder_costs: Mapping[str, EncoderCosts]

    @property
    def seconds(self) -> float:
        """The whole sweep: extraction, then the groups one after another; without a cache, every run live."""
        if not self.cuts:
            return self.seconds_live
        return 2 * self.opening + self.extraction + sum(self.group_seconds)

    @property
    def seconds_live(self) -> float:
        """The whole sweep with every batch decoded and encoded anew."""
        return self.opening + sum(v.seconds_live for v in self.variants)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**json.loads(json.dumps(asdict(self))), "seconds": self.seconds, "seconds_live": self.seconds_live}


def plan(
    experiment: Experiment | Path | str,
    *,
    device: str = "cpu",
    fresh: bool = False,
    progress: bool = True,
    context: ExperimentContext | None = None,
) -> Plan:
    """Measure, choose and write <experiment>.plan.json beside the experiment's file.

    Args:
        experiment: an experiment's TOML, or the experiment itself.
        device: where encoders and training will run.
        fresh: measure again what was kept from an earlier plan on this machine.
        progress: show a tqdm bar.
        context: the opened encoders of this experiment.

    Raises:
        SettingsError, ManifestError: what the experiment names is not there or does not fit.
        MissingMediaError, MediaError: no clip to measure on, or one that cannot be decoded.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    if not experiment.variants:
        raise SettingsError(f"{experiment.name}: no [[variants]]; a plan is about variants")
    for modality, chosen in experiment.extraction.encoders.items():
        if chosen.is_imported:
            raise SettingsError(f"encoders.{modality}: {chosen.model} are imported; a plan is about what is computed")
    context = context or ExperimentContext(experiment, device=device)
    made = _Planning(context, device=device, fresh=fresh, progress=progress).made()
    write_file(plan_path(experiment.base, experiment.name), json.dumps(made.to_json(), indent=1).encode())
    return made


class _Planning:
    def __init__(self, context: ExperimentContext, *, device: str, fresh: bool, progress: bool) -> None:
        self.context, self.device, self.fresh, self.progress = context, device, fresh, progress
        self.experiment = context.experiment
        self.opening = timed(lambda: (context.manifest, context.sampling), device)  # the sampling opens all encoders
        self.questions = {s: _split(context, s) for s in ("train", "val", "test")}

    def made(self) -> Plan:
        experiment, context = self.experiment, self.context
        folder = experiment.extraction.store_path.parent
        clips = sample_clips(context.manifest)
        machine, media = measure_machine(clips, context.sampling, context.encoders, folder, device=self.device)
        self.media = {c.id: m for c, m in zip(clips, media, strict=False)}
        steps = tqdm(
            [*context.encoders, *experiment.variants], desc="measuring", unit="part", disable=not self.progress
        )
        encoders: dict[str, EncoderCosts] = {}
        variants: list[VariantCosts] = []
        for part in steps:
            if isinstance(part, VariantSettings):
                variants.append(self._variant(part))
            else:
                encoders[part] = self._encoder(context.encoders[part])
        free = shutil.disk_usage(folder).free
        budget = experiment.extraction.store.disk_budget_bytes
        choice = choose(machine, encoders, variants, budget_bytes=free if budget is None else min(budget, free))
        return self._plan(machine, encoders, variants, choice, free)

    def _encoder(self, encoder: Encoder) -> EncoderCosts:
        manifest, sampling = self.context.manifest, self.context.sampling
        texts = list(dict.fromkeys(q.text for q in manifest.questions if q.text))
        is_text = encoder.modality == "text"
        what = {"identity": encoder.identity(encoder.num_units), "items": len(self.media), "texts": texts[:_TEXTS]}
        if not is_text:
            what["sampling"] = sampling.identity(encoder.modality)

        def measure() -> dict[str, Any]:
            found = measure_encoder(
                encoder,
                sampling,
                list(self.media.values()),
                texts[:_TEXTS] or ["a"],
                num_items=0,
                item_bytes=STORED_BYTES[self.experiment.extraction.store.dtype],
            )
            return asdict(found)

        what["dtype"] = self.experiment.extraction.store.dtype
        found, slower = kept_times(what, measure, device=self.device, fresh=self.fresh)
        found = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        costs = EncoderCosts(**{**found, "num_items": len(texts) if is_text else len(manifest.clips)})
        return costs.slower(slower)

    def _variant(self, variant: VariantSettings) -> VariantCosts:
        settings = self.experiment.train_settings(variant)
        batch = self._batch(settings.batch_size)
        answered = self.questions["val"] or self.questions["test"]
        clips = (  # answering always takes the questions of a clip together
            _clips_a_question(self.questions["train"], settings.batch_size) if settings.group_by_clip else 1.0,
            _clips_a_question(answered, settings.eval_batch_size),
        )
        model = self.context.build(variant, seed=0)
        identities = {m: e.identity(e.num_units) for m, e in model.encoders.items()}
        what = {
            "encoders": identities,
            "adapter": to_mapping(variant.adapter),
            "insertion": to_mapping(variant.insertion or "none"),
            "placement": variant.placement,
            "task": to_mapping(self.experiment.task),
            "batch": [settings.batch_size, settings.amp, self.context.sampling.num_segments],
            "clips": clips,
            "texts": [q.text for q in batch],
        }

        def measure() -> list[float]:
            states = SampleStates(self.context.encoders, self.context.sampling, self.media)
            return list(measure_step(model, settings, states, batch, device=self.device, clips=clips))

        (train, answer, peak), slower = kept_times(what, measure, device=self.device, fresh=self.fresh)
        distinct = distinct_share(self.questions["train"], model.starts(), settings.batch_size)
        return VariantCosts(
            name=variant.name,
            group=settings.data_order,
            starts=model.starts(),
            num_seeds=len(self.experiment.sweep.seeds),
            epochs=settings.epochs,
            num_train=len(self.questions["train"]),
            num_val=len(self.questions["val"]),
            num_test=len(self.questions["test"]),
            train=train * slower,
            answer=answer * slower,
            distinct={m: share if m == "text" else min(share, clips[0]) for m, share in distinct.items()},
            peak_bytes=int(peak),
            computed={m: 1.0 if m == "text" else clips[0] for m in distinct},
        )

    def _batch(self, size: int) -> list[Question]:
        asked = [q for q in self.context.manifest.questions if q.clip_id in self.media]
        if not asked:
            raise SettingsError(f"{self.experiment.name}: no question about the clips measured on")
        step = max(1, len(asked) // size)
        chosen = asked[::step][:size]
        return [chosen[i % len(chosen)] for i in range(size)]

    def _plan(
        self,
        machine: MachineCosts,
        encoders: Mapping[str, EncoderCosts],
        variants: Sequence[VariantCosts],
        choice: Choice,
        free: int,
    ) -> Plan:
        groups = groups_of(variants)
        seeds = len(self.experiment.sweep.seeds)
        together = [
            seeds * (cached_seconds(machine, encoders, choice.cuts, g) + sum(v.own_seconds for v in g)) for g in groups
        ]
        return Plan(
            machine=machine_name(self.device),
            device=self.device,
            cuts=choice.cuts,
            reason=choice.reason,
            num_bytes=choice.num_bytes,
            free_bytes=free,
            opening=self.opening,
            extraction=choice.extraction,
            groups=tuple(tuple(v.name for v in g) for g in groups),
            group_seconds=tuple(together) if choice.cached else (),
            variants=tuple(_alone(machine, encoders, choice, v) for v in variants),
            machine_costs=machine,
            encoder_costs=encoders,
        )


def _clips_a_question(questions: Sequence[Question], size: int) -> float:
    """Clips a question in batches that take the questions of one clip after another."""
    if not questions:
        return 1.0
    return min(1.0, len({q.clip_id for q in questions}) / len(questions) + 1 / size)


def distinct_share(questions: Sequence[Question], modalities: Iterable[str], size: int) -> dict[str, float]:
    """Distinct clips, and texts, a question of a random training batch: the mean of a few drawn ones."""
    generator = torch.Generator().manual_seed(0)
    shares: dict[str, list[float]] = {m: [] for m in modalities}
    for _ in range(16):
        drawn = [questions[i] for i in torch.randperm(len(questions), generator=generator)[:size].tolist()]
        for modality, found in shares.items():
            names = {q.text if modality == "text" else q.clip_id for q in drawn}
            found.append(len(names) / len(drawn))
    return {m: statistics.mean(found) for m, found in shares.items()}


def _alone(
    machine: MachineCosts, encoders: Mapping[str, EncoderCosts], choice: Choice, variant: VariantCosts
) -> VariantPlan:
    live = live_seconds(machine, encoders, variant)
    below = cached_seconds(machine, encoders, choice.cuts, [variant]) if choice.cached else 0.0
    saved_an_epoch = (live - below) / max(1, variant.epochs)
    return VariantPlan(
        name=variant.name,
        num_seeds=variant.num_seeds,
        epochs=variant.epochs,
        cut={m: max(k for k in choice.cuts[m] if k <= s) for m, s in variant.starts.items()} if choice.cached else {},
        starts=variant.starts,
        seconds=variant.num_seeds * (below + variant.own_seconds) if choice.cached else 0.0,
        seconds_live=variant.num_seeds * (live + variant.own_seconds),
        epochs_until_paid=choice.extraction / saved_an_epoch if choice.cached and saved_an_epoch > 0 else None,
        peak_bytes=variant.peak_bytes,
    )


def _split(context: ExperimentContext, split: str) -> Sequence[Question]:
    return context.manifest.split(split) if split in context.manifest.splits else ()
