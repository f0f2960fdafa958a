"""Plan an experiment: measure this machine on a few clips, choose what to cache, predict the cost of every variant.

The outcome is written beside the experiment as <name>.plan.json: `cut = "auto"` takes its boundaries from there, and
the report shows the predicted beside the measured seconds.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...cache.atomic_io import write_file
from ...cache.format.spec import STORAGE_DTYPES
from ...config import from_mapping, to_mapping
from ...errors import SettingsError, counted
from ...extract.datasets.types import Manifest, Question
from ...extract.encoders.encoder import Encoder
from ...extract.executors.device import machine_name, say_device
from ...extract.media.clip_media import ClipMedia
from ...extract.stage.experiment_file import ExperimentSource
from ...extract.stage.settings import plan_path
from ...progress import progress_bar
from ..config.experiment import Experiment, VariantSettings, load_experiment
from ..training.experiment_context import ExperimentContext
from .choose_cuts import Choice, cached_seconds, choose, groups_of, live_seconds
from .compute_costs import ComputeCost, compute_costs
from .cost_model import (
    EncoderCosts,
    MachineCosts,
    VariantCosts,
    clips_per_question,
    distinct_texts,
    variant_costs,
)
from .measure import (
    cached_measurement,
    encoder_costs,
    measure_machine,
    sample_clips,
    seconds_of,
    timed,
)
from .workload import SampleStates, measure_step

STORED_BYTES = {name: np.dtype(code).itemsize for name, code in STORAGE_DTYPES.items()}
_TEXTS = 32

if TYPE_CHECKING:
    import pandas

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """Predicted cost of one variant, all seeds together.

    Args:
        name: the variant's.
        num_seeds, epochs: how often, and how long, it is trained.
        cut, starts: by modality, the boundary that it is read from ({} without a cache), and the one that it needs.
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """Predicted cost of an experiment on one machine.

    Args:
        machine, device: processor or GPU that was measured, and "cpu", "cuda", …
        cuts: boundaries to cache by modality; empty where nothing is.
        reason: why nothing is cached.
        num_bytes: of the store. free_bytes: left on its disk now.
        opening: seconds of opening the encoders and the data set, by each of stage 1 and the sweep; 0 where they
            were open already.
        extraction: seconds of stage 1 after that.
        groups: names of the variants that train in lockstep. group_seconds: training of each group, all seeds.
        variants: each alone.
        machine_costs, encoder_costs: as measured.
        compute: by modality, what the experiment computes the states in. compute_costs: by modality, what each choice
            costs. dtype: that states are stored in.
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
    compute: Mapping[str, str]
    compute_costs: Mapping[str, tuple[ComputeCost, ...]]
    dtype: str

    def __repr__(self) -> str:
        cached = ", ".join(f"{m} {list(k)}" for m, k in self.cuts.items()) or f"nothing ({self.reason})"
        return f"Plan({counted(len(self.variants), 'variant')} on {self.machine}: cache {cached}; {self.seconds:.0f} s)"

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table of the variants: seconds with the cache and live, memory of a step."""
        import pandas

        columns = ("name", "num_seeds", "epochs", "seconds", "seconds_live", "epochs_until_paid", "peak_bytes")
        return pandas.DataFrame([{name: getattr(v, name) for name in columns} for v in self.variants])

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.to_pandas().to_html(index=False)}"

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
        """Convert everything to plain values."""
        return {**json.loads(json.dumps(asdict(self))), "seconds": self.seconds, "seconds_live": self.seconds_live}


