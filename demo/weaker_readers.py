"""Readers of a clip's description that lack one thing: sound, sight, the order of time, binding, or all but a segment.

What a weaker reader lacks it imagines, many times over, as the set's own generator would have made it: each time the
result is a whole description that agrees with all that it does perceive, and the question is answered in it
(`description_reader.py`). Its answer is the most frequent one; imaginations in which the question makes no sense are
discarded. So it is a Bayesian reader that samples from its posterior: it knows how clips are made, and is held back by
nothing but what it lacks. It even knows the clip's plot and, of what it perceives, which part it plays there; and where
a question is about one of two alike and asks for an instrument, that a cue is meant. Without the order of time every
order is as likely to it as any other.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import permutations
from random import Random

from .description import Description, Voice, describe, described
from .description_reader import read_answer
from .evaluation_scene import ALIKE, BLOCK, CUES, NUM_SEGMENTS, draw_scene
from .evaluation_templates import BEFORE_AFTER, SAME_TIME
from .instruments import KINDS, SEATS
from .scene import PLACES

Imagined = Iterator[Description]
_Imagine = Callable[[Description, Random], Description | None]

_POOL = 400
_Pattern = frozenset[tuple[str, bool, int]]
"""How many of each part are perceived in a segment, playing and at rest."""


@cache
def _pool(plot: str) -> tuple[Description, ...]:
    """Return clips of a plot as the generator makes them, of which the readers' imaginations are put together."""
    rng = Random(f"talik imagined {plot}")
    return tuple(describe(draw_scene(rng, plot)) for _ in range(_POOL))


def answer_without(
    lack: str,
    description: Description,
    template: str,
    values: Sequence[str],
    *,
    rng: Random,
    num_imagined: int,
) -> str | None:
    """Return the answer of the reader that lacks something; None where no imagination lets the question make sense.

    Args:
        lack: a name of `LACKS`.
        description: the whole clip.
        template, values: the question.
        rng: draws the imaginations.
        num_imagined: how many; for "all but one segment" for each segment, of which it takes the one that leaves it
            surest.
    """
    if lack == "all but one segment":
        counts = [
            _count(partial_view(segment), description, template, values, rng, num_imagined)
            for segment in range(NUM_SEGMENTS)
        ]
        counted = max(counts, key=_sureness)
    else:
        counted = _count(LACKS[lack], description, template, values, rng, num_imagined)
    return counted.most_common(1)[0][0] if counted else None


def _count(
    imagine: _Imagine, d: Description, template: str, values: Sequence[str], rng: Random, num_imagined: int
) -> Counter[str]:
    answers: Counter[str] = Counter()
    cue_meant = template in (SAME_TIME, BEFORE_AFTER) and " " in values[-1]  # of one of two alike, "left violin"
    for _ in range(num_imagined):
        world = imagine(d, rng)
        answer = None if world is None else read_answer(world, template, values)
        if world is None or answer is None or (cue_meant and not _is_cue(world, answer)):
            continue
        answers[answer] += 1
    return answers


def _is_cue(d: Description, kind: str) -> bool:
    return any(voice.role in CUES and voice.kind == kind for voice in d.voices)


def _sureness(answers: Counter[str]) -> float:
    """Return the share of the most frequent answer, shrunk where there are few."""
    return max(answers.values(), default=0) / (answers.total() + 4)


def _without_sound(d: Description, rng: Random) -> Description | None:
    """Keep what is seen; imagine what sounds off stage, and how loud and how quick everything is."""
    sounding = any(voice.seat and voice.plays for voice in d.voices)
    other = rng.choice(_pool(d.plot))
    if any(voice.seat and voice.plays for voice in other.voices) != sounding:
        return None
    stage = [voice for voice in d.voices if voice.seat]
    heard = [voice for voice in other.voices if voice.seat and voice.plays] or list(other.voices)
    voices = []
    for voice in stage:
        like = rng.choice(heard)
        voices.append(
            dataclasses.replace(voice, level_db=like.level_db, onsets_per_second=rng.choice(heard).onsets_per_second)
        )
    kinds = _other_kinds(rng, {voice.kind for voice in stage})
    voices += [dataclasses.replace(voice, kind=next(kinds)) for voice in other.voices if voice.seat is None]
    return described(d.plot, d.place, voices) if _cues_apart(d.plot, voices) else None


def _cues_apart(plot: str, voices: Sequence[Voice]) -> bool:
    """Whether the two cues go with different ones of the alike two, as the plots of pairs have it."""
    if plot not in ("together", "right after"):
        return True
    by_role = {voice.role: voice for voice in voices}
    late = int(plot == "right after")
    beside = [{role for role in ALIKE if {s - late for s in by_role[cue].plays} <= by_role[role].plays} for cue in CUES]
    return beside[0] != beside[1] and all(len(roles) == 1 for roles in beside)


def _without_sight(d: Description, rng: Random) -> Description | None:
    """Keep what is heard; imagine who stands where, who stands there silent, and the place."""
    place = rng.choice(PLACES)
    if d.plot != "open":
        stage = [voice for voice in d.voices if voice.seat]
        seats = rng.sample(SEATS, len(stage))
        voices = [dataclasses.replace(voice, seat=seat) for voice, seat in zip(stage, seats, strict=True)]
        return described(d.plot, place, [*voices, *(voice for voice in d.voices if voice.seat is None)])
    other = rng.choice(_pool(d.plot))
    heard = [voice for voice in d.voices if voice.plays]
    parts = [voice for voice in other.voices if voice.plays]
    if len(parts) != len(heard):
        return None
    rng.shuffle(heard)
    named = {part.kind: voice.kind for part, voice in zip(parts, heard, strict=True)}
    kinds = _other_kinds(rng, set(named.values()))
    voices = [dataclasses.replace(v, seat=part.seat, role=part.role) for part, v in zip(parts, heard, strict=True)]
    for voice in other.voices:
        if not voice.plays:
            if voice.kind not in named:
                named[voice.kind] = next(kinds)
            voices.append(dataclasses.replace(voice, kind=named[voice.kind]))
    return described(d.plot, place, voices)


