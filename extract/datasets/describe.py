"""What is said of a data set when it is loaded: counts, release, duplicates, leaks between splits, blind baseline."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

from ...errors import counted
from .answer_scores import Scoring, answer_scores
from .types import MUSIC_AVQA_TYPES, Manifest, Question


def describe(manifest: Manifest, *, brief: bool = False) -> list[str]:
    """Return the summary of a manifest, one line each, ready to print; `brief` leaves out the counts by type."""
    lines = [f"{manifest.name}: {len(manifest.questions)} questions, {len(manifest.clips)} clips in {manifest.root}"]
    for split in manifest.splits:
        questions = manifest.split(split)
        clips = len({q.clip_id for q in questions})
        types = "" if brief else f" ({_types(manifest, split)})"
        lines.append(f"  {split}: {len(questions)} questions about {clips} clips{types}")
    lines += [f"  {note}" for note in manifest.notes]
    if manifest.missing:
        shown = ", ".join(manifest.missing[:10]) + (", …" if len(manifest.missing) > 10 else "")
        lines.append(f"  missing: {counted(len(manifest.missing), 'clip')} without a file: {shown}")
    lines += [f"  {line}" for line in shared_clips(manifest)]
    lines += [f"  {line}" for line in (*_unseen_answers(manifest), *_several_answers(manifest))]
    lines.append(f"  {_blind(manifest)}")
    return lines


def shared_clips(manifest: Manifest) -> list[str]:
    """Return a line for each two splits that have clips, or films, in common: how many, and of how many."""
    clips = {s: {q.clip_id for q in manifest.split(s)} for s in manifest.splits}
    lines = []
    for a, b in combinations(manifest.splits, 2):
        if both := len(clips[a] & clips[b]):
            lines.append(f"shared: {both} of the {len(clips[a])} clips of {a} are also in {b}")
        films = {name: {_film(manifest, clip) for clip in clips[name]} for name in (a, b)}
        if (films[a] & films[b]) - clips[a]:
            both = len(films[a] & films[b])
            lines.append(f"shared: {both} of the {len(films[a])} films of {a} are also in {b}, with other stretches")
    return lines


def _film(manifest: Manifest, clip_id: str) -> str:
    return clip_id.removesuffix(manifest.clips[clip_id].fragment)


def _types(manifest: Manifest, split: str) -> str:
    counts = Counter(q.type for q in manifest.split(split))
    known = [t for t in MUSIC_AVQA_TYPES if t in counts]
    others = sorted((t for t in counts if t not in known), key=lambda t: (-counts[t], t))
    shown = [*known, *others][:20]
    more = f", and {len(counts) - len(shown)} more types" if len(counts) > len(shown) else ""
    return ", ".join(f"{t} {counts[t]}" for t in shown) + more


def _unseen_answers(manifest: Manifest) -> list[str]:
    if "train" not in manifest.splits:
        return []
    learnt = {word for q in manifest.split("train") for word in (*q.right, *q.labels)}
    lines = []
    for split in manifest.splits:
        unseen = sum(not is_learnt(q, learnt) for q in manifest.split(split))
        if unseen:
            lines.append(f"unseen: {counted(unseen, 'question')} of {split} with an answer that train does not have")
    return lines


def _several_answers(manifest: Manifest) -> list[str]:
    """Say how many right answers, or labels, the questions have, where some have more than one or none."""
    counts = [len(q.right) for q in manifest.questions if not q.labels]
    if not counts or {*counts} == {1}:
        return []
    none = f", {counted(counts.count(0), 'question')} with none" * (0 in counts)
    mean = sum(counts) / len(counts)
    return [f"right answers or labels: {mean:.2f} a question, {len(manifest.answers)} different ones{none}"]


def is_learnt(question: Question, words: Collection[str]) -> bool:
    """Return whether `words` hold a right answer of a question, and the classes of all its segments."""
    return all(label in words for label in question.labels) and (
        not question.right or any(answer in words for answer in question.right)
    )


def _blind(manifest: Manifest) -> str:
    """Return how often the most frequent answer of each template is right, in every split but train."""
    if "train" not in manifest.splits:
        return "blind baseline: not fitted, since there is no train split"
    others = [s for s in manifest.splits if s != "train"] or ["train"]
    if all(q.labels for q in manifest.questions):
        label = most_frequent_label(manifest)
        shares = (f"{s} {100 * _share(manifest, s, label):.2f} %" for s in others)
        return f"blind baseline ({label!r}, train's most frequent class, in every segment): {', '.join(shares)}"
    shares = (f"{s} {100 * fraction_correct(manifest.split(s), blind_baseline(manifest, s)):.2f} %" for s in others)
    several = ", right if any answer of the list is" * any(len(q.right) > 1 for q in manifest.questions)
    return f"blind baseline (most frequent answer of each template in train{several}): {', '.join(shares)}"


def _share(manifest: Manifest, split: str, label: str) -> float:
    labels = [found for q in manifest.split(split) for found in q.labels]
    return labels.count(label) / len(labels)


def blind_baseline(manifest: Manifest, split: str) -> dict[str, str]:
    """Return a predicted answer for each question of `split`, by question id, fitted on train.

    A template that train does not have gets the most frequent answer of the question's type, or else of all. Of equally
    frequent answers the one with the lower class wins. A question with choices gets that of its choices which train
    answers most often. Of several right answers each counts.

    Raises:
        ManifestError: there is no split of that name, or no train split.
    """
    train = manifest.split("train")
    rank = {answer: i for i, answer in enumerate(manifest.answers)}
    by_template = _most_frequent(((q.template.strip(), answer) for q in train for answer in q.right), rank)
    by_type = _most_frequent(((q.type, answer) for q in train for answer in q.right), rank)
    overall = _most_frequent((("", answer) for q in train for answer in q.right), rank).get("", manifest.answers[0])
    often = Counter(answer for q in train for answer in q.right)
    return {
        q.id: min(q.choices, key=lambda choice: (-often[choice], rank[choice]))
        if q.choices
        else by_template.get(q.template.strip(), by_type.get(q.type, overall))
        for q in manifest.split(split)
    }


def blind_label_shares(manifest: Manifest, split: str) -> dict[str, dict[str, float]]:
    """Return how often each label is true in train, by the id of each question of `split`: the blind baseline's guess.

    Counted are the questions of the template; where train has none, those of the type, or else all.

    Returns:
        Of each question its labels with their shares, 0 to 1; labels that are never true are left out.

    Raises:
        ManifestError: there is no split of that name, or no train split.
    """
    train = manifest.split("train")
    groups: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for q in train:
        groups["template", q.template.strip()].append(q)
        groups["type", q.type].append(q)
    shares: dict[tuple[str, str], dict[str, float]] = {}
    found = {}
    for q in manifest.split(split):
        keys = [("template", q.template.strip()), ("type", q.type)]
        key = next((key for key in keys if key in groups), ("", ""))
        if key not in shares:
            own = groups.get(key, train)
            counts = Counter(answer for one in own for answer in one.right)
            shares[key] = {answer: count / len(own) for answer, count in counts.items()}
        found[q.id] = shares[key]
    return found


def most_frequent_label(manifest: Manifest) -> str:
    """Return the class that most segments of train are of; of equally frequent ones the lower.

    Raises:
        ManifestError: there is no train split.
    """
    rank = {answer: i for i, answer in enumerate(manifest.answers)}
    counts = Counter(label for q in manifest.split("train") for label in q.labels)
    return min(counts, key=lambda label: (-counts[label], rank[label]))


def fraction_correct(
    questions: Iterable[Question], predictions: Mapping[str, str], *, scoring: Scoring = "any"
) -> float:
    """Return the mean of what the predictions (by question id) score; a question without any prediction is wrong."""
    scores = [
        answer_scores(q.answer, q.answers, scoring=scoring).get(predictions.get(q.id, ""), 0.0) for q in questions
    ]
    return sum(scores) / len(scores) if scores else 0.0


def _most_frequent(pairs: Iterable[tuple[str, str]], rank: Mapping[str, int]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, answer in pairs:
        counts[group][answer] += 1
    return {group: min(c, key=lambda answer: (-c[answer], rank[answer])) for group, c in counts.items()}
