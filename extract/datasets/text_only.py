"""The blind baseline: answering with the most frequent answer of a question's template, seeing and hearing nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from .types import Manifest, Question


def blind_baseline(manifest: Manifest, split: str) -> dict[str, str]:
    """Return a predicted answer for each question of `split`, by question id, fitted on train.

    A template that train does not have gets the most frequent answer of the question's type, or else of all. Of equally
    frequent answers the one with the lower class wins. A question with choices gets that of its choices which train
    answers most often.

    Raises:
        ManifestError: there is no split of that name, or no train split.
    """
    train = manifest.split("train")
    rank = {answer: i for i, answer in enumerate(manifest.answers)}
    by_template = _most_frequent(((q.template.strip(), q.answer) for q in train), rank)
    by_type = _most_frequent(((q.type, q.answer) for q in train), rank)
    overall = _most_frequent((("", q.answer) for q in train), rank)[""]
    often = Counter(q.answer for q in train)
    return {
        q.id: min(q.choices, key=lambda choice: (-often[choice], rank[choice]))
        if q.choices
        else by_template.get(q.template.strip(), by_type.get(q.type, overall))
        for q in manifest.split(split)
    }


def most_frequent_label(manifest: Manifest) -> str:
    """Return the class that most segments of train are of; of equally frequent ones the lower.

    Raises:
        ManifestError: there is no train split.
    """
    rank = {answer: i for i, answer in enumerate(manifest.answers)}
    counts = Counter(label for q in manifest.split("train") for label in q.labels)
    return min(counts, key=lambda label: (-counts[label], rank[label]))


def fraction_correct(questions: Iterable[Question], predictions: Mapping[str, str]) -> float:
    """Return the share of `questions` whose prediction (by question id) is their answer; one without any is wrong."""
    right = [predictions.get(q.id) == q.answer for q in questions]
    return sum(right) / len(right) if right else 0.0


def _most_frequent(pairs: Iterable[tuple[str, str]], rank: Mapping[str, int]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, answer in pairs:
        counts[group][answer] += 1
    return {group: min(c, key=lambda answer: (-c[answer], rank[answer])) for group, c in counts.items()}