def _without_order(d: Description, rng: Random) -> Description:
    """Keep every segment, sight and sound together; imagine their order."""
    order = rng.sample(range(NUM_SEGMENTS), NUM_SEGMENTS)
    voices = [
        dataclasses.replace(
            voice, plays=frozenset(order[s] for s in voice.plays), away=frozenset(order[s] for s in voice.away)
        )
        for voice in d.voices
    ]
    return described(d.plot, d.place, voices)


def _without_binding(d: Description, rng: Random) -> Description:
    """Keep sight, segment by segment; imagine in which segment of its block each segment of sound was."""
    order: dict[int, int] = {}  # of each segment of sound, where it is imagined
    for start in range(0, NUM_SEGMENTS, BLOCK):
        block = range(start, start + BLOCK)
        seen = [frozenset(v.kind for v in d.voices if v.seat and s in v.plays) for s in block]
        likely = [p for p in _orders() if all(seen[place] == seen[step] for step, place in enumerate(p))]
        order.update({start + step: start + place for step, place in enumerate(rng.choice(likely))})
    voices = []
    for voice in d.voices:
        if voice.seat is None:
            voices.append(dataclasses.replace(voice, plays=frozenset(order[s] for s in voice.plays)))
        elif voice.plays:
            voices.append(_as_it_would_sound(voice, d, order))
        else:
            voices.append(voice)
    return described(d.plot, d.place, voices)


@cache
def _orders() -> tuple[tuple[int, ...], ...]:
    return tuple(permutations(range(BLOCK)))


def _as_it_would_sound(voice: Voice, d: Description, order: Mapping[int, int]) -> Voice:
    """Return a voice that is seen, as loud and quick as its kind is heard where it plays."""
    sources = [
        other
        for other in d.voices
        if other.kind == voice.kind
        for s in other.plays
        if order[s] in voice.plays
    ]  # fmt: skip
    if not sources:
        return voice
    return dataclasses.replace(
        voice,
        level_db=sum(v.level_db for v in sources) / len(sources),
        onsets_per_second=sum(v.onsets_per_second for v in sources) / len(sources),
    )


def partial_view(segment: int) -> _Imagine:
    """Return the imagination of a reader that gets one segment alone, sight and sound, and knows which it is."""

    def imagine(d: Description, rng: Random) -> Description | None:
        likely = _alike_in(d.plot, segment, _pattern(d, segment))
        if not likely:
            return None
        other = rng.choice(likely)
        parts = _matched(d, other, segment, rng)
        known = {truth.kind for truth in parts.values() if truth is not None}
        taken = {str(truth.seat) for truth in parts.values() if truth is not None and truth.seat}
        kinds, seats = _other_kinds(rng, known), iter([s for s in rng.sample(SEATS, 3) if s not in taken])
        renamed: dict[str, str] = {}
        voices = []
        for part in other.voices:
            truth = parts[part]
            if truth is None:
                if part.kind not in renamed:
                    renamed[part.kind] = next(kinds)
                seat = None if part.seat is None else next(seats)
                voices.append(dataclasses.replace(part, kind=renamed[part.kind], seat=seat))
            elif segment in truth.plays:
                voices.append(dataclasses.replace(truth, plays=part.plays, away=part.away))
            else:
                voices.append(dataclasses.replace(part, kind=truth.kind, seat=truth.seat))
        return described(d.plot, d.place, voices)

    return imagine


def _matched(d: Description, other: Description, segment: int, rng: Random) -> dict[Voice, Voice | None]:
    """Give each part of another clip the voice that is perceived in its place in that segment, or None for nobody."""
    parts: dict[Voice, Voice | None] = dict.fromkeys(other.voices)
    places = _perceived(other, segment)
    for what, truths in _perceived(d, segment).items():
        rng.shuffle(truths)
        parts.update(zip(places[what], truths, strict=True))
    return parts


@cache
def _alike_in(plot: str, segment: int, pattern: _Pattern) -> tuple[Description, ...]:
    """Return the clips of the pool of which as much is seen and heard in a segment."""
    return tuple(clip for clip in _pool(plot) if _pattern(clip, segment) == pattern)


def _pattern(d: Description, segment: int) -> _Pattern:
    return frozenset((part, plays, len(voices)) for (part, plays), voices in _perceived(d, segment).items())


def _perceived(d: Description, segment: int) -> dict[tuple[str, bool], list[Voice]]:
    """Return the voices that are seen or heard in a segment, by their part and by whether they play."""
    found: dict[tuple[str, bool], list[Voice]] = {}
    for voice in d.voices:
        plays = segment in voice.plays
        if plays or (voice.seat and segment not in voice.away):
            found.setdefault((voice.role.rpartition(" ")[0] or voice.role, plays), []).append(voice)
    return found


def _other_kinds(rng: Random, known: set[str]) -> Iterator[str]:
    return iter(rng.sample(left := [kind for kind in KINDS if kind not in known], len(left)))


LACKS: Mapping[str, _Imagine] = {
    "sound": _without_sound,
    "sight": _without_sight,
    "order of time": _without_order,
    "binding within a segment": _without_binding,
    "all but one segment": partial_view(0),
}
"""What a reader may lack."""
