"""Scores of multi-label answers against their definitions, and their pseudo-values against the bootstrap itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from talik.adapt.report.statistics import Outcomes, compare
from talik.adapt.scoring.multi_label import (
    LabelScores,
    average_precision,
    label_scores,
    macro_f1_of_labels,
    map_values,
    mean_average_precision,
    micro_f1,
    score_labels,
)
from talik.errors import RunError

#: Truth, scores and scikit-learn's definition, the sum over thresholds of (R_n - R_(n-1)) P_n, worked out by hand.
REFERENCE = [
    ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.8333333333333333),
    ([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.2], 0.6666666666666666),
    ([1, 1], [0.3, 0.3], 1.0),
    ([0, 1, 0, 0, 1], [0.9, 0.1, 0.8, 0.7, 0.6], 0.325),
]


def by_definition(true: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Average precision with weighted questions: the precision at each true one's score."""
    at = [np.average(true[scores >= scores[i]], weights=weights[scores >= scores[i]]) for i in np.flatnonzero(true)]
    return float(np.average(at, weights=weights[true]))


def drawn(rng: np.random.Generator, num: int, classes: int) -> LabelScores:
    true = rng.random((num, classes)) < 0.3
    scores = np.round(np.clip(0.5 * true + rng.normal(0.3, 0.25, true.shape), 0, 1), 2)  # with ties
    return LabelScores(true=true, given=scores >= 0.5, probabilities=scores)


@pytest.mark.parametrize(("true", "scores", "expected"), REFERENCE)
def test_average_precision_is_that_of_the_table(true: list[int], scores: list[float], expected: float) -> None:
    assert average_precision(np.array(true, dtype=bool), np.array(scores)) == pytest.approx(expected, abs=1e-12)


def test_pseudo_values_are_the_derivatives_by_weights() -> None:
    found = drawn(np.random.default_rng(0), 40, 3)
    values = map_values(found)
    assert values.mean() == pytest.approx(mean_average_precision(found))
    for k in range(40):
        ends = []
        for sign in (1, -1):
            weights = np.ones(40)
            weights[k] += sign * 1e-6
            ends.append(
                np.mean([by_definition(found.true[:, c], found.probabilities[:, c], weights) for c in range(3)])
            )
        assert (values[k] - values.mean()) / 40 == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_intervals_are_those_of_resampled_clips() -> None:
    rng = np.random.default_rng(1)
    a = drawn(rng, 600, 4)
    b = LabelScores(
        true=a.true, given=a.given, probabilities=np.clip(a.probabilities + rng.normal(0, 0.3, a.true.shape), 0, 1)
    )
    clips = np.repeat(np.arange(200), 3)
    ids, names = tuple(f"q{i}" for i in range(600)), tuple(map(str, clips))
    sides = [Outcomes(question_ids=ids, clip_ids=names, values=map_values(x)[None]) for x in (a, b)]
    found = compare(*sides)
    differences = []
    for _ in range(400):
        picked = (rng.integers(200, size=200)[:, None] * 3 + np.arange(3)).ravel()
        ap = [
            np.mean([average_precision(x.true[picked, c], x.probabilities[picked, c]) for c in range(4)])
            for x in (a, b)
        ]
        differences.append(100 * (ap[0] - ap[1]))
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found.points == pytest.approx(100 * (mean_average_precision(a) - mean_average_precision(b)))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_f1_counts_decisions_and_scores_stand_by_type() -> None:
    rows = [(["x", "y"], ["x"], [0.9, 0.4, 0.1]), (["y"], ["y", "z"], [0.2, 0.8, 0.7]), ([], [], [0.1, 0.1, 0.1])]
    found = label_scores(rows, ["x", "y", "z"])
    assert micro_f1(found) == 2 * 2 / (3 + 3)
    assert macro_f1_of_labels(found) == pytest.approx((1 + 2 / 3) / 2)  # z is true of no question
    scores = score_labels(["a", "a", "b"], found, subsets=["", "head", ""])
    assert scores.overall.accuracy == mean_average_precision(found) == 1.0
    assert scores.by_type["b"].accuracy == 0.0
    assert str(scores.by_type["a"]) == "2 questions"
    assert scores.by_subset["head"].total == 1
    assert scores.to_json()["map"] == 1.0
    with pytest.raises(RunError, match="expected a probability of each class"):
        label_scores([(["x"], [], [0.5])], ["x", "y"])
    with pytest.raises(RunError, match="no question to score"):
        label_scores([], ["x"])
