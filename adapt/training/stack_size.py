"""One batch of a lockstep group: its members one after the other, or their units stacked, as the experiment says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..config.sweep_settings import SweepSettings
from ..data.batch import Batch
from ..model.batched_module import BatchedModules
from ..scoring.predictions import Prediction, predictions_of
from .experiment_context import ExperimentContext
from .failures import is_out_of_memory
from .gradient_accumulation import steps_together
from .stacked_forward import Pass, run_stacked
from .trainer import Trainer

_log = logging.getLogger(__name__)

Member = tuple[Trainer, Batch]
_SHARE_OF_MEMORY = 0.8  # of what is free that stacked variants may fill


class Stacking:
    """How the members of a group share their units.

    Args:
        context: of the experiment.
        num_members: of the group.
        settings: in place of the experiment's [sweep].

    Attributes:
        size: members stacked at most; 1 for one after the other.
    """

    def __init__(self, context: ExperimentContext, num_members: int, settings: SweepSettings | None = None) -> None:
        settings, self._device = settings or context.experiment.sweep, torch.device(context.device)
        self._wanted = min(settings.stack_size or num_members, num_members) if settings.stacks(self._device.type) else 1
        self._modules = BatchedModules(_say) if settings.batches(self._device.type) else None
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

        Where memory does not hold the stack, it is halved, for good, and the batch is trained again. Where batched
        modules fail, they run by themselves, for good, and where stacked units, or the backward pass of all, fail
        otherwise, the members are trained on the batch one by one.
        """
        if len(members) == 1:
            return _step_alone(*members[0])
        refused = self._num_refused
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
            parts = self._again(members, full=full, refused=refused)
            return {t: error for part in parts for t, error in self.step(part).items()}
        self._end_batch(list(shares), failed)
        return failed

    def _end_batch(self, trainings: Sequence[Trainer], failed: dict[Trainer, Exception]) -> None:
        """Take the steps that are due, at once where members are batched; those that fail go into `failed`."""

        def each(act: Callable[[Trainer], object], some: Sequence[Trainer]) -> list[Trainer]:
            done = []
            for training in some:
                try:
                    with training.own_random_stream():
                        if act(training) is not False:
                            done.append(training)
                except Exception as error:
                    failed[training] = error
            return done

        if self._modules is None:
            each(lambda t: t.end_batch(), trainings)
            return
        due = each(lambda t: t.gradients.prepare_step(t.progress.step), trainings)
        try:
            steps_together([training.gradients for training in due])
        except Exception as error:
            failed.update(dict.fromkeys(due, error))
            return
        each(lambda t: t.after_step(), due)

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

    @property
    def _num_refused(self) -> int:
        return 0 if self._modules is None else self._modules.num_refused

    def _again(self, members: Sequence[Member], *, full: bool, refused: int) -> Iterator[Sequence[Member]]:
        """Yield the parts in which a batch that failed runs again; `refused` counts the refusals before it."""
        if full:
            yield from self._halves(members)
        elif self._modules is not None:
            if self._num_refused == refused:  # the backward pass, or what is not batched at all
                _say("stacked variants failed together; their adapters and heads are not batched from here on")
                self._modules = None
            yield members
        else:
            yield from ([member] for member in members)

    def _halves(self, members: Sequence[Member]) -> Iterator[Sequence[Member]]:
        """Halve the stack and yield the members in such parts."""
        self._wanted = self.size = max(1, min(self.size, len(members)) // 2)
        _log.warning("memory does not hold %d stacked variants; %d from here on", len(members), self.size)
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
        refused = self._num_refused
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
        parts = self._again(members, full=full, refused=refused)
        return {t: found for part in parts for t, found in self.answers(part).items()}

    def _logits(self, members: Sequence[Member]) -> list[Tensor | Exception]:
        passes = [Pass(model=t.model, batch=b, turn=t.own_random_stream) for t, b in members]
        return run_stacked(passes, self._modules)


def _say(line: str) -> None:
    _log.warning("%s", line)


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
            return predictions_of(_unless_error(logits), batch.questions, training.classes, task=training.task)
    except Exception as error:
        return error


def _unless_error(found: Tensor | Exception) -> Tensor:
    if isinstance(found, Exception):
        raise found
    return found
