"""One batch of a lockstep group: its members one after the other, or their units stacked, as the experiment says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..data.batch import Batch
from ..model.joint_model import autocast
from ..scoring.predictions import Prediction, predictions_of
from .experiment_context import ExperimentContext
from .stacked_forward import Pass, run_stacked
from .trainer import Trainer

Member = tuple[Trainer, Batch]
_SHARE_OF_MEMORY = 0.8  # of what is free that stacked variants may fill


class Stacking:
    """How the members of a group share their units.

    Args:
        context: of the experiment.
        num_members: of the group.

    Attributes:
        size: members stacked at most; 1 for one after the other.
    """

    def __init__(self, context: ExperimentContext, num_members: int) -> None:
        settings, self._device = context.experiment.sweep, torch.device(context.device)
        self._wanted = min(settings.stack_size or num_members, num_members) if settings.stacks(self._device.type) else 1
        fits_unasked = settings.stack_size > 0 or self._device.type != "cuda"
        self.size = self._wanted if fits_unasked else 1

    def parts(self, members: Sequence[Member]) -> Iterator[Sequence[Member]]:
        """Yield the members in parts that are stacked together."""
        for start in range(0, len(members), self.size):
            yield members[start : start + self.size]

    def measured_parts(self, members: Sequence[Member]) -> Iterator[Sequence[Member]]:
        """Yield the parts of a training batch; on CUDA those of the first batch show how many members memory holds."""
        if self.size == self._wanted:
            yield from self.parts(members)
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        yield from self.parts(members)
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        free = torch.cuda.mem_get_info(self._device)[0] + unused
        each = torch.cuda.max_memory_allocated(self._device) - before
        self._wanted = self.size = max(1, min(self._wanted, int(_SHARE_OF_MEMORY * free / max(1, each))))

    def step(self, members: Sequence[Member]) -> dict[Trainer, Exception]:
        """Train each on its batch; return those that failed, with their errors.

        Where stacked units, or the backward pass of all, fail, the members are trained on the batch one by one.
        """
        if len(members) == 1:
            return _step_alone(*members[0])
        restores = [training.restore_point() for training, _ in members]
        failed: dict[Trainer, Exception] = {}
        shares = {}
        try:
            for (training, batch), logits in zip(members, self._logits(members), strict=True):
                try:
                    with training.own_random_stream():
                        shares[training] = training.weighted_loss(_unless_error(logits), batch.questions)
                except Exception as error:
                    failed[training] = error
            if shares:  # what they train is disjoint: the gradient of the sum gives each its own
                torch.stack(list(shares.values())).sum().backward()
        except Exception:
            for restore in restores:
                restore()
            return {t: error for member in members for t, error in _step_alone(*member).items()}
        for training in shares:
            try:
                with training.own_random_stream():
                    training.end_batch()
            except Exception as error:
                failed[training] = error
        return failed

    @torch.no_grad()
    def answers(self, members: Sequence[Member]) -> dict[Trainer, list[Prediction] | Exception]:
        """Answer its batch with each, in eval mode; where stacked units fail, one by one."""
        if len(members) > 1:
            for training, batch in members:
                with training.own_random_stream():
                    training.count_flops(batch)
            for training, _ in members:
                training.model.eval()
            try:
                stacked = self._logits(members)
            except Exception:
                stacked = []
            for training, _ in members:
                training.model.train()
            if stacked:
                return {t: _predicted(t, b, found) for (t, b), found in zip(members, stacked, strict=True)}
        return {training: _answers_alone(training, batch) for training, batch in members}

    def _logits(self, members: Sequence[Member]) -> list[Tensor | Exception]:
        device = self._device.type
        return run_stacked(
            [
                Pass(
                    model=training.model,
                    batch=batch,
                    turn=training.own_random_stream,
                    autocast=partial(autocast, training.settings.amp, device),
                    precision=training.settings.amp,
                )
                for training, batch in members
            ]
        )


def _step_alone(training: Trainer, batch: Batch) -> dict[Trainer, Exception]:
    try:
        with training.own_random_stream():
            training.step(batch)
    except Exception as error:
        return {training: error}
    return {}


def _answers_alone(training: Trainer, batch: Batch) -> list[Prediction] | Exception:
    try:
        with training.own_random_stream():
            return training.answers(batch)
    except Exception as error:
        return error


def _predicted(training: Trainer, batch: Batch, logits: Tensor | Exception) -> list[Prediction] | Exception:
    try:
        with training.own_random_stream():
            return predictions_of(_unless_error(logits), batch.questions, training.context.manifest.answers)
    except Exception as error:
        return error


def _unless_error(found: Tensor | Exception) -> Tensor:
    if isinstance(found, Exception):
        raise found
    return found
