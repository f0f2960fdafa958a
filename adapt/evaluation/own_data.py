"""The data set as a finished run knows it: its own classes, what no longer fits them, what differs since training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...errors import RunError
from ...extract.datasets.types import Question
from ..config.experiment import Experiment
from ..data.batch import Source
from ..training.experiment_context import ExperimentContext
from ..training.run_data import collect_data, data_differences
from ..training.run_folder import RunFolder


def own_answers(folder: RunFolder) -> tuple[str, ...]:
    """Return a finished run's classes in their order, which counts whatever the data set's order is by now.

    Raises:
        RunError: the run's folder does not say.
    """
    data = folder.data()
    if data is None or not data.answers:
        raise RunError(f"{folder.path / 'adapter.json'}: answers are missing; expected what training wrote")
    return data.answers


def check_places(folder: RunFolder, experiment: Experiment, *, live: bool) -> None:
    """Raise a RunError where the data set's folder, or the store unless `live`, is not where the run's settings say."""
    extraction = experiment.extraction
    places = [("data set", extraction.base / extraction.data.root)]
    if not live and "://" not in extraction.store.path:
        places.append(("store", extraction.store_path))
    lacking = [f"{what} ({path})" for what, path in places if not path.exists()]
    if lacking:
        raise RunError(
            f"{folder.path}: its {' and its '.join(lacking)} cannot be found; if they or the run's folder were moved, "
            "name an experiment's file that says where they lie with --experiment"
        )


def check_answers(folder: RunFolder, questions: Sequence[Question], answers: Sequence[str]) -> None:
    """Raise a RunError where questions have answers, labels or choices that are none of the run's classes."""
    known = set(answers)
    strange = [{*q.right, *q.labels, *q.choices} - known for q in questions]
    if any(strange):
        example = min(next(filter(None, strange)))
        raise RunError(
            f"{folder.path}: {sum(map(bool, strange))} of {len(questions)} {questions[0].split} questions have an "
            f"answer that is none of the run's {len(known)} classes (for one {example!r}); score it on annotations "
            "with its own answers, or train anew with --retrain"
        )


def differences_since(
    folder: RunFolder, context: ExperimentContext, source: Source, questions: Sequence[Question], *, split: str
) -> tuple[str, ...]:
    """Return how the questions of a split, and their clips, differ from those that the run knew; one line at most.

    Args:
        folder: of the finished run.
        context: of its experiment.
        source: where its states come from.
        questions: those that are scored.
        split: their split.
    """
    then = folder.data()
    if then is None or not then.complete:
        return (f"{folder.path}: labels and clips not compared with the run's: it was made before those were recorded",)
    if split not in then.splits:
        return ()
    now = collect_data({}, source, {split: questions}, answers=(), scored=split, base=context.experiment.base)
    before = replace(then, answers=(), splits={split: then.splits[split]}, scored=split)
    found = data_differences(now, before, stored=context.stored_paths(source))
    return (f"{folder.path}: scored on other data than the run knew (what differs: {'; '.join(found)})",) * bool(found)
