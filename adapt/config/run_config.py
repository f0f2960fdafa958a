"""A run's configuration as plain values, as config.toml holds it, and the experiment rebuilt from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import to_mapping
from .experiment import Experiment, TrainSettings, VariantSettings, experiment_from_tables


def run_config(experiment: Experiment, variant: VariantSettings, train: TrainSettings, seed: int) -> dict[str, Any]:
    """Return everything that a run depends on, as plain values for TOML.

    Args:
        experiment: the whole experiment.
        variant: one of its variants.
        train: the training settings of that variant.
        seed: of the weights, the order of the data and dropout.
    """
    extraction = experiment.extraction
    config: dict[str, Any] = {"experiment": experiment.name, "variant": variant.name, "seed": seed}
    for name, part in (("data", extraction.data), ("encoders", extraction.encoders), ("store", extraction.store)):
        config[name] = to_mapping(part)
    config["task"] = to_mapping(experiment.task)
    config["train"] = to_mapping(train)
    config["adapter"] = to_mapping(variant.adapter)
    config["insertion"] = to_mapping(variant.insertion if variant.insertion is not None else "none")
    config["placement"] = variant.placement
    return config


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
    variant = {"name": config["variant"], "adapter": config["adapter"], "placement": config["placement"]}
    if config["insertion"] != "none":
        variant["insertion"] = config["insertion"]
    path = base / f"{config['experiment']}.toml"
    experiment = experiment_from_tables({**tables, "variants": [variant]}, path=path)
    return experiment, experiment.variants[0]
