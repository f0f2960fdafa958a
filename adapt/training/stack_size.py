"""One batch of a fused group: its members one after the other, or their units stacked, as the experiment asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import TalikError
from ...extract.datasets.types import Question
from ...extract.trunk.state import State
from ..evaluation.predictions import Prediction, autocast, predictions_of
from .experiment_context import ExperimentContext
from .stacked_forward import Job, run_stacked
from .trainer import Trainer

Member = tuple[Trainer, Mapping[str, State]]
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

    def step(self, members: Sequence[Member], questions: Sequence[Question]) -> list[tuple[Trainer, TalikError]]:
        """Train each on one batch; return those that failed, with their errors."""
        if len(members) == 1:
            ((training, states),) = members
            try:
                with training.own_random_stream():
                    training.step(questions, states)
            except TalikError as error:
                return [(training, error)]
            return []
        failed, shares = [], []
        for training, logits in self._logits(members):
            try:
                if isinstance(logits, TalikError):
                    raise logits
                with training.own_random_stream():
                    shares.append((training, training.share_of_step(logits, questions)))
            except TalikError as error:
                failed.append((training, error))
        if shares:  # what they train is disjoint: the gradient of the sum gives each its own
            torch.stack([share for _, share in shares]).sum().backward()
        for training, _ in shares:
            with training.own_random_stream():
                training.end_batch()
        return failed

    @torch.no_grad()
    def answers(
        self, members: Sequence[Member], questions: Sequence[Question]
    ) -> list[tuple[Trainer, list[Prediction]]]:
        """Answer one batch with each."""
        if len(members) == 1:
            ((training, states),) = members
            with training.own_random_stream():
                return [(training, training.answers(questions, states))]
        found = []
        for training, states in members:
            with training.own_random_stream():
                training.count_flops(questions, states)
            training.model.eval()
        for training, logits in self._logits(members):
            if isinstance(logits, TalikError):
                raise logits
            training.model.train()
            with training.own_random_stream():
                found.append((training, predictions_of(logits, questions, training.context.manifest.answers)))
        return found

    def _logits(self, members: Sequence[Member]) -> list[tuple[Trainer, Tensor | TalikError]]:
        device = self._device.type
        jobs = [
            Job(
                steps=training.model.steps(states, training.context.sampling.num_segments),
                turn=training.own_random_stream,
                autocast=partial(autocast, training.settings.amp, device),
                precision=training.settings.amp,
            )
            for training, states in members
        ]
        return list(zip([training for training, _ in members], run_stacked(jobs), strict=True))
