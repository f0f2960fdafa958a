"""Scores of multi-label answers: mean average precision, micro and macro F1, and each question's part in them.

    Q  questions      C  classes

Average precision and the F1s are no means over questions, so that a bootstrap over clips cannot add up what each
question scores. `map_values` gives numbers whose mean is the metric all the same: each question's pseudo-value by the
infinitesimal jackknife, the metric plus Q times its derivative by the question's weight (Efron, The Jackknife, the
Bootstrap and Other Resampling Plans, 1982, chapter 6). Resampling them is the bootstrap of the metric, to first order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import RunError
from .metrics import MEAN_AP, Measure, Scores, order_types

#: How an empty set of labels is printed.
NO_LABEL = "(none)"


def label_text(labels: Iterable[str]) -> str:
    """Return a set of labels as one text, whatever their order.

    >>> label_text(["speech", "dog"]), label_text([])
    ('dog, speech', '(none)')
    """
    return ", ".join(sorted(set(labels))) or NO_LABEL


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScores:
    """True and given labels of Q questions over C classes.

    Attributes:
        true, given: bool (Q, C).
        probabilities: float64 (Q, C), 0 to 1.
    """

    true: NDArray[np.bool_]
    given: NDArray[np.bool_]
    probabilities: NDArray[np.float64]

    def only(self, wanted: Sequence[bool] | NDArray[np.bool_]) -> LabelScores:
        """Select questions by a mask of Q truth values."""
        mask = np.asarray(wanted, dtype=np.bool_)
        return LabelScores(true=self.true[mask], given=self.given[mask], probabilities=self.probabilities[mask])


def label_scores(
    rows: Iterable[tuple[Iterable[str], Iterable[str], Sequence[float] | NDArray[np.float64]]], classes: Sequence[str]
) -> LabelScores:
    """Return the scores of questions as arrays.

    Args:
        rows: of each question the true labels, those given, and the probability of each class.
        classes: the C classes, in the order of the probabilities.

    Raises:
        RunError: no question, a label that is no class, or probabilities of another number of classes.
    """
    places, found = {name: i for i, name in enumerate(classes)}, list(rows)
    if not found:
        raise RunError("no question to score; expected at least one")
    true, given = (np.zeros((len(found), len(classes)), dtype=np.bool_) for _ in range(2))
    for q, (labels, predicted, probabilities) in enumerate(found):
        if len(probabilities) != len(classes) or not places.keys() >= {*labels, *predicted}:
            raise RunError(
                f"question {q}: {len(probabilities)} probabilities of {len(classes)} classes, labels "
                f"{label_text(labels)!r} and {label_text(predicted)!r}; expected a probability of each class"
            )
        true[q, [places[name] for name in labels]] = True
        given[q, [places[name] for name in predicted]] = True
    scores = np.stack([np.asarray(row[2], dtype=np.float64) for row in found])
    return LabelScores(true=true, given=given, probabilities=scores)


def average_precision(true: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Return the average precision of one class: the mean over its questions of the precision at their score.

    Questions of equal scores come together, as in scikit-learn's `average_precision_score`.

    Args:
        true: (Q,), at least one of them true.
        scores: (Q,).

    Example:
        >>> average_precision(np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8]))
        0.8333333333333333
    """
    order, precision, _, _ = _ranked(true, scores)
    return float((true[order] * precision).sum() / true.sum())


def mean_average_precision(scores: LabelScores) -> float:
    """Return the mean average precision over the classes that are true of a question, 0 to 1; 0 where none is."""
    found = [average_precision(true, own) for true, own in _columns(scores)]
    return float(np.mean(found)) if found else 0.0


def map_values(scores: LabelScores) -> NDArray[np.float64]:
    """Return a number for each question (Q,) whose mean is the mean average precision (see above)."""
    derivatives = [_derivative(true, own) for true, own in _columns(scores)]
    num = len(scores.true)
    total: NDArray[np.float64] = np.mean(derivatives, axis=0) if derivatives else np.zeros(num)
    return mean_average_precision(scores) + num * total


