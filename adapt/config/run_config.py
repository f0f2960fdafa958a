"""A run's configuration as plain values, as config.toml holds it, and the experiment rebuilt from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...cache.format.spec import FieldDifference, differences
from ...config import to_mapping
from ...errors import SettingsError
from .earlier_defaults import DEFAULTS, with_earlier_defaults
from .experiment import Experiment, TrainSettings, VariantSettings, experiment_from_tables

#: Settings that name things, say where they lie, or which clips are left out. Of a run whose data are recorded they are
#: not compared: the same annotations, clips, states and encoders at another place are the same run.
PLACES = (
    "experiment",
    "variant",
    "import",
    "data.root",
    "data.annotations",
    "data.files",
    "data.videos",
    "data.extracted_from",
    "data.allow_missing",
    "data.missing_sound",
    "data.missing_picture",
    "encoders.*.model",
    "encoders.*.weights",
    "encoders.*.cut",
    "store.path",
    "store.storage",
    "store.cache_dir",
    "store.cache_gb",
    "store.verify",
    "store.read_path",
    "store.shard_items",
    "store.disk_budget",
)

#: Settings of [train] that change no result, and so are no part of a run's.
OF_NO_EFFECT = ("checkpoint_minutes",)


def run_config(experiment: Experiment, variant: VariantSettings, train: TrainSettings, seed: int) -> dict[str, Any]:
    """Return everything that a run depends on, as plain values for TOML.

    Args:
        experiment: the whole experiment.
        variant: one of its variants.
        train: the training settings of that variant.
        seed: of the weights, the order of the data and dropout.
    """
    config: dict[str, Any] = {
        "experiment": experiment.name,
        "variant": variant.name,
        "seed": seed,
        "defaults": DEFAULTS,
    }
    config |= data_tables(experiment, variant.name)
    config["task"] = to_mapping(experiment.task)
    config["train"] = {name: value for name, value in to_mapping(train).items() if name not in OF_NO_EFFECT}
    config["adapter"] = to_mapping(variant.adapter)
    config["insertion"] = to_mapping(variant.insertion if variant.insertion is not None else "none")
    config["placement"] = variant.placement
    if variant.start_from:
        config["start_from"] = variant.start_from
    if experiment.extraction.imports:
        config["import"] = list(experiment.extraction.imports)
    return config


def data_tables(experiment: Experiment, variant: str) -> dict[str, Any]:
    """Return the tables `data`, `encoders` and `store` of a variant, as plain values."""
    extraction = experiment.extraction_of(variant)
    parts = {"data": extraction.data, "encoders": extraction.encoders, "store": extraction.store}
    return {name: to_mapping(part) for name, part in parts.items()}


def completed(config: Mapping[str, Any], *, base: Path) -> dict[str, Any]:
    """Return a configuration that an earlier version wrote, with the settings added since at their defaults.

    The default of a new setting is what was done before the setting existed, so an older run and one that leaves the
    setting out are the same run.

    Args:
        config: the content of a run's config.toml.
        base: the folder that its relative paths count from.

    Raises:
        KeyError: a part is missing.
        SettingsError: a setting that is no longer known.
    """
    experiment, variant = experiment_from_config(config, base=base)
    return run_config(experiment, variant, experiment.train_settings(variant), config["seed"])


def config_differences(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], *, base: Path, places: bool = True
) -> list[FieldDifference]:
    """Return the settings in which two configurations differ, those that one of them does not have at their defaults.

    Args:
        wanted: a configuration of today.
        stored: one that this or an earlier version wrote.
        base: the folder that the relative paths of `stored` count from.
        places: compare `PLACES` too.
    """
    found = differences(dict(wanted), dict(stored))
    if found:
        with suppress(KeyError, SettingsError):  # then it is compared as it is
            found = differences(dict(wanted), completed(stored, base=base))
    return found if places else [d for d in found if not is_place(d.field)]


def is_place(name: str) -> bool:
    """Return whether a setting, by its dotted name, is one of `PLACES` or a part of one.

    >>> is_place("store.storage.region"), is_place("encoders.visual.image_size")
    (True, False)
    """
    return any(fnmatch(name, place) or fnmatch(name, f"{place}.*") for place in PLACES)


def with_places(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the data, encoders and store where another one has them (see `PLACES`)."""
    found: dict[str, Any] = dict(config)
    for table in ("data", "store"):
        found[table] = _placed(table, config[table], other[table])
    encoders, others = config["encoders"], other["encoders"]
    found["encoders"] = {m: _placed("encoders.*", e, others[m]) if m in others else e for m, e in encoders.items()}
    return found


def _placed(table: str, config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if f"{table}.{name}" not in PLACES}
    return {**kept, **{name: value for name, value in other.items() if f"{table}.{name}" in PLACES}}


def experiment_from_config(config: Mapping[str, Any], *, base: Path) -> tuple[Experiment, VariantSettings]:
    """Return the experiment, with its one variant, that a configuration describes.

    Args:
        config: the content of a run's config.toml.
        base: the folder that its relative paths count from.

    Raises:
        KeyError: a part is missing.
        SettingsError: a setting that is not known.
    """
    tables = {name: config[name] for name in ("data", "encoders", "store", "task", "train")}
    tables |= {"import": config["import"]} if "import" in config else {}
    adapter = config["adapter"] if "defaults" in config else with_earlier_defaults(config["adapter"])
    variant = {"name": config["variant"], "adapter": adapter, "placement": config["placement"]}
    if config["insertion"] != "none":
        variant["insertion"] = config["insertion"]
    if "start_from" in config:
        variant["start_from"] = config["start_from"]
    path = base / f"{config['experiment']}.toml"
    experiment = experiment_from_tables({**tables, "variants": [variant]}, path=path)
    return experiment, experiment.variants[0]
