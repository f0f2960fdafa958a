"""The page's plots of a selection's gates: which segments and words it kept for a question, as evaluate --gates wrote.

A gate of 1 lets pass and has no colour; those above are in the page's accent, those below in its red, the stronger the
further from 1, the furthest of a plot at full strength.

Letters: T segments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ...errors import RunError
from .drawing import HALF_WIDTH, svg, tag, text, titled
from .runs import Run

_CELL_WIDTH, _CELL_HEIGHT, _LEFT, _TOP = 96.0, 24.0, 64.0, 18.0
_FRAME_HEIGHT = 0.75  # of its width
_WORD_HEIGHT, _CHARACTER = 34.0, 6.8
_NUMBER_WIDTH = 34.0  # below it a number does not fit
_LEAST_REACH = 0.05  # smaller gates' differences stay pale
_SHOWN_QUESTIONS = 6


@dataclass(frozen=True, kw_only=True)
class ShownGates:
    """The gates of one question in one run.

    Args:
        label: the variant's.
        question, answer: as asked, and the true answer.
        charts: one a insertion, with its number; the clip's frames stand in them.
    """

    label: str
    question: str
    answer: str
    clip_id: str
    charts: tuple[tuple[int, Markup], ...]


def shown_gates(
    variants: Mapping[str, Sequence[Run]],
    labels: Mapping[str, str],
    *,
    clips: Iterable[str] = (),
    frames: Mapping[str, tuple[str, ...]] | None = None,
    count: int = _SHOWN_QUESTIONS,
) -> tuple[ShownGates, ...]:
    """Return the plots of a few questions for every variant whose first run has gates written.

    Args:
        variants: the runs of each variant.
        labels: what to print for a variant's name.
        clips: questions about these clips are taken first, whatever was answered.
        frames: data URIs by clip id, shown where a clip has as many as segments.
        count: questions a variant.

    Raises:
        RunError: a gates file that is not as evaluate writes it.
    """
    wanted = list(clips)
    shown = []
    for name, runs in variants.items():
        path = runs[0].path / f"gates-{runs[0].split}.jsonl"
        if not path.is_file():
            continue
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            by_question: dict[str, list[dict[str, Any]]] = {}
            for record in records:
                by_question.setdefault(record["question_id"], []).append(record)
            asked = [p for p in runs[0].predictions if p.question_id in by_question]
            asked.sort(key=lambda p: wanted.index(p.clip_id) if p.clip_id in wanted else len(wanted))
            for prediction in _one_a_clip(asked)[:count]:
                own = (frames or {}).get(prediction.clip_id, ())
                charts = [(r["insertion"], gate_chart(r, own)) for r in by_question[prediction.question_id]]
                shown.append(
                    ShownGates(
                        label=labels.get(name, name),
                        question=prediction.question,
                        answer=prediction.answer,
                        clip_id=prediction.clip_id,
                        charts=tuple(charts),
                    )
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not as talik evaluate --gates writes it ({error}); write it again") from None
    return tuple(shown)


def gate_chart(record: Mapping[str, Any], frames: Sequence[str] = ()) -> Markup:
    """Draw one question's gates: a row of segments for each modality, below the frames; then the question's words.

    Args:
        record: a line of gates-<split>.jsonl.
        frames: data URIs, shown where there are as many as segments.
    """
    rows = [(m, [float(v) for v in record[m]]) for m in ("visual", "audio") if m in record]
    words = [float(v) for v in record.get("text") or ()]
    reach = max([_LEAST_REACH, *(abs(v - 1) for v in (*words, *(v for _, values in rows for v in values)))])
    num = max((len(values) for _, values in rows), default=1)
    cell = min(_CELL_WIDTH, (HALF_WIDTH - _LEFT) / num)
    parts = [text(str(t + 1), _LEFT + (t + 0.5) * cell, 12, anchor="middle") for t in range(num)] if rows else []
    top = _TOP if rows else 0.0
    if rows and len(frames) == num:
        height = (cell - 1) * _FRAME_HEIGHT
        parts += [_image(uri, _LEFT + t * cell + 0.5, top, cell - 1, height) for t, uri in enumerate(frames)]
        top += height + 3
    for modality, values in rows:
        parts.append(text(modality, _LEFT - 8, top + 16, anchor="end"))
        for t, value in enumerate(values):
            box = _box(_LEFT + t * cell, top, cell, _CELL_HEIGHT, value, reach)
            parts.append(titled(box, f"{modality}, segment {t + 1}: {value:.2f}"))
            if cell >= _NUMBER_WIDTH:
                parts.append(text(f"{value:.2f}", _LEFT + (t + 0.5) * cell, top + 16, anchor="middle", class_="word"))
        top += _CELL_HEIGHT + 3
    if words:
        parts.append(text("text", _LEFT - 8, top + 14, anchor="end"))
        drawn, top = _words(words, [str(name) for name in record.get("tokens") or ()], top, reach)
        parts += drawn
    return svg(parts, f"gates of {record['question_id']}", width=HALF_WIDTH, height=top + 2)


def _words(values: Sequence[float], names: Sequence[str], top: float, reach: float) -> tuple[list[Markup], float]:
    """The tokens as boxes in reading order, each with its gate below; and where the next thing can stand."""
    parts, left = [], _LEFT
    for i, value in enumerate(values):
        word = names[i] if i < len(names) else str(i + 1)
        width = min(HALF_WIDTH - _LEFT, max(_NUMBER_WIDTH, len(word) * _CHARACTER + 12))
        if left + width > HALF_WIDTH:
            left, top = _LEFT, top + _WORD_HEIGHT + 3
        parts.append(titled(_box(left, top, width, _WORD_HEIGHT, value, reach), f"token {word}: {value:.2f}"))
        parts.append(text(word, left + width / 2, top + 14, anchor="middle", class_="word"))
        parts.append(text(f"{value:.2f}", left + width / 2, top + 28, anchor="middle", class_="gate"))
        left += width
    return parts, top + _WORD_HEIGHT + 3


def _one_a_clip(predictions: Sequence[Any]) -> list[Any]:
    """The first question of each clip, then the second of each, and so on."""
    turns: dict[str, int] = {}
    keyed = []
    for place, prediction in enumerate(predictions):
        turn = turns[prediction.clip_id] = turns.get(prediction.clip_id, -1) + 1
        keyed.append((turn, place, prediction))
    return [prediction for _, _, prediction in sorted(keyed, key=lambda k: k[:2])]


def _box(x: float, y: float, width: float, height: float, value: float, reach: float) -> Markup:
    strength = 0.6 * min(1.0, abs(value - 1) / reach)
    colour = "var(--accent)" if value >= 1 else "var(--bad)"
    place = {"x": x + 0.5, "y": y, "width": width - 1, "height": height, "rx": 2}
    return tag("rect", **place, fill=colour, fill_opacity=f"{strength:.3f}", stroke="var(--line)")


def _image(uri: str, x: float, y: float, width: float, height: float) -> Markup:
    return tag("image", x=x, y=y, width=width, height=height, href=uri)
