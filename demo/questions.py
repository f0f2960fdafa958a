"""Choose the questions of a set so that types, templates and answers are balanced.

Clips are gone through in order, and each clip's questions are drawn by what its split has asked before: the rarest
type first, in it a rare template, in that a rare answer. A clip's questions depend on the clips before it alone, so a
larger set of the same seed begins with the smaller one's questions. Where an answer is balanced over a template, it
still leans with the kind that is asked about (the kinds' habits), as in any real data set.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from ..errors import SettingsError, unknown_name
from ..extract.datasets.describe import blind_baseline, fraction_correct
from ..extract.datasets.music_avqa import ANSWERS_42
from ..extract.datasets.types import Manifest, Question
from .candidates import TWO_ANSWERS, Candidate, candidates_of
from .evaluation_scene import make_evaluation_scene
from .scene import SPLITS, Scene, make_scene, split_of

SetKind = Literal["demo", "taste", "evaluation"]
"""The demo's set of clips of 8 s; its default size's, the same clips with more questions of fewer templates; or that of
24 s in which it is known what each question asks for."""


@dataclass(frozen=True, kw_only=True)
class _Most:
    """How many questions a clip is asked at most: in all, of one type, of one template, of one of the families."""

    of_clip: int
    of_type: int
    of_template: int
    of_family: int = 0


# Questions cost nothing beside clips: training clips are asked about as much as stays balanced.
_MOST: Mapping[str, Mapping[str, _Most]] = {
    "demo": {
        "train": _Most(of_clip=36, of_type=6, of_template=3),
        "val": _Most(of_clip=9, of_type=2, of_template=1),
        "test": _Most(of_clip=9, of_type=2, of_template=1),
    },
    "taste": {
        "train": _Most(of_clip=36, of_type=6, of_template=3),
        "val": _Most(of_clip=24, of_type=4, of_template=2),
        "test": _Most(of_clip=24, of_type=4, of_template=2),
    },
    "evaluation": dict.fromkeys(SPLITS, _Most(of_clip=5, of_type=1, of_template=1, of_family=3)),
}
_TASTED = frozenset(
    {
        "Is there a <Object> sound?",
        "How many <Object> are in the entire video?",
        "Are there <Object> and <Object> instruments in the video?",
        "What is the instrument on the <LR> of <Object>?",
        "Where is the performance?",
        "Is the <Object> in the video always playing?",
        "Which is the musical instrument that sounds at the same time as the <Object>?",
        "How many sounding <Object> in the video？",
    }
)
"""What the set "taste" asks: templates that are learnt in few steps, from the words, the picture, the sound or both."""
_MAX_SHARE, _MAX_SHARE_OF_TWO = 0.38, 0.51
_LONG_TYPES = {
    "A-count": ["Audio", "Counting"],
    "A-comp": ["Audio", "Comparative"],
    "V-count": ["Visual", "Counting"],
    "V-loc": ["Visual", "Location"],
    "AV-exist": ["Audio-Visual", "Existential"],
    "AV-count": ["Audio-Visual", "Counting"],
    "AV-loc": ["Audio-Visual", "Location"],
    "AV-comp": ["Audio-Visual", "Comparative"],
    "AV-temp": ["Audio-Visual", "Temporal"],
}
TYPES = tuple(_LONG_TYPES)
Record = dict[str, Any]


def set_kind(name: str) -> SetKind:
    """Return the kind of set of that name.

    Raises:
        SettingsError: there is none.
    """
    for kind in get_args(SetKind):
        if kind == name:
            return kind
    raise SettingsError(unknown_name("kind of set", name, get_args(SetKind)))


def make_scenes(seed: int, num_clips: int, kind: SetKind = "demo") -> list[Scene]:
    """Decide clips 0 to `num_clips - 1` of the set of `seed`."""
    make = make_evaluation_scene if kind == "evaluation" else make_scene
    scenes = [make(seed, index) for index in range(num_clips)]
    if kind == "taste":
        scenes = [dataclasses.replace(s, split=split_of(seed, s.index, num_test=7)) for s in scenes]
    return scenes


def make_records(scenes: Sequence[Scene], kind: SetKind = "demo") -> dict[str, list[Record]]:
    """Return each split's questions as MUSIC-AVQA writes them; `scenes` are clips 0, 1, 2, ... of one seed.

    Those of the evaluation set also say their `family` and the `deciding_segments`.
    """
    balances = {split: _Balance(_MOST[kind][split]) for split in SPLITS}
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for scene in scenes:
        candidates = [c for c in candidates_of(scene) if kind != "taste" or c.template in _TASTED]
        for number, candidate in enumerate(balances[scene.split].choose(scene, candidates)):
            record = _record(scene, number, candidate)
            if kind == "evaluation":
                record |= {"family": candidate.family, "deciding_segments": list(candidate.segments)}
            records[scene.split].append(record)
    return records


def short_type(record: Mapping[str, Any]) -> str:
    """Return the short name of a question's type, as "AV-loc"."""
    words = json.loads(record["type"])
    return next(short for short, long in _LONG_TYPES.items() if long == words)


