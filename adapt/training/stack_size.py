"""One batch of a lockstep group: its members one after the other, or their units stacked, as the experiment says."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.batch import Batch
from ..scoring.predictions import Prediction, predictions_of
from .experiment_context import ExperimentContext
from .failures import is_out_of_memory
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
        start = 0
        while start < len(members):
            size = self.size  # a part that memory does not hold makes it smaller
            yield members[start : start + size]
            start += size

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

        Where memory does not hold the stack, it is halved, for good, and the batch is trained again. Where stacked
        units, or the backward pass of all, fail otherwise, the members are trained on the batch one by one.
        """
        if len(members) == 1:
            return _step_alone(*members[0])
        restores = [training.restore_point() for training, _ in members]
        failed: dict[Trainer, Exception] = {}
        try:
            shares = self._backward(members, failed)
            full = any(map(is_out_of_memory, failed.values()))  # in one's own modules, beside the states of all
        except Exception as error:
            shares, full = None, is_out_of_memory(error)
        if shares is None or full:
            shares = None  # with the graph of each, before the batch runs again
            failed.clear()
            for restore in restores:
                restore()
            parts = self._halves(members) if full else ([member] for member in members)
            return {t: error for part in parts for t, error in self.step(part).items()}
        for training in shares:
            try:
                with training.own_random_stream():
                    training.end_batch()
            except Exception as error:
                failed[training] = error
        return failed

    def _backward(self, members: Sequence[Member], failed: dict[Trainer, Exception]) -> dict[Trainer, Tensor]:
        """Return the loss of each, its gradients computed; those whose own modules or loss failed go into `failed`."""
        shares = {}
        for (training, batch), logits in zip(members, self._logits(members), strict=True):
            try:
                with training.own_random_stream():
                    shares[training] = training.weighted_loss(_unless_error(logits), batch.questions)
            except Exception as error:
                failed[training] = error
        if shares:  # what they train is disjoint: the gradient of the sum gives each its own
            torch.stack(list(shares.values())).sum().backward()
        return shares

    def _halves(self, members: Sequence[Member]) -> Iterator[Sequence[Member]]:
        """Halve the stack and yield the members in such parts."""
        self._wanted = self.size = max(1, min(self.size, len(members)) // 2)
        tqdm.write(f"memory does not hold {len(members)} stacked variants; {self.size} from here on", file=sys.stderr)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        yield from self.parts(members)

    @torch.no_grad()
    def answers(self, members: Sequence[Member]) -> dict[Trainer, list[Prediction] | Exception]:
        """Answer its batch with each, in eval mode; where memory does not hold the stack, in halves of it.

        Where stacked units fail otherwise, the members answer one by one.
        """
        if len(members) == 1:
            return {training: _answers_alone(training, batch) for training, batch in members}
        try:
            for training, batch in members:
                with training.own_random_stream():
                    training.count_flops(batch)
            for training, _ in members:
                training.model.eval()
            try:
                stacked = self._logits(members)
            finally:
                for training, _ in members:
                    training.model.train()
            full = any(isinstance(found, Exception) and is_out_of_memory(found) for found in stacked)
        except Exception as error:
            stacked, full = [], is_out_of_memory(error)
        if stacked and not full:
            return {t: _predicted(t, b, found) for (t, b), found in zip(members, stacked, strict=True)}
        stacked = []
        parts = self._halves(members) if full else ([member] for member in members)
        return {t: found for part in parts for t, found in self.answers(part).items()}

    def _logits(self, members: Sequence[Member]) -> list[Tensor | Exception]:
        return run_stacked([Pass(model=t.model, batch=b, turn=t.own_random_stream) for t, b in members])


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
            return predictions_of(_unless_error(logits), batch.questions, training.classes)
    except Exception as error:
        return error


def _unless_error(found: Tensor | Exception) -> Tensor:
    if isinstance(found, Exception):
        raise found
    return found
