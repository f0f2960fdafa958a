"""What each right answer of a question scores, where several people answered or several answers are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

#: "any": each right answer scores 1. "vqa": the more people gave it, the more, up to 1 for three.
Scoring = Literal["any", "vqa"]


def answer_scores(answer: str, answers: Sequence[str] = (), *, scoring: Scoring = "any") -> dict[str, float]:
    """Return what each right answer scores, in order of appearance; any other answer scores 0.

    "vqa" is min(n / 3, 1) for an answer that n people gave (Antol et al., VQA: Visual Question Answering, ICCV 2015,
    sec. 4), of all answers at once: VQA's own program averages it over all choices of all but one of them.

    Args:
        answer: the one right answer, where there are no others.
        answers: all that were given, an answer as often as people gave it; () where there is only `answer`.
        scoring: see above.

    Returns:
        By answer, more than 0 and up to 1; {} of a question without any.

    Example:
        >>> answer_scores("red", ["red", "red", "red", "dark red"], scoring="vqa")
        {'red': 1.0, 'dark red': 0.3333333333333333}
        >>> answer_scores("red", ["red", "dark red"]), answer_scores("red", scoring="vqa")
        ({'red': 1.0, 'dark red': 1.0}, {'red': 1.0})
    """
    if not answers:
        return {answer: 1.0} if answer else {}
    return {name: 1.0 if scoring == "any" else min(n / 3, 1.0) for name, n in Counter(answers).items()}
