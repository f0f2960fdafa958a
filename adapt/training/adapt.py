"""`adapt`: train one variant of an experiment, evaluate it, leave its run folder."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from tqdm import tqdm

from ...errors import EncoderError, RunDiffersError, RunError, SettingsError, StoreError
from ...extract.datasets.describe import describe
from ...extract.datasets.types import Question
from ...extract.executors.device import say_device
from ...extract.executors.threads import torch_threads
from ...extract.stage.experiment_file import ExperimentSource
from ...extract.trunk.exact_float32 import exact_float32
from ..config.check_experiment import check_variant
from ..config.experiment import Experiment, VariantSettings, load_experiment
from ..config.run_config import run_config
from ..data.batch import stored_questions
from ..model.insertion import insertion_lines
from ..scoring.metrics import Scores, read_scores
from .distributed import Processes, joined
from .experiment_context import ExperimentContext
from .failures import failures_recorded, raised_in_one_line
from .filling import OnMissing, begin_filling
from .run_data import collect_data, earlier_digests
from .run_folder import RunFolder, RunOutcome
from .solo_run import train_alone
from .stop_signals import StopSignals
from .stopped_runs import clear_stopped, read_stopped
from .trainer import Trainer

_log = logging.getLogger(__name__)

_NOT_RECORDED = "not compared: made by a version that did not record what a run is trained on"


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult:
    """What a finished run left.

    Args:
        folder: the run's folder.
        variant, seed: which of the experiment's runs it is.
        split: that it was scored on: test, or validation where there is no test split.
        scores: correct and total by question type, by group and in all.
        accuracy: of the best epoch's weights on the test split, 0 to 1; on validation where there is no test split. Of
            multi-label answers the share of questions whose labels are all right, and no others given; their mAP stands
            in `scores`.
        seconds: wall time of training and of the final evaluation.
        trainable_params: number of trained parameters, adapter and head.
        how: what this call did: kept a run that had ended before, resumed one, trained a new one, or trained one anew
            in the place of another.
        notes: of a kept run, what could not be compared with the experiment; one line each.
    """

    folder: Path
    variant: str
    seed: int
    split: str
    scores: Scores
    accuracy: float
    seconds: float
    trainable_params: int
    how: RunOutcome = "trained"
    notes: tuple[str, ...] = ()

    @property
    def skipped(self) -> bool:
        """Whether the run had ended before, so that nothing was done."""
        return self.how == "kept"

    def __repr__(self) -> str:
        value = self.scores.headline.removeprefix("accuracy ")
        return f"RunResult({self.variant}, seed {self.seed}: {value} of {self.split}, {self.folder})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.scores._repr_html_()}"


def adapt(
    experiment: Experiment | ExperimentSource,
    *,
    variant: str,
    seed: int = 0,
    resume: bool = False,
    retrain: bool = False,
    live: bool = False,
    on_missing: OnMissing = "error",
    device: str = "auto",
    progress: bool = True,
    context: ExperimentContext | None = None,
) -> RunResult:
    """Train one variant of an experiment on the cached states, and evaluate it.

    An unfinished run of the same settings and data goes on from its last checkpoint. Ctrl-C, SIGTERM and SIGUSR1 have
    the batch in hand finished and a checkpoint written before they end the process (`stop_signals`). Under torchrun its
    processes train it together, each on its own questions of every batch (`distributed`).

    Args:
        experiment: an experiment's TOML, its tables as a dict, or the experiment itself.
        variant: the name of one of its variants.
        seed: of the weights, the order of the data and dropout.
        resume: with `retrain`, go on with such a training that was interrupted. Without it of no effect.
        retrain: train anew, whatever run the folder holds; that one stays until the new one has ended, and is then
            removed.
        live: decode and encode the media files for every batch, without a store.
        on_missing: what states that the store lacks are: an "error", or to "compute" as `extract` does, while the first
            epoch trains where that is possible (`filling`).
        device: where it runs; "auto" is a GPU where there is one.
        progress: show tqdm bars.
        context: the opened encoders and store of this experiment, shared by several runs.

    Raises:
        SettingsError, ManifestError, StoreError: what the experiment names does not exist or does not fit.
        RunLockedError: another process is training this run.
        RunDiffersError: the run's folder holds a run of other settings, labels, clips, states or weights.
        RunError: training diverged, or the variant raised any other error; its traceback is in the folder's error.txt.
        KeyboardInterrupt, SystemExit: a signal has ended the training; a checkpoint is kept.

    Example:
        >>> import talik
        >>> result = talik.adapt("exp.toml", variant="probe", progress=False)
        >>> result.variant, result.seed, result.split, result.scores.overall.total
        ('probe', 0, 'test', 4)
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    experiment = experiment.for_variant(variant)
    if context is not None and context.experiment.extraction_of(variant) != context.experiment.extraction:
        raise SettingsError(f"context: variant {variant!r} has encoders or data of its own; open one for it, or none")
    folder = RunFolder(experiment.runs / variant / f"seed{seed}")
    with (
        torch_threads(),
        exact_float32(),
        joined(device) as processes,
        folder.locked() if processes.leads else nullcontext(),
        ExitStack() as stack,
    ):
        announce = progress and processes.leads and context is None
        filling = None
        if not live and processes.leads:
            filling = begin_filling(
                experiment,
                [variant],
                seed,
                on_missing,
                device=str(processes.device),
                progress=progress,
                first=_why_filled_first(processes, context),
            )
        processes.wait()  # until the store is filled
        stack.enter_context(filling or nullcontext())
        context = context or ExperimentContext(experiment, device=processes.device)
        if filling is not None:
            filling.give_store(context)
        with processes.in_turn(), raised_in_one_line(folder):
            trainer = open_trainer(
                context, variant, seed, resume=resume, retrain=retrain, live=live, processes=processes
            )
        if isinstance(trainer, RunResult):
            return trainer
        processes.agree(trainer.model, trainer.loss)
        if announce:
            say_device(context.device)
        for line in describe(context.manifest, brief=True) if announce else ():
            tqdm.write(line, file=sys.stderr)
        stop = StopSignals()
        if filling is not None:
            filling.stop = stop
        with stop.caught(), raised_in_one_line(folder), failures_recorded(folder) if processes.leads else nullcontext():
            train_alone(trainer, progress=progress and processes.leads, stop=stop)
        processes.wait()  # until the result is written
        if stopped := read_stopped(trainer.folder):
            raise RunError(f"{trainer.folder.path}: {stopped.line}; the same command goes on from there")
        return result_of(folder, how=trainer.how)


