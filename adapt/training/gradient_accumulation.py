"""Optimiser steps on the gradients of several batches, each weighted by its number of questions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config.experiment import TrainSettings
from ..model.joint_model import JointModel
from .data_order import DataOrder
from .distributed import Processes
from .optimizer import Averages, learning_rate_scale


class GradientAccumulation:
    """Gathers the gradients of `accumulate` batches, then steps the optimiser, schedule and averages.

    Args:
        model: the joint model.
        optimizer: at the peak learning rates.
        averages: of the weights, updated after each step; None for none.
        settings: training's.
        data: says how many questions a batch has, and how many batches an epoch.
        processes: those that train together; their gradients become one mean.

    Attributes:
        losses: the mean loss of each of the epoch's optimiser steps so far.
    """

    def __init__(
        self,
        model: JointModel,
        optimizer: torch.optim.Optimizer,
        averages: Averages | None,
        settings: TrainSettings,
        data: DataOrder,
        processes: Processes,
    ) -> None:
        self._model, self._optimizer, self._averages = model, optimizer, averages
        self._settings, self._data, self._processes = settings, data, processes
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the losses of the epoch before."""
        self.losses: list[float] = []
        self._batches = 0  # of the epoch, so far
        self._held: list[tuple[int, float]] = []  # questions and loss of each batch whose gradient waits for its step

    @property
    def _base(self) -> int:
        """Divisor of the step's sum of losses while later batches are not known: the first batch's questions."""
        return self._held[0][0] or 1

    def weighted(self, loss: Tensor, value: float) -> Tensor:
        """Return a batch's loss, weighted by its number of questions against that of the step's first batch.

        Args:
            loss: a scalar, the mean over this process's questions.
            value: the same as a number.
        """
        if not self._held:
            self._optimizer.zero_grad(set_to_none=True)
        count = self._processes.count(self._data.batch_size(self._batches))
        self._held.append((count, value))
        return loss * (count / self._base)

    def restore_point(self) -> Callable[[], None]:
        """Return a function that undoes a batch before its optimiser step."""
        held = list(self._held)
        grads = [(p, p.grad.clone()) for p in self._model.parameters() if p.grad is not None] if held else []

        def restore() -> None:
            self._held = held
            self._optimizer.zero_grad(set_to_none=True)
            for parameter, grad in grads:
                parameter.grad = grad

        return restore

    def end_batch(self, step: int) -> int:
        """After a batch's backward pass: take the optimiser's step if it is due.

        Args:
            step: optimiser steps done since the training began.

        Returns:
            The steps done now.
        """
        self._batches += 1
        if self._batches % self._settings.accumulate and self._batches < self._data.batches_per_epoch:
            return step
        count, loss = sum(c for c, _ in self._held), sum(c * value for c, value in self._held)
        parameters = self._model.parameters()
        self.losses.append(self._processes.to_mean(parameters, base=self._base, count=count, loss=loss))
        self._held = []
        total = self._settings.epochs * self._data.steps_per_epoch
        scale = learning_rate_scale(step, total=total, warmup=self._settings.warmup)
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * scale
        if self._settings.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_norm)
        self._optimizer.step()
        if self._model.adapter is not None:
            self._model.adapter.after_step(step)
        if self._averages is not None:
            self._averages.update()
        return step + 1
