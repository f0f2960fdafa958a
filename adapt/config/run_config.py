"""A run's configuration as plain values, written into its folder, and the way back to the experiment it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import to_mapping
from ...errors import RunError, SettingsError
from ..training.run_folder import RunFolder
from .experiment import Experiment, TrainSettings, VariantSettings, experiment_from_tables


def run_config(experiment: Experiment, variant: VariantSettings, train: TrainSettings, seed: int) -> dict[str, Any]:
    """Everything that a run depends on, as plain values: written into its folder."""
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
    """A run's configuration with the settings that have come since it was written, at their defaults.

    A new setting's default is what was done before there was one, so that an older run and one that leaves the setting
    out are the same run.

    Args:
        config: as a run's folder holds it.
        base: the folder that its paths count from.

    Raises:
        RunError, SettingsError: it is not a run's configuration, or says what is no longer known.
    """
    experiment, variant = experiment_from_config(config, base=base)
    return run_config(experiment, variant, experiment.train_settings(variant), config["seed"])


def experiment_of(folder: RunFolder) -> tuple[Experiment, VariantSettings]:
    """The experiment that a run's folder was made by, as far as this run needs it.

    Raises:
        RunError: no run's folder, or one without what a configuration has.
    """
    try:
        return experiment_from_config(folder.config(), base=_base(folder))
    except KeyError as error:
        raise RunError(f"{folder.path / 'config.toml'}: {error} is missing; expected a run's configuration") from None


def experiment_from_config(config: Mapping[str, Any], *, base: Path) -> tuple[Experiment, VariantSettings]:
    """The experiment, with its one variant, that a configuration describes; KeyError where a part of it is missing."""
    tables = {name: config[name] for name in ("data", "encoders", "store", "task", "train")}
    variant = {"name": config["variant"], "adapter": config["adapter"], "placement": config["placement"]}
    if config["insertion"] != "none":
        variant["insertion"] = config["insertion"]
    path = base / f"{config['experiment']}.toml"
    experiment = experiment_from_tables({**tables, "variants": [variant]}, path=path)
    return experiment, experiment.variants[0]


def claim(folder: RunFolder, config: Mapping[str, Any], *, resume: bool) -> None:
    """Claim a folder for a run with this configuration (see `RunFolder.begin`); an older one is completed first."""

    def older(config: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return completed(config, base=_base(folder))
        except (KeyError, SettingsError):
            return config  # what differs is said of it as it stands

    folder.begin(config, resume=resume, older=older)


def _base(folder: RunFolder) -> Path:
    """The folder that holds runs/<experiment>/<variant>/seed<k>."""
    parents = folder.path.resolve().parents
    return parents[min(3, len(parents) - 1)]
