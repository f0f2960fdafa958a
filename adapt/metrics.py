"""Accuracy by question type, counted as MUSIC-AVQA counts it.

All averages are micro averages: correct answers over questions, of one type, of one group of types, and of all
questions. (Li et al., Learning to Answer Questions in Dynamic Audio-Visual Scenarios, CVPR 2022, table 3.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..cache.errors import RunError

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Audio": ("A-count", "A-comp"),
    "Visual": ("V-count", "V-loc"),
    "Audio-Visual": ("AV-exist", "AV-loc", "AV-count", "AV-comp", "AV-temp"),
}
TYPE_ORDER: tuple[str, ...] = tuple(name for members in GROUPS.values() for name in members)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many of `total` questions (at least 1) were answered correctly."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise RunError(f"a tally of {self.correct} of {self.total}: expected 0 <= correct <= total, and a question")

    @property
    def accuracy(self) -> float:
        """The fraction that is correct, in [0, 1]."""
        return self.correct / self.total


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Tallies of one run on one split; types and groups without a question are absent."""

    by_type: dict[str, Tally]
    by_group: dict[str, Tally]
    overall: Tally

    def to_json(self) -> dict[str, object]:
        """Return `{"accuracy": fraction, "by_type": {type: {"correct": …, "total": …}}}`, as result.json has it."""
        types = {name: {"correct": t.correct, "total": t.total} for name, t in self.by_type.items()}
        return {"accuracy": self.overall.accuracy, "by_type": types}


def order_types(types: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names: MUSIC-AVQA's in their usual order first, others in order of appearance."""
    seen = dict.fromkeys(types)
    return tuple(t for t in TYPE_ORDER if t in seen) + tuple(t for t in seen if t not in TYPE_ORDER)


def score(types: Sequence[str], correct: Sequence[bool]) -> Scores:
    """Count correct answers by type, by group and in all.

    Args:
        types: the type of each question.
        correct: whether each was answered correctly; as long as `types`.

    Raises:
        RunError: no question at all, or two lengths.
    """
    if len(types) != len(correct) or not types:
        raise RunError(f"found {len(types)} question types and {len(correct)} outcomes; expected as many, at least 1")
    totals = Counter(types)
    hits = Counter(name for name, right in zip(types, correct, strict=True) if right)
    by_type = {name: Tally(correct=hits[name], total=totals[name]) for name in order_types(types)}
    by_group: dict[str, Tally] = {}
    for group, members in GROUPS.items():
        total = sum(totals[name] for name in members)
        if total:
            by_group[group] = Tally(correct=sum(hits[name] for name in members), total=total)
    overall = Tally(correct=hits.total(), total=totals.total())
    return Scores(by_type=by_type, by_group=by_group, overall=overall)
