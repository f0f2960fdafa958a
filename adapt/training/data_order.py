"""The questions of each split, in the order in which one run trains on them and answers them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from ...extract.datasets.types import Manifest, Question
from ...extract.stage.item_order import ItemOrder
from ..config.experiment import TrainSettings
from ..data.batch import content_order, shuffled, stored_questions
from ..data.cached_source import CachedSource
from ..data.live_source import LiveSource
from ..scoring.predictions import Prediction, batches_of, clip_order, restore_order
from .experiment_context import ExperimentContext
from .random_stream import derived_seed
from .run_data import in_recorded_order


class DataOrder:
    """Batches of questions of one run; they depend on its seed, its questions and its training settings alone.

    The order of the data set's lines does not matter: an epoch permutes the questions sorted by their content, or, of a
    run that was begun in another order, as its folder has recorded them.

    Args:
        context: of the experiment.
        source: the questions whose states it lacks are left out, or refused, as the experiment's settings say.
        settings: sizes of the batches; whether a clip's questions stay together.
        seed: of the run.
        recorded: `question_digest` of each training question in the order in which the run's folder has them; None
            for a new run.
        by_lines: permute the questions as the data set's files have them: of an unfinished run of a version that
            recorded no order.

    Attributes:
        questions: by split, in the data set's order; of `train` and `val` from the start, of others when first needed.
        training_order: the training questions in the order that every epoch permutes.

    Raises:
        ManifestError: the data set lacks one of the two splits.
        MissingItemError: the source lacks states.
    """

    def __init__(
        self,
        context: ExperimentContext,
        source: CachedSource | LiveSource,
        settings: TrainSettings,
        seed: int,
        *,
        recorded: Sequence[str] | None = None,
        by_lines: bool = False,
    ) -> None:
        self._context, self._source, self._settings, self._seed = context, source, settings, seed
        self.questions: dict[str, Sequence[Question]] = {}
        for split in ("train", "val"):
            self.questions_of(split)
        self.training_order: Sequence[Question] = self.questions["train"]
        if recorded is not None:
            self.training_order = in_recorded_order(self.training_order, recorded)
        elif not by_lines:
            self.training_order = sorted(self.training_order, key=content_order)

    def questions_of(self, split: str) -> Sequence[Question]:
        """Return the questions of a split whose states are available."""
        if split not in self.questions:
            given, allow_missing = self._context.questions(split), self._context.allow_missing
            self.questions[split] = stored_questions(self._source, given, allow_missing=allow_missing)
        return self.questions[split]

    @property
    def final_split(self) -> str:
        """The split that a finished run is scored on."""
        return self._context.final_split

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        count, size = len(self.questions["train"]), self._settings.batch_size
        return max(1, count // size if self._settings.drop_last else math.ceil(count / size))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch; the last one takes what batches are left."""
        return math.ceil(self.batches_per_epoch / self._settings.accumulate)

    @property
    def questions_per_epoch(self) -> int:
        """Questions of one epoch that are trained on."""
        return min(len(self.questions["train"]), self.batches_per_epoch * self._settings.batch_size)

    def batch_size(self, index: int) -> int:
        """Return the number of questions of an epoch's batch, from 0."""
        return min(self._settings.batch_size, len(self.questions["train"]) - index * self._settings.batch_size)

    def train_batches(self, epoch: int) -> Iterator[list[Question]]:
        """Yield the batches of an epoch, from 0, each with the questions of all processes."""
        size = self._settings.batch_size
        order = epoch_order(self.training_order, self._settings, self._seed, epoch)
        for start in range(0, self.batches_per_epoch * size, size):
            yield order[start : start + size]

    def view_seed(self, epoch: int) -> int:
        """Return the seed of an epoch's choice of augmented views."""
        return derived_seed(self._seed, f"view/{epoch}")

    def eval_batches(self, split: str) -> list[Sequence[Question]]:
        """Return the batches in which a split is answered, the questions of a clip side by side (see `clip_order`)."""
        questions = self.questions_of(split)
        return batches_of([questions[i] for i in clip_order(questions)], self._settings.eval_batch_size)

    def in_question_order(self, split: str, predictions: Iterable[Sequence[Prediction]]) -> list[Prediction]:
        """Return the predictions of `eval_batches`, given batch by batch, in the order of the split's questions."""
        return restore_order(list(chain.from_iterable(predictions)), clip_order(self.questions_of(split)))


def epoch_order(questions: Sequence[Question], settings: TrainSettings, seed: int, epoch: int) -> list[Question]:
    """Return a run's training questions in the order of an epoch, from 0."""
    order = shuffled(questions, seed=derived_seed(seed, f"order/{epoch}"), by_clip=settings.group_by_clip)
    return [questions[i] for i in order]


def order_of_need(manifest: Manifest, settings: TrainSettings, seed: int) -> ItemOrder:
    """Return the clips and texts in the order in which a new run needs them: its first epoch, validation, the end.

    Args:
        manifest: the data set, of which every clip will have states.
        settings: of the run: sizes of the batches; whether a clip's questions stay together.
        seed: of the run.
    """
    splits = {split: manifest.split(split) for split in ("train", "val", "test") if split in manifest.splits}
    needed = epoch_order(sorted(splits.pop("train", ()), key=content_order), settings, seed, 0)
    size = settings.batch_size
    at_once = max((len({q.clip_id for q in needed[i : i + size]}) for i in range(0, len(needed), size)), default=1)
    needed += [questions[i] for questions in splits.values() for i in clip_order(questions)]
    return ItemOrder(
        clips=tuple(dict.fromkeys(q.clip_id for q in needed)),
        texts=tuple(dict.fromkeys(q.text for q in needed)),
        clips_at_once=at_once,
    )
