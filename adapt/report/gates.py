"""Read what evaluate --gates wrote: how strongly a selection gated each segment and word, for a few questions.

A gate of 1 passes its token unchanged, 0 suppresses it, 2 doubles it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RunError
from .runs import Prediction, Run

_LEAST_REACH = 0.05  # smaller differences between gates stay pale
_SHOWN_QUESTIONS = 6


@dataclass(frozen=True, kw_only=True)
class GateChart:
    """Gates of one question at one insertion, means over channels.

    Attributes:
        insertion: its number, from 0.
        segments: by modality ("visual", "audio"), one gate per segment.
        words: the question's tokens, each with its gate.
        reach: largest distance of a shown gate from 1, at least 0.05.
    """

    insertion: int
    segments: Mapping[str, tuple[float, ...]]
    words: tuple[tuple[str, float], ...]
    reach: float

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> GateChart:
        """Read one line of gates-<split>.jsonl."""
        segments = {m: tuple(map(float, record[m])) for m in ("visual", "audio") if m in record}
        values = [float(v) for v in record.get("text") or ()]
        names = [str(name) for name in record.get("tokens") or ()]
        words = tuple((names[i] if i < len(names) else str(i + 1), value) for i, value in enumerate(values))
        distances = [abs(v - 1) for v in (*values, *(v for gates in segments.values() for v in gates))]
        return cls(
            insertion=int(record["insertion"]),
            segments=segments,
            words=words,
            reach=max([_LEAST_REACH, *distances]),
        )

    @property
    def num_segments(self) -> int:
        """Number of segments, T; 0 where only words are gated."""
        return max(map(len, self.segments.values()), default=0)

    def shade(self, gate: float) -> str:
        """Colour a gate: accent above 1, red below, the stronger the further from 1 (CSS)."""
        strength = 60 * min(1.0, abs(gate - 1) / self.reach)
        return f"color-mix(in srgb, var(--{'accent' if gate >= 1 else 'bad'}) {strength:.1f}%, transparent)"


@dataclass(frozen=True, kw_only=True)
class ShownGates:
    """Gates of one question in one variant's first run; `frames` are data URIs, one per segment, or ()."""

    label: str
    prediction: Prediction
    frames: tuple[str, ...]
    charts: tuple[GateChart, ...]


def shown_gates(
    variants: Mapping[str, Sequence[Run]],
    labels: Mapping[str, str],
    *,
    clips: Iterable[str] = (),
    frames: Mapping[str, tuple[str, ...]] | None = None,
    count: int = _SHOWN_QUESTIONS,
) -> tuple[ShownGates, ...]:
    """Read the gates of up to `count` questions of every variant whose first run has them written.

    Args:
        variants: the runs of each variant.
        labels: printed names by variant name.
        clips: questions about these clips come first, whatever was answered.
        frames: data URIs by clip id, shown where a clip has as many as segments.
        count: questions per variant.

    Raises:
        RunError: a gates file that is not as evaluate writes it.
    """
    wanted = list(clips)
    shown = []
    for name, runs in variants.items():
        path = runs[0].path / f"gates-{runs[0].split}.jsonl"
        if not path.is_file():
            continue
        charts: dict[str, list[GateChart]] = {}
        try:
            for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                charts.setdefault(record["question_id"], []).append(GateChart.from_record(record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not as talik evaluate --gates writes it ({error}); write it again") from None
        with_gates = [p for p in runs[0].predictions if p.question_id in charts]
        with_gates.sort(key=lambda p: wanted.index(p.clip_id) if p.clip_id in wanted else len(wanted))
        for prediction in _one_per_clip(with_gates)[:count]:
            found = tuple(charts[prediction.question_id])
            own = (frames or {}).get(prediction.clip_id, ())
            shown.append(
                ShownGates(
                    label=labels.get(name, name),
                    prediction=prediction,
                    frames=own if all(len(own) == chart.num_segments for chart in found) else (),
                    charts=found,
                )
            )
    return tuple(shown)


def _one_per_clip(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Order predictions so that the first question of each clip comes first, then the second of each, and so on."""
    turns: dict[str, int] = {}
    keyed = []
    for prediction in predictions:
        turns[prediction.clip_id] = turns.get(prediction.clip_id, -1) + 1
        keyed.append((turns[prediction.clip_id], prediction))
    return [prediction for _, prediction in sorted(keyed, key=lambda pair: pair[0])]
