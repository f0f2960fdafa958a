"""`adapt`: train one variant of an experiment, evaluate it, leave its run folder."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ...errors import RunError
from ...extract.datasets.describe import describe
from ...extract.executors.threads import torch_threads
from ...extract.trunk.exact_float32 import exact_float32
from ..config.check_experiment import check_variant
from ..config.experiment import Experiment, load_experiment
from ..config.run_config import run_config
from ..model.insertion import insertion_lines
from .distributed import Processes, joined
from .experiment_context import ExperimentContext
from .failures import failures_recorded, raised_in_one_line
from .run_folder import RunFolder
from .trainer import Trainer


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
    context: ExperimentContext | None = None,
) -> RunResult:
    """Train one variant of an experiment on the cached states, and evaluate it.

    Under torchrun its processes train it together, each on its own questions of every batch (`distributed`).

    Args:
        experiment: an experiment's TOML, or the experiment itself.
        variant: the name of one of its variants.
        seed: of the weights, the order of the data and dropout.
        resume: go on with an unfinished run of the same settings.
        live: decode and encode the media files for every batch, without a store.
        device: where it runs.
        progress: show tqdm bars.
        context: the opened encoders and store of this experiment, shared by several runs.

    Raises:
        SettingsError, ManifestError, StoreError: what the experiment names does not exist or does not fit.
        RunLockedError: another process is training this run.
        RunError: the run's folder is another run's, training diverged, or the variant raised any other error; its
            traceback is in the folder's error.txt.

    Example:
        >>> import talik
        >>> result = talik.adapt("exp.toml", variant="probe", progress=False)
        >>> result.folder.parts[-2:], 0 <= result.accuracy <= 1
        (('probe', 'seed0'), True)
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    folder = RunFolder(experiment.runs / experiment.variant(variant).name / f"seed{seed}")
    with (
        torch_threads(),
        exact_float32(),
        joined(device) as processes,
        folder.locked() if processes.leads else nullcontext(),
    ):
        announce = progress and processes.leads and context is None
        context = context or ExperimentContext(experiment, device=processes.device)
        with processes.in_turn(), raised_in_one_line(folder):
            trainer = open_trainer(context, variant, seed, resume=resume, live=live, processes=processes)
        if isinstance(trainer, RunResult):
            return trainer
        processes.agree(trainer.model, trainer.loss)
        for line in describe(context.manifest, brief=True) if announce else ():
            tqdm.write(line, file=sys.stderr)
        with raised_in_one_line(folder), failures_recorded(folder) if processes.leads else nullcontext():
            trainer.fit(show_progress=progress and processes.leads)
        processes.wait()  # until the result is written
        return result_of(trainer.folder)


def open_trainer(
    context: ExperimentContext,
    variant: str,
    seed: int,
    *,
    resume: bool = False,
    live: bool = False,
    processes: Processes | None = None,
) -> Trainer | RunResult:
    """Prepare a run's folder and open its trainer, brought to its checkpoint; or return a finished run's result.

    The number of threads that the settings name is set here, so that whatever the trainer computes is computed with it;
    the caller restores it (`torch_threads`).

    Args:
        context: of the experiment.
        variant: the name of one of its variants.
        seed: of the weights, the order of the data and dropout.
        resume: go on with an unfinished run of the same settings.
        live: decode and encode the media files for every batch, without a store.
        processes: those that train it together; the first of them prepares the folder for all.

    Raises:
        SettingsError, ManifestError, StoreError: what the experiment names does not exist or does not fit.
        RunError: the run's folder is another run's, or an unfinished one without `resume`; or the variant cannot be
            built, whatever it raised.
    """
    chosen = context.experiment.variant(variant)
    settings = context.experiment.train_settings(chosen)
    folder = RunFolder(context.experiment.runs / chosen.name / f"seed{seed}")
    if folder.status == "new":
        with failures_recorded(folder) if processes is None or processes.leads else nullcontext():
            check_variant(context.experiment, chosen)
            context.check_insertion(chosen)
    if processes is None or processes.leads:
        folder.prepare(run_config(context.experiment, chosen, settings, seed), resume=resume)
    if folder.done:
        return result_of(folder, skipped=True)
    if settings.num_threads and torch.device(context.device).type == "cpu":
        torch.set_num_threads(settings.num_threads)
    with failures_recorded(folder) if processes is None or processes.leads else nullcontext():
        trainer = Trainer(context, chosen, settings, seed, folder, live=live, processes=processes)
    num_units = {m: e.num_units for m, e in trainer.model.encoders.items()}
    notes = insertion_lines(trainer.model.insertions, num_units, chosen.insertion)
    for note in notes if trainer.processes.leads else ():
        tqdm.write(f"{trainer.label}: {note}", file=sys.stderr)
    return trainer


def result_of(folder: RunFolder, *, skipped: bool = False) -> RunResult:
    """Return a finished run's result from its folder, or raise a RunError where that is malformed."""
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