def micro_f1(scores: LabelScores) -> float:
    """Return F1 of all decisions together, 0 to 1: of every class for every question; 0 where nothing is true or given.

    >>> one = LabelScores(true=np.array([[True, True]]), given=np.array([[True, False]]), probabilities=np.ones((1, 2)))
    >>> micro_f1(one), macro_f1_of_labels(one)
    (0.6666666666666666, 0.5)
    """
    both = scores.true.sum() + scores.given.sum()
    return float(2 * (scores.true & scores.given).sum() / both) if both else 0.0


def macro_f1_of_labels(scores: LabelScores) -> float:
    """Return the mean of each class's F1, over the classes that are true of a question, 0 to 1; 0 where none is."""
    right, both = (scores.true & scores.given).sum(axis=0), scores.true.sum(axis=0) + scores.given.sum(axis=0)
    occurs = scores.true.any(axis=0)
    return float(np.mean(2 * right[occurs] / both[occurs])) if occurs.any() else 0.0


def by_label(scores: LabelScores, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return average precision, F1 and number of questions of each label that is true of one, the most frequent first.

    >>> one = LabelScores(true=np.array([[True, False]]), given=np.array([[True, True]]), probabilities=np.ones((1, 2)))
    >>> by_label(one, ["dog", "cat"])
    {'dog': {'average_precision': 1.0, 'f1': 1.0, 'questions': 1}}
    """
    num = scores.true.sum(axis=0)
    f1 = 2 * (scores.true & scores.given).sum(axis=0) / np.maximum(num + scores.given.sum(axis=0), 1)
    return {
        classes[c]: {
            "average_precision": average_precision(scores.true[:, c], scores.probabilities[:, c]),
            "f1": float(f1[c]),
            "questions": int(num[c]),
        }
        for c in np.argsort(-num, kind="stable")
        if num[c]
    }


def score_labels(types: Sequence[str], scores: LabelScores, *, subsets: Sequence[str] = ()) -> Scores:
    """Return the mean average precision of the questions of each type, of each subset and of all.

    Args:
        types: the type of each of the Q questions.
        scores: of the same questions.
        subsets: the subset of each question, "" for none; as long as `types`, or empty.
    """

    def measure(wanted: Sequence[bool]) -> Measure:
        own = scores.only(wanted)
        return Measure(correct=mean_average_precision(own) * len(own.true), total=len(own.true))

    return Scores(
        by_type={name: measure([t == name for t in types]) for name in order_types(types)},
        by_group={},
        overall=measure([True] * len(types)),
        by_subset={name: measure([s == name for s in subsets]) for name in dict.fromkeys(subsets) if name},
        metric=MEAN_AP,
    )


def _columns(scores: LabelScores) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Yield truth and probabilities (Q,) of each class that is true of a question."""
    for c in np.flatnonzero(scores.true.any(axis=0)):
        yield scores.true[:, c], scores.probabilities[:, c]


def _ranked(
    true: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Sort the questions of a class by falling scores.

    Returns:
        Their order (Q,); and, sorted, the precision at each one's score, how many score as much, and the place of the
        first of its equals, (Q,) each.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    group = np.searchsorted(last, np.arange(len(ranked)))
    num = (last[group] + 1).astype(np.float64)
    first = np.concatenate([[0], last[:-1] + 1])[group]
    return order, np.cumsum(true[order])[last[group]] / num, num, first


def _derivative(true: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the derivative of a class's average precision by the weight of each question, at equal weights, (Q,).

    With weights w the precision at question i is sum(w y) / sum(w) over the questions k that score as much as i or
    more; its derivative by w_k is (y_k - precision_i) / num_i for these.
    """
    order, precision, num, first = _ranked(true, scores)
    y = true[order].astype(np.float64)
    below = np.cumsum((y / num)[::-1])[::-1][first]  # over the true ones that score as much or less
    below_precision = np.cumsum((y * precision / num)[::-1])[::-1][first]
    numerator = y * precision + y * below - below_precision
    found = np.empty_like(numerator)
    found[order] = (numerator - y * (y * precision).sum() / y.sum()) / y.sum()
    return found
