"""An experiment's TOML as one frozen value: stage 1's settings, the task, the training defaults and the variants."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ...config import Amount, Count, CountOrZero, ShareBelowOne, from_mapping, settings_class, to_mapping
from ...errors import BackendError, PlugInError, SettingsError, unknown_name
from ...extract.stage.experiment_file import ExperimentFile, ExperimentSource, read_experiment
from ...extract.stage.settings import VARIANT_TABLES, ExtractSettings, check_extraction, file_settings, variant_settings
from ...user_code import import_user_code
from ..adapters.registry import adapter_settings
from ..model.heads import TaskSettings
from ..model.precision import PrecisionName
from ..model.registry import LOSSES, check_part
from .check_experiment import check_experiment
from .earlier_defaults import keep_earlier_defaults
from .search_space import SearchPoint, same_settings, written_out
from .sweep_settings import SweepSettings


@settings_class
class TrainSettings:
    """How a variant is trained.

    Args:
        epochs: passes over the training questions at most.
        batch_size: questions a step.
        eval_batch_size: questions a batch of validation and test; results do not depend on it beyond the last bits.
        lr: peak learning rate of the adapter's parameters.
        head_lr: peak learning rate of the head's parameters; `lr` when not given.
        weight_decay: AdamW's, on matrices only (vectors, gates and state matrices are not decayed).
        warmup: share of all steps in which the rates rise linearly, 0 to 1; a cosine to zero follows.
        clip_norm: largest gradient norm; 0 for no clipping.
        label_smoothing: of the cross-entropy, 0 to 1.
        loss: a registered loss in place of the cross-entropy: its `kind` and that kind's own settings.
        patience: epochs without a better validation before training stops; 0 never stops early.
        precision: "bfloat16" holds the frozen units' weights and the states between them in bfloat16 and runs adapters
            under autocast, what is trained staying float32; "float32" narrows nothing; "auto" takes bfloat16 on a GPU
            that has it and float32 elsewhere. (Earlier files say `amp`: "auto", "bf16", "off".)
        num_threads: CPU threads of the forward and backward pass; 0 leaves torch's own choice. Results are bit-equal
            at the same number only.
        drop_last: leave out a last training batch of fewer than batch_size questions.
        accumulate: batches an optimiser step; its gradient is that of one batch of so many times the size.
        group_by_clip: fill training batches with all questions of one clip after another, clips in random order; a
            clip's states are then read once a batch, and run once up to where the question enters.
        checkpoint_units: keep no activations of the encoders' units, but run them again in the backward pass.
        ema: decay of the exponential moving average of what is trained, 0 to 1; evaluated and saved is the average.
            0 for none.
        compile: run the encoders' units through torch.compile; on CUDA only.
        checkpoint_minutes: minutes after which a checkpoint is written in the middle of an epoch too; 0 for at the ends
            of epochs, and on a signal, alone. It changes no result.
    """

    epochs: Count = 10
    batch_size: Count = 32
    eval_batch_size: Count = 64
    lr: Amount = 1e-3
    head_lr: Amount | None = None
    weight_decay: Amount = 0.05
    warmup: ShareBelowOne = 0.1
    clip_norm: Amount = 1.0
    label_smoothing: ShareBelowOne = 0.0
    loss: dict[str, Any] | None = None
    patience: CountOrZero = 0
    precision: PrecisionName = "auto"
    num_threads: CountOrZero = 0
    drop_last: bool = False
    accumulate: Count = 1
    group_by_clip: bool = False
    checkpoint_units: bool = False
    ema: ShareBelowOne = 0.0
    compile: bool = False
    checkpoint_minutes: Amount = 10.0

    def __post_init__(self) -> None:
        if self.loss is not None:
            with _left_to_the_run():
                check_part(LOSSES, self.loss, where="loss")
            if self.label_smoothing:
                raise SettingsError("label_smoothing: is of the cross-entropy; expected 0 beside a loss of one's own")

    @property
    def data_order(self) -> str:
        """Describe the settings that are equal where trainings of one seed see the same batches, computed alike."""
        parts = [f"batches of {self.batch_size}, {self.eval_batch_size} in evaluation"]
        parts += ["last one dropped"] * self.drop_last + ["by clip"] * self.group_by_clip
        parts += [f"{self.num_threads} threads"] * bool(self.num_threads)
        return ", ".join(parts)


@settings_class
class VariantSettings:
    """A named adapter with its settings, its insertion and the training settings that it changes.

    Args:
        name: of the variant, without spaces and slashes: its folder below runs/ and its row in reports.
        adapter: `kind`, and that kind's own settings.
        insertion: "last K"; depths from 0.0 to 1.0, the same for every encoder; or by modality a list of boundaries and
            depths, or "aligned" with the one that has a list, all of one length: the i-th insertion joins the i-th
            boundary of every modality (see `insertion`). None for an adapter without insertion. For one that trains
            inside units it names the units, each by the boundary before it.
        placement: "between" adds at the boundary; "parallel" computes from a unit's input and adds to its output.
        train: keys of [train] that differ for this variant.
        data, encoders, store: keys of these tables that differ for this variant, such as another encoder's model; stage
            1 extracts what all variants need.
        start_from: a variant of the same adapter, whose finished run of the same seed gives the first weights; the
            learning rates' schedule is this variant's own, from its beginning. "" to start anew.
    """

    name: str
    adapter: dict[str, Any]
    insertion: str | tuple[float, ...] | dict[str, str | tuple[int | float, ...]] | None = None
    placement: Literal["between", "parallel"] = "between"
    train: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, Any] = field(default_factory=dict)
    store: dict[str, Any] = field(default_factory=dict)
    start_from: str = ""

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in "/\\ \t\n") or self.name.startswith("."):
            raise SettingsError(f"name: found {self.name!r}, expected a name without spaces, slashes or a leading dot")
        if "kind" not in self.adapter:
            raise SettingsError(f"adapter.kind: missing in variant {self.name!r}")
        with _left_to_the_run():
            adapter_settings(self.adapter)


@contextmanager
def _left_to_the_run() -> Iterator[None]:
    """Pass over what is not installed here, or cannot be imported: it ends the run that needs it, not the others."""
    with suppress(BackendError, PlugInError):
        yield


@settings_class
class LogSettings:
    """Loggers of a run's numbers beside metrics.jsonl, and when a run that learns nothing is spoken of.

    Args:
        tensorboard: write events for TensorBoard into the run's folder, tensorboard/.
        wandb: the Weights & Biases project to log to; "" for none. WANDB_MODE=offline is honoured.
        warn_after: epochs after which a line is printed, once a run, where validation has not left the blind baseline,
            the training loss is flat, or all gates are one; 0 for never.
    """

    tensorboard: bool = False
    wandb: str = ""
    warn_after: CountOrZero = 3


@settings_class
class Tables:
    """The tables of an experiment file that stage 2 reads; `ExtractTables` are the others."""

    task: TaskSettings = field(default_factory=TaskSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    variants: tuple[VariantSettings, ...] = ()
    sweep: SweepSettings = field(default_factory=SweepSettings)
    log: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True, kw_only=True)
class Experiment(Tables):
    """A whole experiment.

    Attributes:
        name: the file's stem, unless it names itself.
        base: the folder that relative paths count from.
        extraction: stage 1's settings, as the tables [data], [encoders], [store], [extract] and [engine] give them.
        of_variants: stage 1's settings of the variants that change them, by name.
        variants: those of the file; in place of one that a grid or a random search starts from, its points.
        points: by the variant's name, where a variant stands in a grid or a random search.
        notes: on points that stand there twice, and variants of equal settings; a line each.
    """

    name: str
    base: Path
    extraction: ExtractSettings
    of_variants: Mapping[str, ExtractSettings] = field(default_factory=dict)
    points: Mapping[str, SearchPoint] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> Path:
        """The folder of this experiment's runs."""
        return self.base / "runs" / self.name

    def variant(self, name: str) -> VariantSettings:
        """Return the variant called `name`, or raise SettingsError with the known ones."""
        if not self.variants:
            raise SettingsError(f"{self.name}: no [[variants]]; expected at least one")
        known = [v.name for v in self.variants]
        if name not in known:
            points = [point for point, found in self.points.items() if found.base == name]
            if points:
                raise SettingsError(
                    f"variant {name!r} is what a grid or random search of [sweep] starts from; name one of its "
                    f"{len(points)} points, {points[0]!r} for instance (talik sweep --dry-run lists them)"
                )
            raise SettingsError(unknown_name("variant", name, known))
        return self.variants[known.index(name)]

    def extraction_of(self, name: str) -> ExtractSettings:
        """Return stage 1's settings of a variant: the experiment's, unless the variant changes them."""
        return self.of_variants.get(name, self.extraction)

    def extractions(self, names: Iterable[str]) -> tuple[ExtractSettings, ...]:
        """Return stage 1's settings of some variants, each once."""
        found: list[ExtractSettings] = []
        for name in names:
            found += [self.extraction_of(name)] * (self.extraction_of(name) not in found)
        return tuple(found)

    def for_variant(self, name: str) -> Experiment:
        """Return the experiment with the data, encoders and store of one variant."""
        return replace(self, extraction=self.extraction_of(self.variant(name).name), of_variants={})

    def train_settings(self, variant: VariantSettings) -> TrainSettings:
        """Combine the experiment's training settings with those that the variant changes."""
        values = {**to_mapping(self.train), **_named_today(variant.train, where=f"variants.{variant.name}.train")}
        return from_mapping(TrainSettings, values, where=f"variants.{variant.name}.train")


