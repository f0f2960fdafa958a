"""What the page's script shows of single questions: answers of every variant, confusion of answers, gates, media.

It is embedded as JSON, deflated and in base64: of 9,000 questions and 60 variants about a megabyte.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...extract.media.tar_member import TarMember
from .dataset import DataSet
from .drawing import css_colour
from .gates import GateChart, read_gates
from .runs import Prediction, Run
from .table import Table

MOST_CELLS = 1_000_000  # questions times rows
_MOST_GATED = 200  # questions of a variant
_SOUND = {".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"}


def page_data(
    table: Table,
    variants: Mapping[str, Sequence[Run]],
    *,
    blind: Mapping[str, str] | None,
    data: DataSet,
    out: Path,
    most_cells: int = MOST_CELLS,
) -> dict[str, Any]:
    """Collect what the script shows, as plain values.

    Args:
        table: of the variants, in the order of its rows.
        variants: the runs; answers are those of each variant's first seed.
        blind: the baseline's answers by question id, where the table has its row.
        data: the data set, for the media.
        out: the folder of the page, from which media are named relatively.
        most_cells: questions times rows; of more, the questions of evenly spaced clips are taken.

    Raises:
        RunError: a gates file that is not as evaluate writes it.
    """
    first = next(iter(variants.values()))[0]
    asked = _embedded(first.predictions, max(1, most_cells // len(table.rows)))
    ids = [p.question_id for p in asked]
    place = {name: index for index, name in enumerate(ids)}
    answers, types, clips = _Numbers(), _Numbers(), _Numbers()
    questions = {
        "id": ids,
        "clip": [clips.of(p.clip_id) for p in asked],
        "type": [types.of(p.type) for p in asked],
        "text": [p.question if p.segment is None else f"{p.question} (segment {p.segment + 1})".strip() for p in asked],
        "answer": [answers.of(p.answer) for p in asked],
        "right": {i: [answers.of(name) for name in p.right] for i, p in enumerate(asked) if len(p.right) > 1},
    }
    given: list[list[int]] = []
    probability: list[list[int]] = []
    right: list[list[int]] = []
    confusion: list[list[list[int]]] = []
    gates: dict[int, list[dict[str, Any]]] = {}
    for index, row in enumerate(table.rows):
        if not row.trained:
            guesses = blind or {}
            given.append([answers.of(guesses[p.question_id]) for p in asked])
            probability.append([-1] * len(asked))
            right.append([int(p.value_of(guesses[p.question_id]) > 0) for p in asked])
            confusion.append([])
            continue
        runs = variants[row.name]
        own = {p.question_id: p for p in runs[0].predictions}
        given.append([answers.of(own[name].prediction) for name in ids])
        probability.append([_percent(own[name]) for name in ids])
        counts = Counter(p.question_id for run in runs for p in run.predictions if p.correct)
        right.append([counts[name] for name in ids])
        pairs = Counter((p.true, p.prediction) for run in runs for p in run.predictions)
        confusion.append([[answers.of(t), answers.of(p), count] for (t, p), count in sorted(pairs.items())])
        for name, charts in read_gates(runs[0], most=_MOST_GATED).items():
            if name in place:
                gates.setdefault(place[name], []).extend(_chart(index, chart) for chart in charts)
    return {
        "rows": [
            {"label": row.label, "trained": row.trained, "seeds": row.num_seeds, "colour": colour}
            for row, colour in zip(table.rows, _colours(table), strict=True)
        ],
        "answers": answers.names,
        "types": types.names,
        "clips": [{"id": name, **media_link(name, data, out)} for name in clips.names],
        "questions": questions,
        "given": given,
        "probability": probability,
        "right": right,
        "confusion": confusion,
        "gates": gates,
        "unseen": [answers.of(answer) for answer in data.unseen],
        "left_out": len(first.predictions) - len(asked),
    }


def packed(values: Mapping[str, Any]) -> str:
    """Deflate plain values and encode them in base64, as page.js reads them."""
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


class _Numbers:
    """Numbers of names, in order of appearance."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def of(self, name: str) -> int:
        return self._places.setdefault(name, len(self._places))

    @property
    def names(self) -> list[str]:
        return list(self._places)


def _embedded(predictions: Sequence[Prediction], most: int) -> list[Prediction]:
    """Choose the questions of evenly spaced clips, if all are too many for the page."""
    if len(predictions) <= most:
        return list(predictions)
    clips = list(dict.fromkeys(p.clip_id for p in predictions))
    step = len(predictions) / most
    kept = {clips[int(i * step)] for i in range(int(len(clips) / step))}
    return [p for p in predictions if p.clip_id in kept][:most]


def _percent(prediction: Prediction) -> int:
    return -1 if prediction.probability is None else round(100 * prediction.probability)


def _colours(table: Table) -> list[str]:
    trained = iter(range(len(table.rows)))
    return [css_colour(next(trained)) if row.trained else "" for row in table.rows]


def _chart(row: int, chart: GateChart) -> dict[str, Any]:
    segments = {modality: [round(value, 2) for value in values] for modality, values in chart.segments.items()}
    words = [[word, round(value, 2)] for word, value in chart.words]
    return {"row": row, "insertion": chart.insertion, "segments": segments, "words": words}


def media_link(clip_id: str, data: DataSet, out: Path) -> dict[str, str]:
    """Name a clip's film or sound by its path from the page's folder, a stretch by its ends too; {} without either."""
    clip = None if data.manifest is None else data.manifest.clips.get(clip_id)
    if clip is None or clip.path is None:
        return {}
    path = clip.path if clip.frames_fps is None else clip.sound
    if path is None or isinstance(path, TarMember):  # no browser plays what is inside a tar file
        return {}
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(out))
    kind = "audio" if path.suffix.lower() in _SOUND else "video"
    return {"media": quote(Path(relative).as_posix()) + clip.fragment, "kind": kind}
