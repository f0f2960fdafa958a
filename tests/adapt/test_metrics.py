"""Accuracy by question type."""

from __future__ import annotations

import pytest

from talik import TalikError
from talik.adapt.scoring.metrics import TYPE_ORDER, Tally, order_types, score


def test_averages_are_over_questions_not_over_types() -> None:
    types = ["A-count"] * 8 + ["A-comp"] * 2 + ["V-loc"] * 2
    correct = [True] * 8 + [False] * 2 + [True, False]
    scores = score(types, correct)
    assert scores.by_type["A-count"] == Tally(correct=8, total=8)
    assert scores.by_group["Audio"].accuracy == 0.8  # the mean of the two types would be 0.5
    assert scores.by_group["Visual"].accuracy == 0.5
    assert scores.overall == Tally(correct=9, total=12)
    assert "Audio-Visual" not in scores.by_group


def test_every_type_belongs_to_one_group_and_groups_add_up() -> None:
    types = [name for i, name in enumerate(TYPE_ORDER) for _ in range(i + 1)]
    correct = [i % 3 == 0 for i in range(len(types))]
    scores = score(types, correct)
    assert tuple(scores.by_type) == TYPE_ORDER
    assert sum(t.total for t in scores.by_group.values()) == scores.overall.total == 45
    assert sum(t.correct for t in scores.by_group.values()) == scores.overall.correct == 15


def test_types_stand_in_the_usual_order_and_others_follow_as_they_appear() -> None:
    found = order_types(["zebra", "AV-temp", "apple", "A-comp", "zebra", "A-count"])
    assert found == ("A-count", "A-comp", "AV-temp", "zebra", "apple")


def test_scores_become_what_result_json_holds() -> None:
    assert score(["V-loc", "V-loc"], [True, False]).to_json() == {
        "accuracy": 0.5,
        "by_type": {"V-loc": {"correct": 1, "total": 2}},
    }


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(TalikError, match="at least 1"):
        score([], [])
    with pytest.raises(TalikError, match="2 question types and 1 outcomes"):
        score(["a", "b"], [True])
    with pytest.raises(TalikError, match="3 of 2"):
        Tally(correct=3, total=2)