def load_experiment(
    source: ExperimentSource,
    *,
    allow_missing: bool = False,
    changes: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
) -> Experiment:
    """Read and check an experiment.

    Args:
        source: its TOML file, or its tables as a dict, whose relative paths count from the working directory.
        allow_missing: set `allow_missing` of `[data]` to true.
        changes: values by dotted key that take the place of the file's: `{"train.lr": 1e-4}`; of a variant
            `{"variants.trimodal.adapter.window": 1}`.
        imports: modules or files of one's own code to import first, beside those that the file names.

    Raises:
        SettingsError: a malformed file, or a key or value that is refused; the message names file and key.
        PlugInError: code of one's own that raises.

    Example:
        >>> import talik
        >>> talik.load_experiment("exp.toml", changes={"train.lr": 1e-4}).train.lr
        0.0001
    """
    file = read_experiment(source, changes=changes, imports=imports)
    experiment = keep_earlier_defaults(experiment_from_file(file))
    try:
        for extraction in (experiment.extraction, *experiment.of_variants.values()):
            check_extraction(extraction)
        check_experiment(experiment)
    except SettingsError as error:
        raise SettingsError(f"{file.said}: {error}") from None
    if not allow_missing:
        return experiment
    of_variants = {name: one.with_missing_allowed() for name, one in experiment.of_variants.items()}
    return replace(experiment, extraction=experiment.extraction.with_missing_allowed(), of_variants=of_variants)


