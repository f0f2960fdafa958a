"""The settings of stage 1: which data, which encoders cut where, which store; read from an experiment's TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..cache.errors import SettingsError, unknown_name
from ..cache.settings import from_mapping
from .manifest.settings import DataSettings

MODALITIES = ("visual", "audio", "text")
EXPERIMENT_TABLES = ("data", "encoders", "store", "task", "train", "variants", "sweep", "engine")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """One frozen encoder and the boundaries whose states are cached.

    Args:
        model: "timm:NAME", "hf:NAME-or-folder" or "pip:NAME" (weights that an installed Python package carries).
        weights: a safetensors or .pt file in place of the model's own weights; "random" for tests.
        cut: the boundary, or boundaries, to cache; negative numbers count from the number of units n, so -1 is the
            place before the last unit. n itself (after the last unit) serves variants without any insertion.
        image_size: side of the square picture, in pixels; the model's own by default.
        fit: how a frame becomes square: "crop" its middle, or "stretch" the whole of it; the model's own by default.
        window_seconds: length of the sound window of each segment, in seconds; the segment's length by default.
        batch_size: frames, windows or texts a forward; results do not depend on it beyond the last bits.
    """

    model: str
    weights: str | None = None
    cut: int | tuple[int, ...] | Literal["auto"] = "auto"
    image_size: int | None = None
    fit: Literal["crop", "stretch"] | None = None
    window_seconds: float | None = None
    batch_size: int = 64
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingsError(f"batch_size: found {self.batch_size}, expected at least 1")
        if self.window_seconds is not None and self.window_seconds <= 0:
            raise SettingsError(f"window_seconds: found {self.window_seconds}, expected more than 0")

    @property
    def cuts(self) -> tuple[int, ...]:
        """The boundaries to cache, as written (negative ones not yet resolved)."""
        if self.cut == "auto":
            raise SettingsError('cut = "auto" needs a plan; name the boundaries to cache, for instance cut = [-1]')
        return (self.cut,) if isinstance(self.cut, int) else tuple(self.cut)


@dataclass(frozen=True, kw_only=True)
class EncodersSettings:
    """The encoders of an experiment, at most one a modality."""

    visual: EncoderSettings | None = None
    audio: EncoderSettings | None = None
    text: EncoderSettings | None = None

    def items(self) -> tuple[tuple[str, EncoderSettings], ...]:
        """The (modality, settings) pairs that are there, in the order visual, audio, text."""
        return tuple((m, getattr(self, m)) for m in MODALITIES if getattr(self, m) is not None)


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where and how the states lie.

    Args:
        path: the store's folder, relative to the experiment's file.
        dtype: storage data type of the states.
        verify: when checksums are compared while training: at an item's first read, at each, or never.
        shard_items: clips a shard, the unit of work that a kill can cost; by default as many as this machine computes
            in about a minute, found by timing one clip at the first run and kept from then on.
    """

    path: str = "features.zarr"
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    verify: Literal["first", "always", "never"] = "first"
    shard_items: int | None = None

    def __post_init__(self) -> None:
        if self.shard_items is not None and self.shard_items < 1:
            raise SettingsError(f"shard_items: found {self.shard_items}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """Everything that stage 1 reads; `base` is the folder that relative paths count from."""

    data: DataSettings
    encoders: EncodersSettings
    store: StoreSettings = field(default_factory=StoreSettings)
    base: Path = Path()

    def __post_init__(self) -> None:
        if not self.encoders.items():
            raise SettingsError("encoders: none named; expected at least one of [encoders.visual|audio|text]")

    @property
    def store_path(self) -> Path:
        """The store's folder."""
        return (self.base / Path(self.store.path).expanduser()).resolve()


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of an experiment file, its top-level names checked.

    Raises:
        SettingsError: the file is missing or is not TOML, or has a table that no stage knows.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; expected an experiment's TOML") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder; expected an experiment's TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    for name in tables:
        if name not in EXPERIMENT_TABLES:
            raise SettingsError(f"{path}: {unknown_name('table', name, EXPERIMENT_TABLES)}")
    return tables


def extract_settings(tables: Mapping[str, Any], *, path: Path) -> ExtractSettings:
    """Build stage 1's settings from an experiment's tables; messages begin with the file's name."""
    wanted = {name: tables[name] for name in ("data", "encoders", "store") if name in tables}
    try:
        parsed = from_mapping(_Tables, wanted, where="")
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return ExtractSettings(data=parsed.data, encoders=parsed.encoders, store=parsed.store, base=Path(path).parent)


@dataclass(frozen=True, kw_only=True)
class _Tables:
    data: DataSettings
    encoders: EncodersSettings
    store: StoreSettings = field(default_factory=StoreSettings)