def row_of(record: Mapping[str, Any]) -> str:
    """Return a question's type and family in one, as "AV-temp, long"; the short type alone for a basic one."""
    family = record.get("family", "basic")
    return short_type(record) if family == "basic" else f"{short_type(record)}, {family}"


def template_of(record: Mapping[str, Any]) -> str:
    """Return a question's template, told apart by family: the wording of those differs from the basic ones'."""
    family = record.get("family", "basic")
    return str(record["question_content"]) + ("" if family == "basic" else f" ({family})")


def blind_accuracy(records: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """Return how often each template's most frequent training answer is right on test, by type, and "all"."""
    questions = tuple(
        Question(
            id=str(record["question_id"]),
            clip_id=record["video_id"],
            text="",
            answer=record["anser"],
            type=row_of(record),
            template=template_of(record),
            split=split,
        )
        for split in SPLITS
        for record in records[split]
    )
    manifest = Manifest(name="demo", root=Path(), clips={}, questions=questions, answers=ANSWERS_42)
    guesses = blind_baseline(manifest, "test")
    test = manifest.split("test")
    asked = {row: [q for q in test if q.type == row] for row in rows_of(records)}
    return {name: fraction_correct(some, guesses) for name, some in {**asked, "all": test}.items() if some}


def rows_of(records: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return the types, and types with a family, that are asked, in the order of tables."""
    found = {row_of(record) for split in SPLITS for record in records[split]}
    families = ("", ", short", ", long")
    return [row for family in families for short in TYPES if (row := short + family) in found]


class _Balance:
    """What one split has asked so far, and the draw of a clip's questions by it."""

    def __init__(self, most: _Most) -> None:
        self._most = most
        self._types: Counter[str] = Counter()
        self._templates: Counter[str] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def choose(self, scene: Scene, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Draw the questions of the split's next clip among its candidates."""
        rng = Random(f"talik demo questions {scene.seed} {scene.index}")
        most = self._most
        left = list(candidates)
        chosen: list[Candidate] = []
        while left and len(chosen) < most.of_clip:
            types = Counter(map(_group, chosen))
            templates = Counter(map(_wording, chosen))
            families = sum(c.family != "basic" for c in chosen)
            left = [
                c
                for c in left
                if types[_group(c)] < most.of_type
                and templates[_wording(c)] < most.of_template
                and (c.family == "basic" or families < most.of_family)
                and self._has_room(c)
            ]
            if not left:
                break
            rarest = min(sorted(set(map(_group, left))), key=lambda name: (self._types[name], rng.random()))
            candidate = self._draw(rng, [c for c in left if _group(c) == rarest])
            chosen.append(candidate)
            left.remove(candidate)
            self._types[_group(candidate)] += 1
            self._templates[_wording(candidate)] += 1
            self._answers[_wording(candidate), candidate.answer] += 1
        rng.shuffle(chosen)
        return chosen

    def _has_room(self, candidate: Candidate) -> bool:
        """Whether one more such answer leaves its share of the template's answers below the bound."""
        bound = _MAX_SHARE_OF_TWO if candidate.template in TWO_ANSWERS else _MAX_SHARE
        asked = self._templates[_wording(candidate)]
        return self._answers[_wording(candidate), candidate.answer] + 1 <= bound * (asked + 1) + 1

    def _draw(self, rng: Random, candidates: list[Candidate]) -> Candidate:
        wording = _rare(rng, {_wording(c): self._templates[_wording(c)] for c in candidates})
        candidates = [c for c in candidates if _wording(c) == wording]
        answer = _rare(rng, {c.answer: self._answers[wording, c.answer] for c in candidates})
        candidates = [c for c in candidates if c.answer == answer]
        return rng.choices(candidates, weights=[c.weight for c in candidates])[0]


def _wording(candidate: Candidate) -> str:
    return candidate.template if candidate.family == "basic" else f"{candidate.template} ({candidate.family})"


def _group(candidate: Candidate) -> str:
    """Return what is asked about equally often: a type, or in the families each of their templates."""
    return candidate.type if candidate.family == "basic" else _wording(candidate)


def _rare(rng: Random, counts: Mapping[str, int]) -> str:
    """Draw a name, the less often drawn before the likelier."""
    least = min(counts.values())
    names = sorted(counts)
    return rng.choices(names, weights=[1.0 / (1 + counts[name] - least) ** 2 for name in names])[0]


def _record(scene: Scene, number: int, candidate: Candidate) -> Record:
    return {
        "video_id": scene.video_id,
        "question_id": 100 * scene.index + number,
        "type": json.dumps(_LONG_TYPES[candidate.type]),
        "question_content": candidate.template,
        "templ_values": json.dumps(list(candidate.values)),
        "question_deleted": 0,
        "anser": candidate.answer,
    }