def experiment_from_tables(tables: Mapping[str, Any], *, path: Path) -> Experiment:
    """Build an experiment from tables already read; `path` names the file in messages and gives name and base."""
    imports = tuple(tables.get("import", ()))
    import_user_code(imports, path.parent)
    tables = {name: value for name, value in tables.items() if name != "import"}
    return experiment_from_file(ExperimentFile(tables=tables, path=path, said=str(path), imports=imports))


def experiment_from_file(file: ExperimentFile) -> Experiment:
    """Build an experiment from a file that was read."""
    extraction, tables = file_settings(file), file.tables
    names = [f.name for f in fields(Tables)]
    try:
        given = {name: tables[name] for name in names if name in tables}
        if isinstance(given.get("train"), Mapping):
            given["train"] = _named_today(given["train"], where="train")
        parsed = from_mapping(Tables, given, where="")
        own = {name: getattr(parsed, name) for name in names}
        experiment = Experiment(name=file.path.stem, base=file.path.parent.resolve(), extraction=extraction, **own)
        seen: set[str] = set()
        for variant in experiment.variants:
            if variant.name in seen:
                raise SettingsError(f"variants: the name {variant.name!r} stands twice; expected one name a variant")
            seen.add(variant.name)
            experiment.train_settings(variant)
        if parsed.sweep.grid or parsed.sweep.random:
            experiment = _with_points(experiment)
    except SettingsError as error:
        raise SettingsError(f"{file.said}: {_by_name(str(error), tables)}") from None
    tables_of = [{"name": v.name, **{t: getattr(v, t) for t in VARIANT_TABLES}} for v in experiment.variants]
    return replace(experiment, of_variants=variant_settings(file, tables_of))


def _by_name(message: str, tables: Mapping[str, Any]) -> str:
    """Return a message about `variants[2].train.lr` with the variant's name in place of its number."""
    found = re.match(r"variants\[(\d+)\](?:\.|: )", message)
    try:
        name = "" if found is None else tables["variants"][int(found[1])]["name"]
    except (KeyError, TypeError):
        return message
    return message if found is None else f"variant {name!r}: {message[found.end() :]}"


def _with_points(experiment: Experiment) -> Experiment:
    """Return an experiment with the points of its grids and random searches among its variants."""

    def built(table: Mapping[str, Any]) -> VariantSettings:
        variant = from_mapping(VariantSettings, table, where="")
        experiment.train_settings(variant)
        return variant

    tables, points, notes = written_out(
        [to_mapping(v) for v in experiment.variants],
        experiment.sweep.grid,
        experiment.sweep.random,
        train_keys=[f.name for f in fields(TrainSettings)],
        check=built,
    )
    variants = tuple(map(built, tables))
    resolved = {v.name: _resolved(experiment, v) for v in variants}
    return replace(experiment, variants=variants, points=points, notes=(*notes, *same_settings(resolved)))


def _resolved(experiment: Experiment, variant: VariantSettings) -> str:
    """Return a text of all settings of a variant but its name, defaults filled in."""
    adapter = dict(variant.adapter)
    with _left_to_the_run():
        adapter |= to_mapping(adapter_settings(variant.adapter))
    train = to_mapping(experiment.train_settings(variant))
    own = [getattr(variant, table) for table in VARIANT_TABLES]
    found = [adapter, to_mapping(variant.insertion), variant.placement, train, own]
    return json.dumps(found, sort_keys=True, default=str)


#: Values of `precision` for those of `amp`, as files of earlier versions have it.
_PRECISION_OF_AMP = {"auto": "auto", "off": "float32", "bf16": "bfloat16"}


def _named_today(train: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return training settings with the keys of today: an earlier version's `amp` is `precision`."""
    found = dict(train)
    if "amp" not in found:
        return found
    amp = found.pop("amp")
    if "precision" in found:
        raise SettingsError(f"{where}.amp: stands beside precision, which it is the earlier name of; remove amp")
    if not isinstance(amp, str) or amp not in _PRECISION_OF_AMP:
        known = ", ".join(f'"{value}"' for value in _PRECISION_OF_AMP.values())
        raise SettingsError(f"{where}.amp: found {amp!r}; write precision = one of {known} in its place")
    return {**found, "precision": _PRECISION_OF_AMP[amp]}
