"""Optimiser steps on the gradients of several batches, each weighted by its number of questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config.experiment import TrainSettings
from ..model.joint_model import JointModel
from .checkpoint import Progress
from .data_order import DataOrder
from .distributed import Processes
from .group_optimizer import clip_together, step_together
from .optimizer import Averages, learning_rate_scale
from .step_losses import StepLosses


class GradientAccumulation:
    """Gathers the gradients of `accumulate` batches, then steps the optimiser, schedule and averages.

    Args:
        model: the joint model.
        optimizer: at the peak learning rates.
        averages: of the weights, updated after each step; None for none.
        settings: training's.
        data: says how many questions a batch has, and how many batches an epoch.
        processes: those that train together; their gradients become one mean.
        losses: takes in the loss of every batch.

    Attributes:
        num_batches: batches of the epoch so far.
    """

    def __init__(
        self,
        model: JointModel,
        optimizer: torch.optim.AdamW,
        averages: Averages | None,
        settings: TrainSettings,
        data: DataOrder,
        processes: Processes,
        losses: StepLosses,
    ) -> None:
        self._model, self._optimizer, self._averages = model, optimizer, averages
        self._settings, self._data, self._processes = settings, data, processes
        self._losses = losses
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.begin_epoch(Progress())

    def begin_epoch(self, progress: Progress) -> None:
        """Forget the losses of the epoch before; go on where a checkpoint was made in the middle of this one."""
        self._losses.clear()
        self.num_batches = progress.batch
        # Of each step the questions and loss of each batch; or the mean loss.
        self._steps: list[Sequence[tuple[int, int]] | Tensor | float] = list(progress.step_losses)
        self._held: list[tuple[int, int]] = []  # those of each batch whose gradient waits for its step
        self._sum: Tensor | None = None  # of the losses of their questions, where several processes train
        for count, value in progress.held if self._processes.leads else ():  # whose gradients one process has
            loss = torch.tensor(value, dtype=torch.float64)
            self._hold(count, self._losses.add(loss, step=progress.step), loss.to(self._processes.device))
        if progress.step:
            self._set_rates(progress.step - 1)

    def write_position(self, progress: Progress) -> None:
        """Write down how far the epoch is; waits for the device.

        Raises:
            RunError: a loss is not finite.
        """
        progress.step_losses, values = self.losses(), self._losses.values()
        progress.batch = self.num_batches
        progress.held = [(count, values[index]) for count, index in self._held]

    @property
    def between_steps(self) -> bool:
        """Whether no gradient waits for its optimiser step."""
        return not self._held

    def losses(self) -> list[float]:
        """Return the mean loss of each of the epoch's optimiser steps so far; waits for the device.

        Raises:
            RunError: a loss is not finite.
        """
        values = self._losses.values()

        def mean(step: Sequence[tuple[int, int]] | Tensor | float) -> float:
            if isinstance(step, Tensor | float):
                return float(step)
            return sum(count * values[index] for count, index in step) / sum(count for count, _ in step)

        return [mean(step) for step in self._steps]

    @property
    def _base(self) -> int:
        """Divisor of the step's sum of losses while later batches are not known: the first batch's questions."""
        return self._held[0][0] or 1

    def weighted(self, loss: Tensor, *, step: int) -> Tensor:
        """Return a batch's loss, weighted by its number of questions against that of the step's first batch.

        Args:
            loss: a scalar, the mean over this process's questions.
            step: optimiser steps done since the training began.

        Raises:
            RunError: this loss, or an earlier one, is not finite.
        """
        index = self._losses.add(loss, step=step)
        if not self._held:
            self._optimizer.zero_grad(set_to_none=True)
            self._sum = None
        count = self._processes.count(self._data.batch_size(self.num_batches))
        self._hold(count, index, loss)
        return loss * (count / self._base)

    def _hold(self, count: int, index: int, loss: Tensor) -> None:
        self._held.append((count, index))
        if self._processes.size > 1:
            own = count * loss.detach().double()
            self._sum = own if self._sum is None else self._sum + own

    def restore_point(self) -> Callable[[], None]:
        """Return a function that undoes a batch before its optimiser step."""
        held, summed, num_losses = list(self._held), self._sum, len(self._losses)
        grads = [(p, p.grad.clone()) for p in self._model.parameters() if p.grad is not None] if held else []

        def restore() -> None:
            self._held, self._sum = held, summed
            self._losses.truncate(num_losses)
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
        if not self.prepare_step(step):
            return step
        if self._settings.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_norm)
        self._optimizer.step()
        return self.after_step(step)

    def prepare_step(self, step: int) -> bool:
        """Count a batch; where a step is due, bring gradients to the mean and rates to the schedule, and return true.

        Args:
            step: optimiser steps done since the training began.
        """
        self.num_batches += 1
        if self.num_batches % self._settings.accumulate and self.num_batches < self._data.batches_per_epoch:
            return False
        count = sum(c for c, _ in self._held)
        mean = self._processes.to_mean(self._model.parameters(), base=self._base, count=count, loss=self._sum)
        self._steps.append(self._held if mean is None else mean)
        self._held = []
        self._set_rates(step)
        return True

    def after_step(self, step: int) -> int:
        """Tell the adapter and the averages of a step, while its gradients are still set; return the steps done now."""
        if self._model.adapter is not None:
            self._model.adapter.after_step(step)
        if self._averages is not None:
            self._averages.update()
        return step + 1

    def _set_rates(self, step: int) -> None:
        total = self._settings.epochs * self._data.steps_per_epoch
        scale = learning_rate_scale(step, total=total, warmup=self._settings.warmup)
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * scale


def steps_together(several: Sequence[GradientAccumulation]) -> None:
    """Clip, and step the optimisers, of several models at once, after `prepare_step` and before `after_step` of each.

    Args:
        several: of models on one device.
    """
    gradients = [[p.grad for p in own._model.parameters() if p.grad is not None] for own in several]
    clip_together(gradients, [own._settings.clip_norm for own in several])
    step_together([own._optimizer for own in several])
