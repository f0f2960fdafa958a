"""`adapt`: train one variant of an experiment, evaluate it, leave its run folder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..cache.errors import RunError
from ..cache.settings import to_mapping
from ..extract.manifest.describe import describe
from .experiment import Experiment, TrainSettings, VariantSettings, load_experiment
from .fused import train_together
from .runfolder import RunFolder
from .training import Training
from .workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run left.

    Args:
        folder: the run's folder.
        accuracy: of the best epoch's weights on the test split, 0 to 1; on validation where there is no test split.
        seconds: wall time of training and of the final evaluation.
        trainable_params: number of trained parameters, adapter and head.
        skipped: the run had ended before, and nothing was done.
    """

    folder: Path
    accuracy: float
    seconds: float
    trainable_params: int
    skipped: bool = False


def adapt(
    experiment: Experiment | Path | str,
    *,
    variant: str,
    seed: int = 0,
    resume: bool = False,
    live: bool = False,
    device: str = "cpu",
    progress: bool = True,
    workbench: Workbench | None = None,
) -> RunResult:
    """Train one variant of an experiment on the cached states, and evaluate it.

    Args:
        experiment: an experiment's TOML, or the experiment itself.
        variant: the name of one of its variants.
        seed: of the weights, the order of the data and dropout.
        resume: go on with an unfinished run of the same settings.
        live: decode and encode the media files for every batch, without a store.
        device: where it runs.
        progress: show tqdm bars.
        workbench: the opened encoders and store of this experiment, shared by several runs.

    Raises:
        SettingsError, ManifestError, StoreError: what the experiment names is not there or does not fit.
        RunError: the run's folder is another run's, or training diverged.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    chosen = experiment.variant(variant)
    folder = RunFolder(experiment.runs / chosen.name / f"seed{seed}")
    settings = experiment.train_settings(chosen)
    folder.begin(run_config(experiment, chosen, settings, seed), resume=resume)
    if folder.done:
        return result_of(folder, skipped=True)
    if settings.num_threads and device == "cpu":
        torch.set_num_threads(settings.num_threads)
    bench = workbench or Workbench(experiment, device=device)
    for line in describe(bench.manifest, brief=True) if progress and workbench is None else ():
        tqdm.write(line, file=sys.stderr)
    train_together([Training(bench, chosen, settings, seed, folder, live=live)], progress=progress)
    return result_of(folder)


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


def result_of(folder: RunFolder, *, skipped: bool = False) -> RunResult:
    """What a finished run's folder says."""
    found = folder.result()
    try:
        return RunResult(
            folder=folder.path,
            accuracy=float(found["accuracy"]),
            seconds=float(found["seconds"]),
            trainable_params=int(found["trainable_params"]),
            skipped=skipped,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.path / 'result.json'}: {json.dumps(str(error))} is missing or malformed") from None
