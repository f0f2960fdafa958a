"""The settings of stage 1: which data, which encoders cut where, which store; read from an experiment's TOML."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...cache.cores import available_cores
from ...cache.feature_store import FeatureStore
from ...cache.object_storage.address import ObjectAddress, is_object_url
from ...cache.open import open_store
from ...config import Count, CountOrZero, Positive, from_mapping, settings_class
from ...errors import SettingsError
from ..datasets.settings import DataSettings
from ..encoders.options import MODALITIES, Compute, PictureSettings
from ..executors.settings import EngineSettings
from ..media.augment_settings import AugmentSettings, check_modality, check_views
from .experiment_file import ExperimentFile, ExperimentSource, merged, read_experiment
from .item_order import ItemOrder

Cut = int | Literal["end"]
"""A boundary as a person writes it: its number, negative to count from the number of units, or the end."""

_CLIPS_WORTH_PROCESSES = 100  # starting processes takes some seconds, in which threads decode as many


@settings_class
class EncoderSettings:
    """One frozen encoder and the boundaries whose states are cached.

    Args:
        model: "timm:NAME", "hf:NAME-or-folder" (a folder counts from the experiment's file) or "pip:NAME" (weights that
            an installed Python package carries); or "features:NAME", what `talik store import` brought into the store
            under that name: it has no units, so it is read at boundary 0, and nothing of it is computed.
        weights: a safetensors or .pt file, relative to the experiment's file, or a folder, in place of the model's own
            weights; "random" for tests.
        cut: the boundary, or boundaries, to cache; negative numbers count from the number of units n, so -1 is the
            place before the last unit; "end" is n, the place after it, which serves variants without any insertion.
            Several in a list, [9, "end"]; "auto" takes those that `talik plan` chose.
        image_size: side of the square picture, in pixels; the model's own by default.
        fit: how a frame becomes square: "crop" its middle, or "stretch" the whole of it; the model's own by default.
        num_frames: frames of a clip, of an encoder that takes whole clips; the model's own by default.
        window_seconds: length of the sound window of each segment, in seconds; the segment's length by default.
        picture: the front end of an image model that hears: its table, [encoders.audio.picture].
        views: how many augmented views of each clip are stored beside the plain one. Training draws one of them or the
            plain one for each clip and epoch; evaluation reads the plain one.
        augment: what they change: its table, [encoders.visual.augment] or [encoders.audio.augment].
        compute: what stage 1 computes the units below a cut in: "float32"; "tf32", float32 weights and states whose
            products a GPU computes in TensorFloat-32; "bfloat16", weights held and states computed in it. States of
            another `compute` are other states. What training runs above the cut is not changed by it.
        batch_size: frames, windows or texts a forward; results do not depend on it beyond the last bits.
        trust_remote_code: let transformers run the Python code that comes with a model, from a hub or a folder.
    """

    model: str
    weights: str | None = None
    cut: int | tuple[Cut, ...] | Literal["auto", "end"] = "auto"
    image_size: Count | None = None
    fit: Literal["crop", "stretch"] | None = None
    num_frames: Count | None = None
    window_seconds: Positive | None = None
    picture: PictureSettings | None = None
    views: CountOrZero = 0
    augment: AugmentSettings | None = None
    compute: Compute = "float32"
    batch_size: Count = 64
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_views(self.views, self.augment)
        if self.is_imported:
            self._check_imported()

    def _check_imported(self) -> None:
        for name in ("weights", "image_size", "fit", "num_frames", "window_seconds", "augment"):
            if getattr(self, name) is not None:
                raise SettingsError(f"{name}: {self.model!r} are imported features, which have none; remove the key")
        if self.compute != "float32":
            raise SettingsError(
                f"compute: {self.model!r} are imported features, which are not computed; remove the key"
            )
        if self.cut != "auto" and self.cuts != (0,):
            raise SettingsError(f"cut: {self.model!r} are imported features, whose only boundary is 0; remove the key")

    @property
    def is_imported(self) -> bool:
        """Whether the store holds these features already, computed by others."""
        return self.model.startswith("features:")

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The boundaries to cache, as written (negative ones and "end" not yet resolved)."""
        if self.cut == "auto":
            raise SettingsError(
                'cut = "auto" takes its boundaries from a plan that caches, and there is none beside the experiment: '
                "run talik plan first (it reads the variants, so what their adapters need has to be installed), or "
                "name the boundaries, for instance cut = [-1]"
            )
        return (self.cut,) if isinstance(self.cut, int) or self.cut == "end" else self.cut


