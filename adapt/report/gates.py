"""Read what evaluate --gates wrote: how strongly a selection gated each segment and word, for a few questions.

A gate of 1 passes its token unchanged, 0 suppresses it, 2 doubles it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RunError
from .dataset import ShownClip
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
    """

    insertion: int
    segments: Mapping[str, tuple[float, ...]]
    words: tuple[tuple[str, float], ...]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> GateChart:
        """Read one line of gates-<split>.jsonl; tokens without a name are numbered."""
        names = [str(name) for name in record.get("tokens") or ()]
        values = [float(value) for value in record.get("text") or ()]
        names += [str(number + 1) for number in range(len(names), len(values))]
        segments = {m: tuple(map(float, record[m])) for m in ("visual", "audio") if m in record}
        words = tuple(zip(names, values, strict=False))
        return cls(insertion=int(record["insertion"]), segments=segments, words=words)

    @property
    def num_segments(self) -> int:
        """Number of segments, T; 0 where only words are gated."""
        return max(map(len, self.segments.values()), default=0)

    def shade(self, gate: float) -> str:
        """Colour a gate: accent above 1, red below, the stronger the further from 1 beside the others (CSS)."""
        shown = [*(value for _, value in self.words), *(v for gates in self.segments.values() for v in gates)]
        strength = 60 * min(1.0, abs(gate - 1) / max(_LEAST_REACH, *(abs(v - 1) for v in shown)))
        return f"color-mix(in srgb, var(--{'accent' if gate >= 1 else 'bad'}) {strength:.1f}%, transparent)"


@dataclass(frozen=True, kw_only=True)
class ShownGates:
    """Gates of one question in one variant's first run; `frames` are data URIs, one per segment, or ()."""

    label: str
    prediction: Prediction
    frames: tuple[str, ...]
    charts: tuple[GateChart, ...]


def shown_gates(
    variants: Mapping[str, Sequence[Run]], labels: Mapping[str, str], clips: Sequence[ShownClip]
) -> tuple[ShownGates, ...]:
    """Read the gates of a few questions of every variant whose first run has them written, of each clip one first.

    Args:
        variants: the runs of each variant.
        labels: printed names by variant name.
        clips: questions about these come first, whatever was answered; their frames are shown where a clip has as many
            as segments.

    Raises:
        RunError: a gates file that is not as evaluate writes it.
    """
    shown = []
    frames = {clip.clip_id: clip.frames for clip in clips}
    for name, (run, *_) in variants.items():
        path = run.path / f"gates-{run.split}.jsonl"
        if not path.is_file():
            continue
        charts: dict[str, list[GateChart]] = {}
        try:
            for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                charts.setdefault(record["question_id"], []).append(GateChart.from_record(record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not as talik evaluate --gates writes it ({error}); write it again") from None
        wanted, asked = [*frames], Counter[str]()
        ranked = []
        for p in run.predictions:
            if p.question_id in charts:
                rank = wanted.index(p.clip_id) if p.clip_id in frames else len(wanted)
                ranked.append((asked[p.clip_id], rank, len(ranked), p))
                asked[p.clip_id] += 1
        for *_, prediction in sorted(ranked)[:_SHOWN_QUESTIONS]:
            found, own = tuple(charts[prediction.question_id]), frames.get(prediction.clip_id, ())
            fitting = own if all(len(own) == chart.num_segments for chart in found) else ()
            shown.append(ShownGates(label=labels[name], prediction=prediction, frames=fitting, charts=found))
    return tuple(shown)
