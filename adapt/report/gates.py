"""Read the gates that `talik evaluate --gates` wrote into a run's folder, and choose those that the page shows."""

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
    """Gates of one question at one insertion, means over channels: 1 passes a token unchanged, 0 suppresses it.

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


def read_gates(run: Run, *, most: int | None = None) -> dict[str, tuple[GateChart, ...]]:
    """Read a run's gates by question id, of the first `most` questions of the file; {} where it has none.

    Raises:
        RunError: a file that is not as evaluate writes it.
    """
    path = run.path / f"gates-{run.split}.jsonl"
    if not path.is_file():
        return {}
    charts: dict[str, list[GateChart]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                if most is not None and len(charts) >= most and record["question_id"] not in charts:
                    break
                charts.setdefault(record["question_id"], []).append(GateChart.from_record(record))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not as talik evaluate --gates writes it ({error}); write it again") from None
    return {name: tuple(found) for name, found in charts.items()}


def shown_gates(
    variants: Mapping[str, Sequence[Run]], labels: Mapping[str, str], clips: Sequence[ShownClip]
) -> tuple[ShownGates, ...]:
    """Read the gates of a few questions of every variant whose first run has them written by evaluate --gates.

    The order does not depend on the answers: the first question of each clip comes before the second of any, those
    about `clips` first. A clip's frames are shown where they are as many as segments.
    """
    shown = []
    frames = {clip.clip_id: clip.frames for clip in clips}
    for name, (run, *_) in variants.items():
        charts = read_gates(run)
        if not charts:
            continue
        wanted, turns = [*frames], Counter[str]()
        ranked: list[tuple[int, int, int, Prediction]] = []
        for p in run.predictions:
            if p.question_id in charts:
                rank = wanted.index(p.clip_id) if p.clip_id in frames else len(wanted)
                ranked.append((turns[p.clip_id], rank, len(ranked), p))
                turns[p.clip_id] += 1
        for *_, prediction in sorted(ranked)[:_SHOWN_QUESTIONS]:
            found, own = charts[prediction.question_id], frames.get(prediction.clip_id, ())
            fitting = own if all(len(own) == chart.num_segments for chart in found) else ()
            shown.append(ShownGates(label=labels[name], prediction=prediction, frames=fitting, charts=found))
    return tuple(shown)
