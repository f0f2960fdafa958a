"""Accuracy by question type, counted as MUSIC-AVQA counts it, and the blind baseline that sees no clip.

All averages are micro averages: correct answers over questions, of one type, of one group of types, and of all
questions. (Li et al., Learning to Answer Questions in Dynamic Audio-Visual Scenarios, CVPR 2022, table 3.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..cache.errors import ManifestError, RunError

if TYPE_CHECKING:
    from ..extract.manifest.types import Question

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


def blind_answers(train: Iterable[Question], test: Iterable[Question]) -> dict[str, str]:
    """Answer each test question with its template's most frequent training answer: no picture, no sound, no words.

    A template that training never saw gets the most frequent answer of all; ties go to the alphabetically first.

    Returns:
        The answer by question id.

    Raises:
        ManifestError: `train` is empty.
    """
    by_template: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_template[question.template][question.answer] += 1
    if not by_template:
        raise ManifestError("the training split has no question; the blind baseline needs at least one")
    best = {template: _most_frequent(counts) for template, counts in by_template.items()}
    fallback = _most_frequent(sum(by_template.values(), Counter[str]()))
    return {question.id: best.get(question.template, fallback) for question in test}


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
