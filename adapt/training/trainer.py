"""One variant under training: model, optimiser, data order, random stream; steps, epochs, evaluation, results.

`solo_run` calls these methods for a single run, `lockstep_group` for several on batches that it reads once for all.
What a trainer computes does not depend on which others are trained beside it: they share the frozen encoders and the
batches, nothing else.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ...errors import RunError
from ...extract.datasets.types import Question
from ..config.experiment import LogSettings, TrainSettings, VariantSettings
from ..config.run_config import run_config
from ..data.batch import Batch
from ..data.cached_source import CachedSource
from ..data.live_source import LiveSource
from ..model.flops import at_starts, forward_flops
from ..model.joint_model import JointModel
from ..model.precision import Precision
from ..model.registry import LOSSES, make_part
from ..model.targets import labels_of, loss_of
from ..scoring.metrics import metric_of
from ..scoring.predictions import Prediction, answer_batch, validation_score
from .adapter_files import load_adapter, save_adapter
from .checkpoint import Checkpointer, Progress
from .data_order import DataOrder
from .distributed import Processes
from .experiment_context import ExperimentContext
from .gradient_accumulation import GradientAccumulation
from .optimizer import Averages, count_parameters, make_optimizer
from .random_stream import RandomStream, derived_seed
from .run_data import RunData, collect_data
from .run_folder import RunFolder, RunOutcome
from .run_recorder import RunRecorder, epoch_line
from .step_losses import StepLosses
from .stop_signals import StopRequested, StopSignals
from .stopped_runs import Stopped, stop_is_requested, write_stopped
from .watch import TrainingWatch

_log = logging.getLogger(__name__)


class Trainer:
    """Trains one variant with one seed, from its last checkpoint where its folder has one.

    Args:
        context: the experiment's shared parts.
        variant, settings, seed: what is trained, and how.
        folder: the run's, prepared.
        live: take states from the media files instead of the store.
        processes: those that train it together, each on its own questions of every batch.

    Attributes:
        model: the joint model.
        source: yields the batches of a single run.
        classes: the run's answers, in the order of its classes.
        task: what is predicted, and how it is scored.
        data: the questions of each split, in the order of training and of evaluation.
        run_data: what the run is trained on.
        how: whether it is trained from its beginning, or resumed.
        progress: epochs and steps done, the best epoch, the records of all epochs.
        pause_after: epochs after which the run waits for a later call, its checkpoint saved; None for to the end.
        own_seconds: time spent in `own_random_stream` since the epoch, or the final evaluation, began.

    Raises:
        SettingsError, ManifestError, StoreError: what the experiment names does not exist or does not fit.
        RunDiffersError: the folder's run is of other data.
        RunError: the checkpoint is damaged.
    """

    def __init__(
        self,
        context: ExperimentContext,
        variant: VariantSettings,
        settings: TrainSettings,
        seed: int,
        folder: RunFolder,
        *,
        live: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.context, self.variant, self.settings, self.seed, self.folder = context, variant, settings, seed, folder
        self.processes = processes or Processes(device=context.device)
        self.label = f"{variant.name}/seed{seed}"
        self.task = context.experiment.task
        recorded = folder.data()
        unfinished = folder.status == "unfinished"
        if recorded is not None and not recorded.complete and not unfinished:
            recorded = None  # what is left of a run whose result was removed
        new = context.manifest.answers if unfinished else context.classes
        if variant.start_from and recorded is None:
            new = self._answers_of(context.experiment.runs / variant.start_from / f"seed{seed}", new)
        self.classes: tuple[str, ...] = new if recorded is None else recorded.answers
        self.model: JointModel = context.build(
            variant,
            seed=seed,
            num_classes=len(self.classes),
            precision=Precision.of(settings.precision, context.device),
        )
        self.model.recompute_units = settings.checkpoint_units
        if settings.compile:
            self.model.encoders.update(context.compiled(self.model.encoders))
        self.source = context.shared(self.model.starts(), self.model.reads(), precision=self.model.precision, live=live)
        self.loss = None if settings.loss is None else make_part(LOSSES, settings.loss, where="loss").to(context.device)
        order = recorded.splits.get("train") if recorded is not None else None
        self.data = DataOrder(context, self.source, settings, seed, recorded=order, by_lines=unfinished)
        self.run_data = self._run_data()
        if recorded is not None:
            now = replace(self.run_data, answers=context.manifest.answers)
            folder.check_data(now, recorded, stored=context.stored_paths(self.source))
        self.optimizer = make_optimizer(self.model, settings)
        self.averages = Averages(self.model, settings.ema) if settings.ema else None
        self.gradients = GradientAccumulation(
            self.model,
            self.optimizer,
            self.averages,
            settings,
            self.data,
            self.processes,
            StepLosses(self.label, context.device),
        )
        self.pause_after: int | None = None
        self._stop_requested = False
        self.own_seconds, self._earlier_seconds = 0.0, 0.0  # the second: of the epoch, before it was resumed
        self._labels = {answer: index for index, answer in enumerate(self.classes)}
        self._flops: dict[str, int] | None = None  # of the final evaluation's first batch
        self._counts_flops = False
        self._known_flops: dict[Hashable, dict[str, int]] = {}
        self._random = RandomStream(context.device, seed=derived_seed(seed, "dropout"))
        self.checkpointer = Checkpointer(
            folder.checkpoint,
            self.model,
            self.optimizer,
            self.averages,
            device=context.device,
            rank=self.processes.rank,
        )
        self._saved_at = time.monotonic()
        restored = self.checkpointer.load()
        if restored is not None:
            self._random.set_to_current()
        elif variant.start_from:
            load_adapter(RunFolder(context.experiment.runs / variant.start_from / f"seed{seed}"), self.model)
        self.progress, self.best = restored or (Progress(), {})
        fresh: RunOutcome = "trained anew" if folder.replaces_another else "trained"
        self.how: RunOutcome = fresh if restored is None else "resumed"
        if self.model.adapter is not None:
            self.model.adapter.begin_training(settings.epochs * self.data.steps_per_epoch)
        warn_after = context.experiment.log.warn_after
        self._watch = TrainingWatch(after=warn_after, blind=lambda: context.blind_validation, model=self.model)
        self.recorder = RunRecorder(
            folder,
            name=f"{context.experiment.name}/{self.label}",
            config=run_config(context.experiment, variant, settings, seed),
            log=context.experiment.log if self.processes.leads else LogSettings(),
            history=self.progress.history,
        )

    @staticmethod
    def _answers_of(start: Path, known: Sequence[str]) -> tuple[str, ...]:
        """Return the answers of the run whose weights are the first ones, in the order of its head's classes.

        Raises:
            RunError: it has not ended, or has other answers than those `known` here.
        """
        folder = RunFolder(start)
        folder.check_done()
        data = folder.data()
        answers = () if data is None else data.answers
        if sorted(answers) != sorted(known):
            raise RunError(
                f"{folder.path}: knows {len(answers)} answers, not the {len(known)} of the data set today; start_from "
                "wants a run on the same answers"
            )
        return answers

    @property
    def ended(self) -> bool:
        """Whether no epoch is left: all are done, or validation has not improved for `patience` of them."""
        out_of_patience = 0 < self.settings.patience <= self.progress.epoch - self.progress.best_epoch
        return self.progress.epoch >= self.settings.epochs or out_of_patience

    @property
    def paused(self) -> bool:
        """Whether the run is not trained on in this call though epochs are left: see `pause_after`, `request_stop`."""
        at_pause = self.pause_after is not None and self.progress.epoch >= self.pause_after
        return not self.ended and (at_pause or self._stop_requested)

    @property
    def last_validation(self) -> str:
        """The last epoch's losses in a line, "" before the first."""
        return epoch_line(self.progress.history)

    def train_batches(self) -> Iterator[Batch]:
        """Yield this process's part of the epoch's batches, in order, from where a checkpoint was made in it."""
        epoch, by_clip = self.progress.epoch, self.settings.group_by_clip
        own = map(self.processes.own, islice(self.data.train_batches(epoch), self.progress.batch, None))
        return self._at_starts(self.source.batches(own, view_seed=self.data.view_seed(epoch), by_clip=by_clip))

    def _at_starts(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Run the frozen units from the stored boundaries to the model's start, as a lockstep group does for all."""
        return (at_starts(self.model, batch) for batch in batches)

    @contextmanager
    def own_random_stream(self) -> Iterator[None]:
        """While this is open, torch draws from this trainer's own stream, and time counts as its own."""
        started = time.perf_counter()
        try:
            with self._random.active():
                yield
        finally:
            self.own_seconds += time.perf_counter() - started

    def begin_epoch(self) -> None:
        """Start an epoch's losses and clock."""
        self.model.train()
        self.gradients.begin_epoch(self.progress)
        self.own_seconds, self._earlier_seconds = 0.0, self.progress.epoch_seconds
        if not self.processes.leads and not self.progress.batch:  # a stream for each epoch
            self._random.restart(derived_seed(self.seed, f"dropout/{self.progress.epoch}/{self.processes.rank}"))

    def step(self, batch: Batch) -> None:
        """Train on one batch; every `accumulate` of them, and at the epoch's end, the optimiser takes a step.

        Raises:
            RunError: the loss is not finite.
        """
        self.weighted_loss(self.model(batch), batch.questions).backward()
        self.end_batch()

    def restore_point(self) -> Callable[[], None]:
        """Return a function that undoes a batch before its optimiser step: random stream, losses, gradients."""
        random, restore_gradients = self.random_position, self.gradients.restore_point()

        def restore() -> None:
            self.random_position = random
            restore_gradients()

        return restore

    def weighted_loss(self, logits: Tensor, questions: Sequence[Question]) -> Tensor:
        """Return the batch's loss, weighted by its number of questions against that of the step's first batch.

        The caller takes its gradient before `end_batch`.

        Args:
            logits: (B, C), or (B, T, C) of a head that classifies segments.
            questions: B of them.

        Returns:
            A scalar.

        Raises:
            RunError: the loss is not finite; on a GPU, that of an earlier batch (see `StepLosses`).
        """
        loss = self._loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), questions)
        more = None if self.model.adapter is None else self.model.adapter.extra_loss()
        loss = loss if more is None else loss + more
        return self.gradients.weighted(loss, step=self.progress.step)

    def _loss(self, logits: Tensor, questions: Sequence[Question]) -> Tensor:
        if self.loss is None:
            smoothing = self.settings.label_smoothing
            return loss_of(logits, questions, self._labels, label_smoothing=smoothing, task=self.task)
        found: Tensor = self.loss(logits, labels_of(questions, self._labels, logits, kind=self.task.kind))
        return found

    def end_batch(self) -> None:
        """After a batch's backward pass: take the optimiser's step if it is due."""
        self.progress.step = self.gradients.end_batch(self.progress.step)

    def after_step(self) -> None:
        """After an optimiser step that was taken for several trainers at once: what `end_batch` does behind it."""
        self.progress.step = self.gradients.after_step(self.progress.step)

    @property
    def save_is_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed since the last checkpoint."""
        minutes = self.settings.checkpoint_minutes
        return self.processes.leads and 0 < 60 * minutes <= time.monotonic() - self._saved_at

    def save_position(self, *, seconds: float) -> None:
        """Save a checkpoint in the middle of an epoch, between two batches; all processes together.

        Args:
            seconds: that the epoch took this trainer, since it was begun or resumed.

        Raises:
            RunError: the loss is not finite, or the disk refuses a file.
        """
        self.gradients.write_position(self.progress)
        self.progress.epoch_seconds = self._earlier_seconds + seconds
        streams = [{kind: state.tolist() for kind, state in self.random_position.items()}]
        others = self.processes.gather(streams)[1:] if self.processes.size > 1 else []
        self._save([{kind: torch.tensor(s, dtype=torch.uint8) for kind, s in found.items()} for found in others])
        self.processes.wait()

    def _save(self, others: Sequence[Mapping[str, Tensor]] = ()) -> None:
        if self.processes.leads:
            with self.own_random_stream():  # the checkpoint keeps this stream's state
                self.checkpointer.save(self.progress, self.best, others=others)
        self._saved_at = time.monotonic()

    @property
    def position(self) -> str:
        """Say where the last checkpoint stands."""
        batch, num_batches = self.progress.batch, self.data.batches_per_epoch
        where = f"in epoch {self.progress.epoch + 1} after batch {batch} of {num_batches}"
        return where if batch else f"after epoch {self.progress.epoch} of {self.settings.epochs}"

    @property
    def questions_done(self) -> int:
        """Questions trained on when the last checkpoint was made, those of each epoch again."""
        each = self.data.questions_per_epoch
        return each * self.progress.epoch + min(each, self.progress.batch * self.settings.batch_size)

    @property
    def random_position(self) -> dict[str, Tensor]:
        """Where this trainer's random stream stands; it can be put back there."""
        return self._random.position()

    @random_position.setter
    def random_position(self, position: Mapping[str, Tensor]) -> None:
        self._random.return_to(position)

    def check_losses(self) -> None:
        """Wait for the losses of the epoch so far; what is evaluated or saved afterwards was trained on finite ones.

        Raises:
            RunError: one is not finite.
        """
        self.gradients.losses()

    def averaged(self) -> AbstractContextManager[None]:
        """While this is open, the model has the weights that are evaluated and kept: averages, where there are any."""
        return nullcontext() if self.averages is None else self.averages.in_place()

    @torch.no_grad()
    def evaluate(self, split: str, stop: StopSignals | None = None) -> list[Prediction]:
        """Answer a split's questions, in their order, with the weights that are evaluated; all processes together.

        Raises:
            StopRequested: a signal has come to `stop` meanwhile.
        """
        stop, own = stop or StopSignals(), []
        with self.averaged():
            batches = self.source.batches(self.processes.deal(self.data.eval_batches(split)), by_clip=True)
            for batch in self._at_starts(batches):
                own.append(self.answers(batch))
                if stop.signum:
                    break
        (agreed,) = self.processes.largest([stop.signum])
        if agreed:
            stop.signum = agreed
            raise StopRequested
        if self.processes.size > 1:
            gathered = self.processes.gather([[vars(p) for p in predictions] for predictions in own])
            own = [[Prediction(**fields) for fields in predictions] for predictions in gathered]
        return self.data.in_question_order(split, own)

    def answers(self, batch: Batch) -> list[Prediction]:
        """Answer one batch, in eval mode."""
        self.count_flops(batch)
        return answer_batch(self.model, batch, answers=self.classes, task=self.task)

    def count_flops(self, batch: Batch) -> None:
        """Count, once in the final evaluation, what answering a question costs that shares its clip with no other."""
        if self._counts_flops and self._flops is None:
            key = self.model.structure()
            if key not in self._known_flops:
                self._known_flops[key] = forward_flops(self.model, batch.by_question())
            self._flops = self._known_flops[key]

    def share_flops(self, known: dict[Hashable, dict[str, int]]) -> None:
        """Take what others with the same batches have counted, by the structure of their models, and add to it."""
        self._known_flops = known

    def end_epoch(self, predictions: Sequence[Prediction], *, seconds: float) -> None:
        """Take in the epoch's validation: keep the best weights, record the epoch, save a checkpoint.

        Args:
            predictions: of the validation split.
            seconds: that the epoch took this trainer, since it was begun or resumed.
        """
        losses = self.gradients.losses()
        improved = self.progress.add_epoch(
            train_loss=sum(losses) / len(losses),
            val_loss=math.fsum(-p.log_likelihood for p in predictions) / len(predictions),
            validation=validation_score(predictions, classes=self.classes),
            metric=metric_of(self.task.kind).name,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=self._earlier_seconds + seconds,
        )
        if improved:
            with self.averaged():
                self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        if self.processes.leads:
            for line in self._watch.look(self.progress.history):
                _log.warning("%s: %s", self.label, line)
            self.recorder.record_epoch()
        self._save()
        self._look_for_request()

    def _look_for_request(self) -> None:
        """See whether somebody asked for the run's early end; all processes together."""
        self._stop_requested = any(self.processes.gather([self.processes.leads and stop_is_requested(self.folder)]))
        if self._stop_requested and not self.ended and self.processes.leads:
            epochs = f"after epoch {self.progress.epoch} of {self.settings.epochs}"
            write_stopped(
                self.folder, Stopped(by="request", epoch=self.progress.epoch, reason=f"talik runs stop, {epochs}")
            )

    def load_best_weights(self) -> None:
        """Take the best epoch's weights, for the final evaluation."""
        self.model.load_state_dict(self.best)
        self.averages = None  # the best weights were averages already
        self.own_seconds, self._counts_flops = 0.0, True

    def finish(
        self, predictions: Sequence[Prediction], *, seconds: float, together: int = 1, stacked: bool = False
    ) -> None:
        """Write the weights, the predictions of the final split and, last, the result; remove the checkpoint.

        Args:
            predictions: of `data.final_split`, with the best weights.
            seconds: that the final evaluation took this trainer.
            together: how many variants were trained in lockstep.
            stacked: whether their units ran on the variants' states at once.
        """
        if not self.processes.leads:
            return
        boundaries = self.source.boundaries if isinstance(self.source, CachedSource) else {}
        save_adapter(self.folder, self.model, self.context, self.variant, cuts=boundaries, answers=self.classes)
        trainable, every = count_parameters(self.model)
        facts = {
            "seconds": self.progress.seconds + seconds,
            "together": together,
            "processes": self.processes.size,
            **({"stacked": True} if stacked else {}),
            "device": torch.device(self.context.device).type,
            "live": isinstance(self.source, LiveSource),
            "best_epoch": self.progress.best_epoch,
            "trainable_params": trainable,
            "all_params": every,
            **(self._flops or {}),
        }
        self.recorder.record_result(
            predictions, task=self.task.kind, classes=self.classes, split=self.data.final_split, facts=facts
        )
        self.checkpointer.clear()
        self.folder.take_place()

    def _run_data(self) -> RunData:
        """Return what the run is trained on, with the training questions in the order that every epoch permutes."""
        final = self.data.final_split
        questions = {**self.data.questions, final: self.data.questions_of(final), "train": self.data.training_order}
        return collect_data(
            self.context.used(self.variant),
            self.source,
            questions,
            answers=self.classes,
            scored=final,
            base=self.context.experiment.base,
        )