def _why_filled_first(processes: Processes, context: ExperimentContext | None) -> str:
    """Return why the store has to be full before the training, "" where this call knows no reason."""
    if processes.size > 1:
        return "several processes train"
    return "" if context is None else "the store is open already"


def open_trainer(
    context: ExperimentContext,
    variant: str,
    seed: int,
    *,
    resume: bool = False,
    retrain: bool = False,
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
        resume: with `retrain`, go on with such a training that was interrupted.
        retrain: train anew, whatever run the folder holds (see `adapt`).
        live: decode and encode the media files for every batch, without a store.
        processes: those that train it together; the first of them prepares the folder for all.

    Raises:
        SettingsError, ManifestError, StoreError: what the experiment names does not exist or does not fit.
        RunDiffersError: the run's folder holds a run of other settings or data.
        RunError: the variant cannot be built, whatever it raised.
    """
    chosen = context.experiment.variant(variant)
    settings = context.experiment.train_settings(chosen)
    folder = RunFolder(context.experiment.runs / chosen.name / f"seed{seed}")
    config = run_config(context.experiment, chosen, settings, seed)
    leads = processes is None or processes.leads
    if leads:
        folder.settle()
    if retrain:
        folder = folder.to_retrain(config, resume=resume) if leads else folder.retrained
    if folder.status == "new":
        with failures_recorded(folder) if leads else nullcontext():
            check_variant(context.experiment, chosen)
            context.check_insertion(chosen)
    if leads:
        folder.prepare(config)
    if folder.done:
        notes = compare_finished(context, chosen, folder, live=live) if leads else ()
        return result_of(folder, how="kept", notes=notes)
    if leads:
        clear_stopped(folder)
        if point := context.experiment.points.get(variant):
            folder.write_json("search.json", point.to_json())
    if settings.num_threads and torch.device(context.device).type == "cpu":
        torch.set_num_threads(settings.num_threads)
    begun = folder.data() if folder.status == "unfinished" else None
    if leads and folder.status == "unfinished" and (begun is None or not begun.complete):
        _log.warning("%s: resumed; labels, clips and states %s", folder.path, _NOT_RECORDED)
    with failures_recorded(folder) if leads else nullcontext():
        try:
            trainer = Trainer(context, chosen, settings, seed, folder, live=live, processes=processes)
        except RunDiffersError:
            if not (leads and folder.replaces_another):
                raise
            folder.clear()  # an interrupted training in the place of a run, before its data were changed again
            folder.prepare(config)
            trainer = Trainer(context, chosen, settings, seed, folder, live=live, processes=processes)
    if leads:
        folder.write_json("data.json", trainer.run_data.to_json())
    num_units = {m: e.num_units for m, e in trainer.model.encoders.items()}
    lines = insertion_lines(trainer.model.insertions, num_units, chosen.insertion)
    if trainer.how == "resumed":
        lines = [*lines, f"goes on from the checkpoint {trainer.position}"]
    for note in lines if trainer.processes.leads else ():
        _log.info("%s: %s", trainer.label, note)
    return trainer


def compare_finished(
    context: ExperimentContext, variant: VariantSettings, folder: RunFolder, *, live: bool = False
) -> tuple[str, ...]:
    """Refuse a finished run whose data are not those that the experiment has now; return what could not be compared.

    Args:
        context: of the experiment.
        variant: that of the run.
        folder: the run's; its settings are the experiment's.
        live: compare with the media files instead of the store.

    Raises:
        RunDiffersError: other labels, clips, states or encoders.
        ManifestError, MissingItemError: the data set cannot be read, or the store lacks states of it.
    """
    then = folder.data()
    if then is None:
        return ("not compared with the experiment's data: the run's folder has neither data.json nor adapter.json",)
    manifest, source = context.manifest, None
    try:
        encoders = context.used(variant)
    except (EncoderError, StoreError) as error:
        return (f"not compared with the experiment's data: {error}",)
    notes: tuple[str, ...] = ()
    if not then.complete:
        notes = (f"labels, clips and states {_NOT_RECORDED}",)
    else:
        try:
            source = context.shared(context.starts(variant), {}, live=live)
        except StoreError as error:
            notes = (f"clips and states not compared: {error}",)
    splits = [s for s in dict.fromkeys((*then.splits, "train", "val", context.final_split)) if s in manifest.splits]
    questions: dict[str, Sequence[Question]] = {split: manifest.split(split) for split in splits}
    if source is not None:
        allow = context.allow_missing
        questions = {s: stored_questions(source, q, allow_missing=allow) for s, q in questions.items()}
    now = collect_data(
        encoders,
        source,
        questions,
        answers=manifest.answers,
        scored=context.final_split,
        base=context.experiment.base,
    )
    known = {m: earlier_digests(e)[: 1 if then.complete else 2] for m, e in encoders.items()}
    earlier = {m: then.encoders[m] for m, digests in known.items() if then.encoders.get(m) in digests}
    now = replace(now, encoders={**now.encoders, **earlier})
    folder.check_data(now, then, new_questions=source is not None, stored=context.stored_paths(source))
    return notes


def result_of(folder: RunFolder, *, how: RunOutcome = "trained", notes: Sequence[str] = ()) -> RunResult:
    """Return a finished run's result from its folder, or raise a RunError where that is malformed."""
    found = folder.result()
    try:
        return RunResult(
            folder=folder.path,
            variant=folder.path.parent.name,
            seed=int(folder.path.name.removeprefix("seed")),
            split=str(found.get("split", "test")),
            scores=read_scores(found),
            accuracy=float(found["accuracy"]),
            seconds=float(found["seconds"]),
            trainable_params=int(found["trainable_params"]),
            how=how,
            notes=tuple(notes),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.path / 'result.json'}: {json.dumps(str(error))} is missing or malformed") from None