def plan(
    experiment: Experiment | ExperimentSource,
    *,
    device: str = "auto",
    fresh: bool = False,
    progress: bool = True,
    context: ExperimentContext | None = None,
) -> Plan:
    """Measure this machine, choose what to cache, and write <experiment>.plan.json beside the experiment's file.

    Args:
        experiment: an experiment's TOML, its tables as a dict, or the experiment itself. Variants with encoders or data
            of their own are left out.
        device: where encoders and training will run; "auto" is a GPU where there is one. That of `context` if given.
        fresh: ignore the measurements of earlier plans on this machine.
        progress: show a tqdm bar.
        context: the opened encoders of this experiment.

    Raises:
        SettingsError, ManifestError: a setting, model or data set of the experiment that is missing or does not fit.
        MissingMediaError, MediaError: no clip to measure on, or one that cannot be decoded.

    Example:
        >>> import talik
        >>> planned = talik.plan("auto.toml", progress=False)
        >>> [variant.name for variant in planned.variants]
        ['probe', 'trimodal', 'lora']
    """
    experiment = plannable(experiment)
    context = context or ExperimentContext(experiment, device=device)
    device = context.device
    if progress:
        say_device(device)
    context.check_files()
    opening = timed(lambda: (context.manifest, context.sampling), device, lasting=0)  # the sampling opens all encoders
    clips = sample_clips(context.manifest)
    folder = experiment.extraction.store_path.parent
    machine, decoded = measure_machine(clips, context.sampling, context.encoders, folder, device=device)
    media = {c.id: m for c, m in zip(clips, decoded, strict=False)}
    encoders, variants = _measure(context, media, fresh=fresh, progress=progress)
    free = shutil.disk_usage(experiment.extraction.store_path.parent).free
    budget = experiment.extraction.store.disk_budget_bytes
    choice = choose(machine, encoders, variants, budget_bytes=free if budget is None else min(budget, free))
    groups = groups_of(variants)
    together = [cached_seconds(machine, encoders, choice.cuts, g) + sum(v.own_seconds for v in g) for g in groups]
    made = Plan(
        machine=machine_name(device),
        device=device,
        cuts=choice.cuts,
        reason=choice.reason,
        num_bytes=choice.num_bytes,
        free_bytes=free,
        opening=opening,
        extraction=choice.extraction,
        groups=tuple(tuple(v.name for v in g) for g in groups),
        group_seconds=tuple(len(experiment.sweep.seeds) * s for s in together) if choice.cached else (),
        variants=tuple(_alone(machine, encoders, choice, v) for v in variants),
        machine_costs=machine,
        encoder_costs=encoders,
        compute={m: one.compute for m, one in experiment.extraction.encoders.items()},
        compute_costs={
            m: _compute_costs(context, m, boundary, media, fresh=fresh)
            for m, boundary in _prefix_ends(choice, variants).items()
        },
        dtype=experiment.extraction.store.dtype,
    )
    write_file(plan_path(experiment.base, experiment.name), json.dumps(made.to_json(), indent=1).encode())
    return made


