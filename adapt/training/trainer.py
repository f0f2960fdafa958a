"""One variant's training: model, optimiser, schedule, random stream, checkpoint and results; batches are given to it.

`fused` drives one or several of these over the same batches. What a training computes does not depend on which others
are driven beside it: nothing here is shared but the frozen encoders and the batches.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import RunError
from ...extract.datasets.types import Question
from ..config.experiment import LogSettings, TrainSettings, VariantSettings
from ..config.run_config import run_config
from ..data.batch import Batch, shuffled, stored_questions
from ..data.cached_source import CachedSource
from ..data.live_source import LiveSource
from ..model.flops import forward_flops
from ..model.insertion import insertion_lines
from ..model.joint_model import JointModel, forward
from ..model.registry import LOSSES, make_part
from ..model.targets import labels_of, loss_of
from ..scoring.predictions import (
    Prediction,
    answer_batch,
    batches_of,
    clip_order,
    prediction_records,
    score_records,
)
from .adapter_files import save_adapter
from .checkpoint import load_checkpoint, save_checkpoint
from .distributed import Processes
from .ema import Averages
from .experiment_context import ExperimentContext, derived_seed
from .loggers import open_scalars
from .optimizer import count_parameters, learning_rate_scale, make_optimizer
from .rng import random_state, set_random_state
from .run_folder import RunFolder


@dataclass
class Progress:
    """Where a training stands: what a checkpoint keeps beside tensors."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """A variant with a seed, being trained.

    Args:
        context: the experiment's shared parts.
        variant, settings, seed: what is trained, and how.
        folder: the run's, already claimed.
        live: take states from the media files instead of the store.
        processes: those that train it together, each on its own questions of every batch.
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
        self.context, self.settings, self.seed, self.folder = context, settings, seed, folder
        self.processes = processes or Processes(device=context.device)
        self.label = f"{variant.name}/seed{seed}"
        self.variant = variant
        self.model: JointModel = context.build(variant, seed=seed)
        self.model.recompute_units = settings.checkpoint_units
        if settings.compile:
            self.model.encoders.update(context.compiled(self.model.encoders))
        self.source: CachedSource | LiveSource = context.live(self.model) if live else context.cached(self.model)
        num_units = {m: e.num_units for m, e in self.model.encoders.items()}
        notes = insertion_lines(self.model.insertions, num_units, variant.insertion)
        for note in notes if self.processes.leads else ():
            tqdm.write(f"{self.label}: {note}", file=sys.stderr)
        self.loss = None if settings.loss is None else make_part(LOSSES, settings.loss, where="loss").to(context.device)
        self.questions = {s: self._stored(context.questions(s)) for s in ("train", "val")}
        self.labels = {a: i for i, a in enumerate(context.manifest.answers)}
        self.optimizer = make_optimizer(self.model, settings)
        self.peak = [group["lr"] for group in self.optimizer.param_groups]
        self.averages = Averages(self.model, settings.ema) if settings.ema else None
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.own_seconds = 0.0  # since the epoch began, or since the final evaluation did
        self._losses: list[float] = []  # of the epoch's steps
        self._batches = 0  # of the epoch, so far
        self._held: list[tuple[int, float]] = []  # questions and loss of each batch whose gradient waits for its step
        self._flops: dict[str, int] | None = None  # of the final evaluation's first batch
        self._counts_flops = False
        torch.manual_seed(derived_seed(seed, "dropout"))
        self._random = random_state(context.device)
        self._resume()
        config = run_config(context.experiment, variant, settings, seed)
        log = context.experiment.log if self.processes.leads else LogSettings()
        self._scalars = open_scalars(log, folder.path, name=self._name, config=config, history=self.progress.history)

    @property
    def _name(self) -> str:
        return f"{self.context.experiment.name}/{self.label}"

    def _stored(self, questions: Sequence[Question]) -> list[Question]:
        return stored_questions(self.source, questions, allow_missing=self.context.allow_missing)

    def _resume(self) -> None:
        if self.folder.checkpoint.exists() or self.folder.checkpoint.with_name("checkpoint.old").exists():
            self.best, saved = load_checkpoint(
                self.folder.checkpoint, model=self.model, optimizer=self.optimizer, averages=self.averages
            )
            self.progress = Progress(**saved)
            self._random = random_state(self.context.device)
        if self.model.adapter is not None:
            self.model.adapter.begin_training(self.settings.epochs * self.steps_per_epoch)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        count, size = len(self.questions["train"]), self.settings.batch_size
        return max(1, count // size if self.settings.drop_last else math.ceil(count / size))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch; the last one takes what batches are left."""
        return math.ceil(self.batches_per_epoch / self.settings.accumulate)

    @property
    def questions_per_epoch(self) -> int:
        """Questions of one epoch that are trained on."""
        return min(len(self.questions["train"]), self.batches_per_epoch * self.settings.batch_size)

    @property
    def ended(self) -> bool:
        """Whether no epoch is left: all are done, or validation has not improved for `patience` of them."""
        out_of_patience = 0 < self.settings.patience <= self.progress.epoch - self.progress.best_epoch
        return self.progress.epoch >= self.settings.epochs or out_of_patience

    @property
    def last_validation(self) -> str:
        """The last epoch's losses in a line, "" before the first."""
        if not self.progress.history:
            return ""
        last = self.progress.history[-1]
        return f"loss {last['train_loss']:.3f}, val {100 * last['val_accuracy']:.1f} %"

    def order(self, epoch: int) -> Iterator[list[Question]]:
        """The batches of an epoch: they depend on the seed, the questions and the settings' `data_order` alone."""
        seed, size = derived_seed(self.seed, f"order/{epoch}"), self.settings.batch_size
        questions = self.questions["train"]
        order = shuffled(questions, seed=seed, by_clip=self.settings.group_by_clip)
        for start in range(0, self.batches_per_epoch * size, size):
            yield [questions[i] for i in self.processes.own(order[start : start + size])]

    def batch_size(self, index: int) -> int:
        """Questions of an epoch's batch, from 0, those of all processes together."""
        return min(self.settings.batch_size, len(self.questions["train"]) - index * self.settings.batch_size)

    def split_questions(self, split: str) -> list[Question]:
        """The questions of a split whose states are at hand."""
        return self.questions.get(split) or self._stored(self.context.questions(split))

    def in_order(self, split: str) -> list[Sequence[Question]]:
        """The batches in which a split is answered, the questions of a clip together (see `clip_order`)."""
        questions = self.split_questions(split)
        return batches_of([questions[i] for i in clip_order(questions)], self.settings.eval_batch_size)

    @contextmanager
    def own_random_stream(self) -> Iterator[None]:
        """While this is open, random numbers come from this training's own stream, and time counts as its own."""
        started = time.perf_counter()
        set_random_state(self._random, self.context.device)
        try:
            yield
        finally:
            self._random = random_state(self.context.device)
            self.own_seconds += time.perf_counter() - started

    def begin_epoch(self) -> None:
        """Start an epoch's losses and clock."""
        self.model.train()
        self._losses, self._batches, self._held, self.own_seconds = [], 0, [], 0.0
        if not self.processes.leads:  # a stream for each epoch, so that a checkpoint keeps the first one's alone
            torch.manual_seed(derived_seed(self.seed, f"dropout/{self.progress.epoch}/{self.processes.rank}"))
            self._random = random_state(self.context.device)

    def step(self, batch: Batch) -> None:
        """Train on one batch; every `accumulate` of them, and at the epoch's end, the optimiser takes a step.

        Raises:
            RunError: the loss is not finite.
        """
        logits = forward(self.model, batch, amp=self.settings.amp)
        self.share_of_step(logits, batch.questions).backward()
        self.end_batch()

    def restore_point(self) -> Callable[[], None]:
        """Return a function that undoes a batch before its optimiser step: random stream, losses, gradients."""
        random, held = self._random, list(self._held)
        grads = [(p, p.grad.clone()) for p in self.model.parameters() if p.grad is not None] if held else []

        def restore() -> None:
            self._random, self._held = random, held
            self.optimizer.zero_grad(set_to_none=True)
            for parameter, grad in grads:
                parameter.grad = grad

        return restore

    def share_of_step(self, logits: Tensor, questions: Sequence[Question]) -> Tensor:
        """The batch's loss, weighed by its questions against those of the step's first batch; its gradient is awaited.

        Raises:
            RunError: the loss is not finite.
        """
        loss = self._loss(logits, questions)
        more = None if self.model.adapter is None else self.model.adapter.extra_loss()
        loss = loss if more is None else loss + more
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"{self.label}: the loss is {value} at step {self.progress.step}; lower lr or set clip_norm")
        if not self._held:
            self.optimizer.zero_grad(set_to_none=True)
        count = self.processes.count(self.batch_size(self._batches))
        self._held.append((count, value))
        return loss * (count / self._base)

    @property
    def _base(self) -> int:
        """What the sum of the step's losses is divided by as long as not all are known: its first batch's questions."""
        return self._held[0][0] or 1

    def end_batch(self) -> None:
        """After a batch's backward pass: take the optimiser's step if it is due."""
        self._batches += 1
        if self._batches % self.settings.accumulate and self._batches < self.batches_per_epoch:
            return
        self._to_mean()
        self._update()

    def _to_mean(self) -> None:
        """Make the gradients those of the mean loss over all questions of the step's batches."""
        count, loss = sum(c for c, _ in self._held), sum(c * value for c, value in self._held)
        self._losses.append(self.processes.to_mean(self.model.parameters(), base=self._base, count=count, loss=loss))
        self._held = []

    def _update(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates(self.progress.step), strict=True):
            group["lr"] = rate
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        if self.model.adapter is not None:
            self.model.adapter.after_step(self.progress.step)
        if self.averages is not None:
            self.averages.update()
        self.progress.step += 1

    def _rates(self, step: int) -> list[float]:
        """The learning rate of each parameter group at a step."""
        total = self.settings.epochs * self.steps_per_epoch
        scale = learning_rate_scale(step, total=total, warmup=self.settings.warmup)
        return [peak * scale for peak in self.peak]

    def _loss(self, logits: Tensor, questions: Sequence[Question]) -> Tensor:
        if self.loss is None:
            return loss_of(logits, questions, self.labels, label_smoothing=self.settings.label_smoothing)
        found: Tensor = self.loss(logits, labels_of(questions, self.labels, logits))
        return found

    def averaged(self) -> AbstractContextManager[None]:
        """While this is open, the model is what is evaluated and kept: the averages, where there are any."""
        return nullcontext() if self.averages is None else self.averages.in_place()

    def answers(self, batch: Batch) -> list[Prediction]:
        """Answer one batch, in eval mode."""
        self.count_flops(batch)
        return answer_batch(self.model, batch, answers=self.context.manifest.answers, amp=self.settings.amp)

    def count_flops(self, batch: Batch) -> None:
        """Count, once in the final evaluation, what answering a question costs that shares its clip with no other."""
        if self._counts_flops and self._flops is None:
            self._flops = forward_flops(self.model, batch.by_question(), amp=self.settings.amp)

    def end_epoch(self, predictions: Sequence[Prediction], *, shared_seconds: float) -> str:
        """Take the epoch's validation in, keep the best weights, write metrics and the checkpoint; return a line.

        Args:
            predictions: of the validation split.
            shared_seconds: this training's share of what was done once for several.
        """
        self.progress.epoch += 1
        accuracy = sum(p.correct for p in predictions) / len(predictions)
        loss = sum(-p.log_likelihood for p in predictions) / len(predictions)
        if (accuracy, -loss) > (self.progress.best_accuracy, -self.progress.best_loss):
            self.progress.best_accuracy, self.progress.best_loss, self.progress.best_epoch = (
                accuracy,
                loss,
                self.progress.epoch,
            )
            with self.averaged():
                self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        seconds = self.own_seconds + shared_seconds
        self.progress.seconds += seconds
        train_loss = sum(self._losses) / len(self._losses)
        self.progress.history.append(
            {
                "event": "epoch",
                "epoch": self.progress.epoch,
                "step": self.progress.step,
                "train_loss": train_loss,
                "val_loss": loss,
                "val_accuracy": accuracy,
                "lr": self.optimizer.param_groups[0]["lr"],
                "seconds": seconds,
            }
        )
        line = self.last_validation
        if not self.processes.leads:
            return line
        self.folder.write_lines("metrics.jsonl", self.progress.history)
        with self.own_random_stream():  # the checkpoint keeps the random stream as it stands
            save_checkpoint(
                self.folder.checkpoint,
                model=self.model,
                optimizer=self.optimizer,
                best=self.best,
                progress=dict(vars(self.progress)),
                averages=self.averages,
            )
        for scalars in self._scalars:
            scalars.write(self.progress.history[-1])
        return line

    def use_best(self) -> None:
        """Take the best epoch's weights, for the final evaluation."""
        self.model.load_state_dict(self.best)
        self.averages = None  # the best weights were averages already
        self.own_seconds, self._counts_flops = 0.0, True

    @property
    def final_split(self) -> str:
        """The split that a finished run is scored on."""
        return "test" if "test" in self.context.manifest.splits else "val"

    def finish(
        self, predictions: Sequence[Prediction], *, shared_seconds: float, together: int, stacked: bool = False
    ) -> None:
        """Write the weights, the predictions of the final split and, last, the result.

        Args:
            predictions: of `final_split`, with the best weights.
            shared_seconds: this training's share of what was done once for several.
            together: how many variants were trained in lockstep.
            stacked: their units ran on the variants' states at once.
        """
        if not self.processes.leads:
            return
        records = prediction_records(predictions)
        seconds = self.progress.seconds + self.own_seconds + shared_seconds
        trainable, every = count_parameters(self.model)
        boundaries = self.source.boundaries if isinstance(self.source, CachedSource) else {}
        save_adapter(self.folder, self.model, self.context, self.variant, cuts=boundaries)
        self.folder.write_lines("predictions.jsonl", records)
        last = {"event": "done", "best_epoch": self.progress.best_epoch, "seconds": seconds}
        counts = {"trainable_params": trainable, "all_params": every}
        self.folder.write_lines("metrics.jsonl", [*self.progress.history, {**last, **counts}])
        self.folder.write_json(
            "result.json",
            {
                "split": self.final_split,
                **score_records(records, kind=self.context.experiment.task.kind),
                "seconds": seconds,
                "together": together,
                "processes": self.processes.size,
                **({"stacked": True} if stacked else {}),
                "device": torch.device(self.context.device).type,
                "live": isinstance(self.source, LiveSource),
                "best_epoch": self.progress.best_epoch,
                **counts,
                **(self._flops or {}),
            },
        )
        self.folder.clear_checkpoint()
        for scalars in self._scalars:
            scalars.close()
