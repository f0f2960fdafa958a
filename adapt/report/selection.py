"""The page's plots of a selection's gates: which segments each modality kept for a question, as evaluate --gates wrote.

Letters: T segments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from ...cache.errors import RunError
from .runs import Run

_CELL_WIDTH, _CELL_HEIGHT, _LEFT, _TOP = 46.0, 24.0, 64.0, 18.0
_WIDTH = 460.0
_SHOWN_QUESTIONS = 6


@dataclass(frozen=True, kw_only=True)
class ShownGates:
    """The gates of one question in one run.

    Args:
        label: the variant's.
        question, answer: as asked, and the true answer.
        charts: one a insertion, with its number.
        frames: data URIs of the clip's frames, one a segment; () where there are none.
    """

    label: str
    question: str
    answer: str
    clip_id: str
    charts: tuple[tuple[int, Markup], ...]
    frames: tuple[str, ...] = ()


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
                charts = [(r["insertion"], gate_chart(r)) for r in by_question[prediction.question_id]]
                segments = len(by_question[prediction.question_id][0].get("visual", ()))
                own = (frames or {}).get(prediction.clip_id, ())
                shown.append(
                    ShownGates(
                        label=labels.get(name, name),
                        question=prediction.question,
                        answer=prediction.answer,
                        clip_id=prediction.clip_id,
                        charts=tuple(charts),
                        frames=own if len(own) == segments else (),
                    )
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not as talik evaluate --gates writes it ({error}); write it again") from None
    return tuple(shown)


def gate_chart(record: Mapping[str, Any]) -> Markup:
    """Draw one question's gates: a row of segments for each modality, the question's tokens below; dark is kept."""
    rows = [(m, record[m]) for m in ("visual", "audio") if m in record]
    num = max((len(values) for _, values in rows), default=1)
    cell = min(_CELL_WIDTH, (_WIDTH - _LEFT) / num)
    parts = [_text(str(t + 1), _LEFT + (t + 0.5) * cell, 12, "middle") for t in range(num)]
    top = _TOP
    for modality, values in rows:
        parts.append(_text(modality, _LEFT - 8, top + 16, "end"))
        parts += [_cell(_LEFT + t * cell, top, cell, v, f"{modality}, segment {t + 1}") for t, v in enumerate(values)]
        top += _CELL_HEIGHT + 3
    if record.get("text"):
        parts.append(_text("text", _LEFT - 8, top + 16, "end"))
        width = min(_CELL_WIDTH, (_WIDTH - _LEFT) / len(record["text"]))
        names = record.get("tokens") or [str(i + 1) for i in range(len(record["text"]))]
        for i, value in enumerate(record["text"]):
            parts.append(_cell(_LEFT + i * width, top, width, value, f"token {names[i] if i < len(names) else i + 1}"))
        top += _CELL_HEIGHT + 3
    label = f"gates of {record['question_id']}"
    return Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, top + 2, escape(label), Markup("").join(parts)
    )


def _one_a_clip(predictions: Sequence[Any]) -> list[Any]:
    """The first question of each clip, then the second of each, and so on."""
    turns: dict[str, int] = {}
    keyed = []
    for place, prediction in enumerate(predictions):
        turn = turns[prediction.clip_id] = turns.get(prediction.clip_id, -1) + 1
        keyed.append((turn, place, prediction))
    return [prediction for _, _, prediction in sorted(keyed, key=lambda k: k[:2])]


def _cell(x: float, y: float, width: float, value: float, what: str) -> Markup:
    number = float(value)
    shade = min(1.0, max(0.0, number / 2))
    rect = Markup(
        '<g><title>{}: {:.2f}</title><rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" '
        'fill="var(--accent)" fill-opacity="{:.3f}" stroke="var(--line)"/>{}</g>'
    )
    shown = _text(f"{number:.2f}", x + width / 2, y + 16, "middle") if width >= 30 else Markup("")
    return rect.format(what, number, x + 0.5, y, width - 1, _CELL_HEIGHT, shade, shown)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="tick">{}</text>').format(x, y, anchor, text)