@settings_class
class EncodersSettings:
    """The encoders of an experiment, at most one a modality."""

    visual: EncoderSettings | None = None
    audio: EncoderSettings | None = None
    text: EncoderSettings | None = None

    def __post_init__(self) -> None:
        for modality, settings in self.items():
            check_modality(modality, settings.augment)
        if self.text is not None and self.text.is_imported:
            raise SettingsError(f"text.model: found {self.text.model!r}; imported features are of clips, not texts")

    def items(self) -> tuple[tuple[str, EncoderSettings], ...]:
        """The (modality, settings) pairs that are there, in the order visual, audio, text."""
        return tuple((m, getattr(self, m)) for m in MODALITIES if getattr(self, m) is not None)

    def live(self) -> tuple[tuple[str, EncoderSettings], ...]:
        """Those of `items` that are models; the others are imported features."""
        return tuple((m, s) for m, s in self.items() if not s.is_imported)


@settings_class
class StoreSettings:
    """Where and how the states lie.

    Args:
        path: the store's folder, relative to the experiment's file; or a URL of object storage, such as
            "s3://bucket/features.zarr".
        storage: of object storage: `endpoint_url`, `region` and what else obstore knows, and `retry_seconds`, for how
            long it is asked when it does not answer (120). Secrets come from the environment.
        cache_dir: of object storage: the folder on this machine's own disk where shards are brought to when they are
            read, relative to the experiment's file; by default in the user's cache folder.
        cache_gb: of object storage: what they may take there; 50 by default.
        dtype: storage data type of the states; int8 has a scale for each token, and its measured error stands in the
            provenance.
        verify: when checksums are compared while training: at an item's first read, at each, or never.
        read_path: how training reaches the bytes: "mmap" by memory maps, "preadv" from the disk past the page cache by
            several threads; "auto" takes what is in memory from maps, and the rest by several threads, through the page
            cache if the boundary fits in memory. Network file systems are never mapped.
        shard_items: clips a shard, the unit of work that a kill can cost; by default as many as this machine computes
            in about a minute, found by timing one clip at the first run and kept from then on.
        disk_budget: what the states may take, as "200 GB" or "1.5 TB" (decimal units); no limit but the disk's own
            when not given. A plan chooses the boundaries to cache under it.
    """

    path: str = "features.zarr"
    storage: dict[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None
    cache_gb: Positive | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    verify: Literal["first", "always", "never"] = "first"
    read_path: Literal["auto", "mmap", "preadv"] = "auto"
    shard_items: Count | None = None
    disk_budget: str | None = None

    def __post_init__(self) -> None:
        _ = self.disk_budget_bytes
        if is_object_url(self.path):
            ObjectAddress(url=self.path, options=self.storage, cache_gb=self.cache_gb)
        elif self.storage or self.cache_dir is not None or self.cache_gb is not None:
            raise SettingsError(f"storage, cache_dir, cache_gb: {self.path!r} is no object storage; remove the keys")

    @property
    def disk_budget_bytes(self) -> int | None:
        """The budget in bytes; None for no limit."""
        if self.disk_budget is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?B)", self.disk_budget.strip())
        if match is None:
            raise SettingsError(f'disk_budget: found {self.disk_budget!r}, expected for instance "200 GB" or "1.5 TB"')
        return int(float(match[1]) * {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[match[2]])


@settings_class
class PipelineSettings:
    """How stage 1 shares a machine out; states do not depend on it.

    Args:
        workers: processes that decode and resize clips; 0 for two threads of the process that runs the encoders. By
            default as many as there are cores where the device is no CPU, shared out among the processes of several
            GPUs; where encoders and decoder share the cores, a process a core if there are more than two of them and
            enough clips to pay for their start, else threads.
    """

    workers: CountOrZero | None = None


@settings_class
class ExtractSettings:
    """Everything that stage 1 reads; relative paths count from the folder `base`, `imports` is code of one's own."""

    data: DataSettings
    encoders: EncodersSettings
    store: StoreSettings = field(default_factory=StoreSettings)
    extract: PipelineSettings = field(default_factory=PipelineSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    base: Path = Path()
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.encoders.items():
            raise SettingsError("encoders: none named; expected at least one of [encoders.visual|audio|text]")

    @property
    def manifest_settings(self) -> DataSettings:
        """`data`, with missing media allowed where no encoder would decode them."""
        decoded = any(m != "text" for m, _ in self.encoders.live())
        if decoded or not any(s.is_imported for _, s in self.encoders.items()):
            return self.data
        return replace(self.data, allow_missing=True)

    @property
    def lenient_manifest_settings(self) -> DataSettings:
        """`data`, with missing media allowed: a store may hold the states of clips whose files are elsewhere."""
        return replace(self.data, allow_missing=True)

    def with_missing_allowed(self) -> ExtractSettings:
        """Return these settings with `allow_missing` of [data] true."""
        return replace(self, data=self.lenient_manifest_settings)

    @property
    def store_path(self) -> Path:
        """The store's folder; of a store in object storage, the folder of this machine that stands for it."""
        return store_folder(self.store, self.base)

    def open_store(self, mode: Literal["r", "a"] = "r") -> FeatureStore:
        """Open the store; see `talik.open_store`."""
        if not is_object_url(self.store.path):
            return open_store(self.store_path, mode)
        at = _address(self.store, self.base)
        return open_store(at.url, mode, storage_options=at.options, cache_dir=at.cache_dir, cache_gb=at.cache_gb)


def store_folder(store: StoreSettings, base: Path) -> Path:
    """Return `ExtractSettings.store_path` of settings whose relative paths count from `base`."""
    if is_object_url(store.path):
        return _address(store, base).write_folder
    return (base / Path(store.path).expanduser()).resolve()


def _address(store: StoreSettings, base: Path) -> ObjectAddress:
    cache = None if store.cache_dir is None else str((base / Path(store.cache_dir).expanduser()).resolve())
    return ObjectAddress(url=store.path, options=store.storage, cache_dir=cache, cache_gb=store.cache_gb)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a call of stage 1 says beside the experiment.

    Args:
        device: where encoders run: "cpu", "cuda", "cuda:1".
        progress: show tqdm bars.
        deep: digest every media file, also those whose size and time are as they were.
        workers: processes that decode; None for as many as fit the machine.
        unread: read no file of which the store knows nothing: it counts as one whose states are missing.
        order: compute in this order, in shards of about a batch's clips; None for the data set's order.
    """

    device: str = "cpu"
    progress: bool = True
    deep: bool = False
    unread: bool = False
    order: ItemOrder | None = None
    workers: int | None = None

    @property
    def device_kind(self) -> str:
        """The device without its number: "cpu" or "cuda"."""
        return self.device.partition(":")[0]

    def decoders(self, engine: EngineSettings, num_clips: int) -> int:
        """Return how many processes decode clips for each worker that runs encoders; 0 for threads of its own."""
        if self.workers is not None:
            return self.workers
        cores = available_cores() if engine.is_local else engine.num_threads
        if self.device_kind != "cpu":
            return max(1, cores // (engine.jobs or 1 if engine.is_local else 1))
        return 0 if cores <= 2 or num_clips < _CLIPS_WORTH_PROCESSES or not engine.in_process else cores

    def worker_device(self, engine: EngineSettings) -> str:
        """Return the device that workers use: this process the one named, any other the first GPU that it is given."""
        return self.device if engine.in_process else self.device_kind


def read_settings(
    source: ExperimentSource,
    *,
    allow_missing: bool = False,
    changes: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
) -> ExtractSettings:
    """Read stage 1's settings of an experiment; its task, variants and training are not looked at.

    Args:
        source: its TOML file, or its tables as a dict.
        allow_missing: as if `[data]` had `allow_missing = true`.
        changes: values by dotted key in place of the file's (see `read_experiment`).
        imports: modules and files of one's own code to import first.

    Raises:
        SettingsError: anything that stage 1 cannot read, with the file's name, the key and what was expected.
    """
    file = read_experiment(source, changes=changes, imports=imports)
    return _checked(file_settings(file), file.said, allow_missing=allow_missing)


def read_all_settings(
    source: ExperimentSource,
    *,
    allow_missing: bool = False,
    changes: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
) -> tuple[ExtractSettings, ...]:
    """Read what stage 1 computes for an experiment: the file's settings, and those of variants that change them.

    Args:
        source: as of `read_settings`, like the others.
        allow_missing: as if each had `allow_missing = true`.
        changes: values by dotted key in place of the file's.
        imports: modules and files of one's own code to import first.

    Returns:
        Each once; the file's own first, unless every variant changes them.

    Raises:
        SettingsError: anything that stage 1 cannot read, with the file's name, the key and what was expected.
    """
    file = read_experiment(source, changes=changes, imports=imports)
    own = file_settings(file)
    variants = file.tables.get("variants", ())
    of_variants = variant_settings(file, variants)
    found = [own] * (not variants or len(of_variants) < len(variants))
    for one in of_variants.values():
        found += [one] * (one not in found)
    return tuple(_checked(one, file.said, allow_missing=allow_missing) for one in found)


def wanted_settings(
    experiment: ExperimentSource | ExtractSettings | Sequence[ExtractSettings],
) -> Sequence[ExtractSettings]:
    """Return the settings that are given, or those of an experiment, as `read_all_settings` does."""
    if isinstance(experiment, ExtractSettings):
        return (experiment,)
    if isinstance(experiment, Path | str | Mapping):
        return read_all_settings(experiment)
    return experiment


def _checked(settings: ExtractSettings, said: str, *, allow_missing: bool) -> ExtractSettings:
    try:
        check_extraction(settings)
    except SettingsError as error:
        raise SettingsError(f"{said}: {error}") from None
    return settings.with_missing_allowed() if allow_missing else settings


def check_extraction(settings: ExtractSettings) -> None:
    """Refuse settings of an experiment file that would have no effect; those of runs trained before are not asked.

    Raises:
        SettingsError: with the key.
    """
    if settings.data.seed and settings.data.split != "by-video" and not settings.data.validation:
        raise SettingsError(
            'data.seed: is of split = "by-video" and of validation alone; remove it, or set one of them'
        )
    for modality, encoder in settings.encoders.items():
        if encoder.cut == ():
            raise SettingsError(f"encoders.{modality}.cut: found [], expected at least one boundary")
        for name in _NOT_OF[modality]:
            if getattr(encoder, name) is not None:
                raise SettingsError(f"encoders.{modality}.{name}: {modality} has none; remove it")


#: Settings that have no effect on an encoder of a modality.
_NOT_OF = {
    "visual": ("window_seconds", "picture"),
    "audio": (),
    "text": ("image_size", "fit", "num_frames", "window_seconds", "picture"),
}


def file_settings(file: ExperimentFile) -> ExtractSettings:
    """Build stage 1's settings from an experiment that was read."""
    return extract_settings(file.tables, path=file.path, said=file.said, imports=file.imports)


#: Tables of stage 1 that a variant may change for itself.
VARIANT_TABLES = ("data", "encoders", "store")


def variant_settings(file: ExperimentFile, variants: Any) -> dict[str, ExtractSettings]:
    """Build stage 1's settings of the variants that change [data], [encoders] or [store], by the variant's name.

    Args:
        file: the experiment.
        variants: tables with a `name` and those of `VARIANT_TABLES` that they change; others are passed over.
    """
    found = {}
    for variant in variants if isinstance(variants, Sequence) else ():
        own = {t: variant[t] for t in VARIANT_TABLES if variant.get(t)} if isinstance(variant, Mapping) else {}
        if own:
            name = str(variant.get("name", ""))
            tables = merged({t: v for t, v in file.tables.items() if t != "variants"}, own)
            encoders = own.get("encoders")
            found[name] = extract_settings(
                tables,
                path=file.path,
                said=f"{file.said}: variant {name!r}",
                imports=file.imports,
                unplanned=tuple(encoders) if isinstance(encoders, Mapping) else (),
            )
    return found


def extract_settings(
    tables: Mapping[str, Any],
    *,
    path: Path,
    said: str | None = None,
    imports: Sequence[str] = (),
    unplanned: Collection[str] = (),
) -> ExtractSettings:
    """Build stage 1's settings from an experiment's tables.

    Args:
        tables: by name; those of stage 2 are not looked at.
        path: gives the folder and the name.
        said: what messages begin with; the path by default.
        imports: code of one's own that is imported already.
        unplanned: modalities whose `cut = "auto"` the experiment's plan says nothing about.
    """
    wanted = {name: tables[name] for name in ("data", "encoders", "store", "extract", "engine") if name in tables}
    try:
        parsed = from_mapping(ExtractTables, wanted, where="")
    except SettingsError as error:
        raise SettingsError(f"{said or path}: {error}") from None
    return ExtractSettings(
        data=parsed.data,
        encoders=_planned(parsed.encoders, Path(path), unplanned),
        store=parsed.store,
        extract=parsed.extract,
        engine=parsed.engine,
        base=Path(path).parent,
        imports=tuple(imports),
    )


def plan_path(base: Path, name: str) -> Path:
    """Where the plan of the experiment `name` in the folder `base` lies."""
    return base / f"{name}.plan.json"


def _planned(encoders: EncodersSettings, path: Path, unplanned: Collection[str]) -> EncodersSettings:
    """Put the plan's boundaries where the file says cut = "auto"; where there is no plan yet, "auto" stays."""
    chosen = plan_path(path.parent, path.stem)
    unresolved = [m for m, e in encoders.items() if e.cut == "auto" and not e.is_imported and m not in unplanned]
    if not unresolved or not chosen.is_file():
        return encoders
    try:
        cuts = json.loads(chosen.read_text(encoding="utf-8"))["cuts"]
        found = {m: tuple(int(k) for k in cuts[m]) for m in unresolved if m in cuts}
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"{chosen}: not a plan; remove it and run talik plan again") from None
    return dataclasses.replace(
        encoders, **{m: dataclasses.replace(getattr(encoders, m), cut=cut) for m, cut in found.items()}
    )


@settings_class
class ExtractTables:
    """The tables of an experiment file that stage 1 reads."""

    data: DataSettings
    encoders: EncodersSettings
    store: StoreSettings = field(default_factory=StoreSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    extract: PipelineSettings = field(default_factory=PipelineSettings)