def plannable(experiment: Experiment | ExperimentSource) -> Experiment:
    """Load an experiment, leave out variants with encoders or data of their own, and check that it can be planned.

    Raises:
        SettingsError: no variant, or imported features.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    if not experiment.variants:
        raise SettingsError(f"{experiment.name}: no [[variants]]; a plan is about variants")
    if experiment.of_variants:
        own = ", ".join(experiment.of_variants)
        shared = tuple(v for v in experiment.variants if v.name not in experiment.of_variants)
        if not shared:
            raise SettingsError(f"{experiment.name}: every variant ({own}) has encoders or data of its own; plan none")
        _log.info("not planned, since they have encoders or data of their own: %s", own)
        experiment = replace(experiment, variants=shared, of_variants={})
    for modality, chosen in experiment.extraction.encoders.items():
        if chosen.is_imported:
            raise SettingsError(f"encoders.{modality}: {chosen.model} are imported; a plan is about what is computed")
    return experiment


def _measure(
    context: ExperimentContext, media: Mapping[str, ClipMedia], *, fresh: bool, progress: bool
) -> tuple[dict[str, EncoderCosts], list[VariantCosts]]:
    """Measure every encoder and every variant, or take them from an earlier plan."""
    experiment, manifest, device = context.experiment, context.manifest, context.device
    states = SampleStates(context.encoders, context.sampling, media)
    item_bytes = STORED_BYTES[experiment.extraction.store.dtype]
    encoders: dict[str, EncoderCosts] = {}
    variants: list[VariantCosts] = []
    for part in progress_bar(
        [*context.encoders, *experiment.variants], desc="measuring", unit="part", disable=not progress
    ):
        if isinstance(part, VariantSettings):
            settings, model = experiment.train_settings(part), context.build(part, seed=0)
            batch = _sample_batch(context, media, settings.batch_size)
            shares = clips_per_question(experiment, part, manifest)
            what = variant_key(context, part, batch) | {"settings": [settings.batch_size, model.precision.name, shares]}
            step = partial(measure_step, model, settings, states, batch, device=device, clips=shares)
            (train, answer, peak), slower = cached_measurement(what, step, device=device, fresh=fresh)
            seconds = {"train": train * slower, "answer": answer * slower}
            costs = variant_costs(experiment, part, manifest, model.starts(), **seconds, peak_bytes=int(peak))
            variants.append(costs)
        else:
            what, inputs, count = _sample_of(context, part, media)
            times = partial(_encoder_costs, context, part, inputs, count=count, item_bytes=item_bytes)
            found, slower = cached_measurement(what, times, device=device, fresh=fresh)
            encoders[part] = restored_costs(found, manifest).scaled(slower)
    return encoders, variants


def _sample_of(
    context: ExperimentContext, modality: str, media: Mapping[str, ClipMedia]
) -> tuple[dict[str, Any], Callable[[], dict[str, Tensor]], int]:
    """Return what an encoder is measured on: its description as JSON, what makes the batch, the number of items."""
    encoder, texts = context.encoders[modality], distinct_texts(context.manifest)[:_TEXTS] or ["a"]
    what = encoder_key(context, encoder, texts) | {"items": len(media)}
    inputs = partial(sample_inputs, context, encoder, list(media.values()), texts)
    return what, inputs, len(texts if modality == "text" else media)


def _encoder_costs(
    context: ExperimentContext, modality: str, inputs: Callable[[], dict[str, Tensor]], *, count: int, item_bytes: int
) -> dict[str, Any]:
    """Measure an encoder as training runs it; what stage 1 computes in another type, as it does."""
    encoder, prefix = context.encoders[modality], context.prefix_encoder(modality)
    meter = partial(seconds_of, device=context.device)
    found = encoder_costs(encoder, inputs, meter, count=count, item_bytes=item_bytes)
    if prefix is not encoder:
        below = encoder_costs(prefix, inputs, meter, count=count, item_bytes=item_bytes, backward=False)
        found |= {name: below[name] for name in ("embed", "forward")}
    return found


def _prefix_ends(choice: Choice, variants: Sequence[VariantCosts]) -> dict[str, int]:
    """Return by modality the highest boundary to cache; where nothing is, the highest that a variant starts from."""
    starts = [pair for v in variants for pair in v.starts.items()]
    return {m: max(choice.cuts.get(m) or [k for n, k in starts if n == m]) for m in dict(starts)}


def _compute_costs(
    context: ExperimentContext, modality: str, boundary: int, media: Mapping[str, ClipMedia], *, fresh: bool
) -> tuple[ComputeCost, ...]:
    key, inputs, count = _sample_of(context, modality, media)
    return compute_costs(context, modality, boundary, inputs, count=count, key=key, fresh=fresh)


def sample_inputs(
    context: ExperimentContext, encoder: Encoder, media: Sequence[ClipMedia], texts: Sequence[str]
) -> dict[str, Tensor]:
    """Preprocess the sample's clips, or texts, as one batch."""
    return encoder.preprocess(list(texts)) if encoder.modality == "text" else context.sampling.inputs(encoder, media)


def restored_costs(values: Mapping[str, Any], manifest: Manifest) -> EncoderCosts:
    """Restore an encoder's costs from plain values, with the number of items of the data set."""
    num_items = len(distinct_texts(manifest) if values["modality"] == "text" else manifest.clips)
    return from_mapping(EncoderCosts, {**values, "num_items": num_items}, where="")


def encoder_key(context: ExperimentContext, encoder: Encoder, texts: Sequence[str]) -> dict[str, Any]:
    """Describe as JSON the encoder, inputs and dtype that an encoder's costs depend on."""
    inputs = list(texts) if encoder.modality == "text" else context.sampling.identity(encoder.modality)
    dtype = context.experiment.extraction.store.dtype
    return {"encoder": encoder.identity(encoder.num_units), "inputs": inputs, "dtype": dtype}


def variant_key(context: ExperimentContext, variant: VariantSettings, batch: Sequence[Question]) -> dict[str, Any]:
    """Describe as JSON the encoders, adapter, task and questions that a variant's costs depend on."""
    return {
        "encoders": {m: e.identity(e.num_units) for m, e in context.used(variant).items()},
        "adapter": to_mapping(variant.adapter),
        "insertion": to_mapping(variant.insertion or "none"),
        "placement": variant.placement,
        "task": to_mapping(context.experiment.task),
        "texts": [q.text for q in batch],
        "answers": len(context.manifest.answers),
        "segments": context.sampling.num_segments,
    }


def _sample_batch(context: ExperimentContext, media: Mapping[str, ClipMedia], size: int) -> list[Question]:
    """Choose `size` questions about the sample's clips, repeated where they are fewer."""
    about = [q for q in context.manifest.questions if q.clip_id in media]
    if not about:
        raise SettingsError(f"{context.experiment.name}: no question about the clips measured on")
    chosen = about[:: max(1, len(about) // size)][:size]
    return [chosen[i % len(chosen)] for i in range(size)]


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
