"""Answer the questions of the evaluation set from a clip's description: the oracle that no model can beat.

Written apart from the templates that make the questions (`question_templates.py` and its neighbours), which know
the scene's times to the frame: this reader has segments only. Its answer is None where a question makes no sense in a
description, which is how the readers of `weaker_readers.py` discard what they imagined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from .description import Description, Voice
from .evaluation_scene import NUM_SEGMENTS
from .question_templates import NUMBERS, yes

_Rule = Callable[..., str | None]
_RULES: dict[str, _Rule] = {}


def read_answer(description: Description, template: str, values: Sequence[str]) -> str | None:
    """Return the answer to a question, given as MUSIC-AVQA's template and what fills it; None where it makes no sense.

    >>> from random import Random
    >>> from talik.demo.description import describe
    >>> from talik.demo.evaluation_scene import draw_scene
    >>> read_answer(describe(draw_scene(Random(0), "together")), "How many instruments are sounding in the video?", ())
    'five'
    """
    return _RULES[template.strip()](description, *values)


def _answers(template: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES[template] = rule
        return rule

    return register


def _heard(d: Description) -> list[Voice]:
    return [voice for voice in d.voices if voice.plays]


def _stage(d: Description) -> list[Voice]:
    return [voice for voice in d.voices if voice.seat is not None]


def _only(voices: Iterable[Voice], kind: str) -> Voice | None:
    found = [voice for voice in voices if voice.kind == kind]
    return found[0] if len(found) == 1 else None


def _one(words: set[str]) -> str | None:
    return words.pop() if len(words) == 1 else None


def _named(d: Description, name: str) -> Voice | None:
    """Return the voice of a name: "drum", where there is one on or off stage, or "left drum"."""
    seat, _, kind = name.rpartition(" ")
    found = [v for v in _heard(d) if v.kind == kind and (not seat or v.seat == seat)]
    return found[0] if len(found) == 1 else None


def _more(one: Voice | None, other: Voice | None, measure: Callable[[Voice], float], margin: float) -> str | None:
    if one is None or other is None or not (one.plays and other.plays):
        return None
    a, b = measure(one), measure(other)
    return yes(a > b) if abs(a - b) >= margin else None


def _level(voice: Voice) -> float:
    return voice.level_db


def _rate(voice: Voice) -> float:
    return voice.onsets_per_second


def _length(voice: Voice) -> float:
    return float(len(voice.plays))


# One modality


@_answers("Are there <Object> and <Object> sound?")
def _both_sound(d: Description, one: str, other: str) -> str | None:
    kinds = {voice.kind for voice in _heard(d)}
    return yes({one, other} <= kinds) if kinds & {one, other} else None


@_answers("How many musical instruments were heard throughout the video?")
@_answers("How many instruments are sounding in the video?")
def _num_heard(d: Description) -> str | None:
    return NUMBERS[len(_heard(d))] if len(_heard(d)) < len(NUMBERS) else None


@_answers("Is there a <Object> sound?")
def _sounds(d: Description, kind: str) -> str | None:
    return yes(any(voice.kind == kind for voice in _heard(d)))


@_answers("Is the <Object> louder than the <Object>?")
def _louder(d: Description, one: str, other: str) -> str | None:
    return _more(_only(_heard(d), one), _only(_heard(d), other), _level, 5.0)


@_answers("Is the <Object> more rhythmic than the <Object>?")
def _more_rhythmic(d: Description, one: str, other: str) -> str | None:
    return _more(_only(_heard(d), one), _only(_heard(d), other), _rate, 0.01)


@_answers("Is the <Object> playing longer than the <Object>?")
def _longer(d: Description, one: str, other: str) -> str | None:
    return _more(_only(_heard(d), one), _only(_heard(d), other), _length, 1.0)


def _hidden(d: Description, *kinds: str) -> bool:
    return any(voice.seat is None and voice.kind in kinds for voice in d.voices)


@_answers("Are there <Object> and <Object> instruments in the video?")
def _both_seen(d: Description, one: str, other: str) -> str | None:
    kinds = {voice.kind for voice in _stage(d)}
    return yes({one, other} <= kinds) if kinds & {one, other} and not _hidden(d, one, other) else None


@_answers("How many <Object> are in the entire video?")
def _num_of_kind(d: Description, kind: str) -> str | None:
    return None if _hidden(d, kind) else NUMBERS[sum(voice.kind == kind for voice in _stage(d))]


@_answers("How many types of musical instruments appeared in the entire video?")
def _num_types_seen(d: Description) -> str | None:
    return NUMBERS[len({voice.kind for voice in _stage(d)})]


@_answers("Is there a <Object> in the entire video?")
def _is_seen(d: Description, kind: str) -> str | None:
    return None if _hidden(d, kind) else yes(any(voice.kind == kind for voice in _stage(d)))


def _beside(d: Description, voice: Voice | None, side: str) -> str | None:
    if voice is None or voice.seat is None:
        return None
    stage = _stage(d)
    place = stage.index(voice)
    return _one({other.kind for other in (stage[:place] if side == "left" else stage[place + 1 :])})


@_answers("What is the instrument on the <LR> of <Object>?")
def _beside_kind(d: Description, side: str, kind: str) -> str | None:
    return None if _hidden(d, kind) else _beside(d, _only(_stage(d), kind), side)


@_answers("What kind of instrument is the <LRer> instrument?")
def _outermost(d: Description, side: str) -> str | None:
    return _stage(d)[0 if side == "leftest" else -1].kind if len(_stage(d)) > 1 else None


@_answers("What kind of musical instrument is it?")
def _only_kind(d: Description) -> str | None:
    return _one({voice.kind for voice in d.voices})


@_answers("Where is the performance?")
def _place(d: Description) -> str | None:
    return d.place


# Sight and sound


@_answers("Is the <Object> in the video always playing?")
def _always(d: Description, kind: str) -> str | None:
    voice = _only(d.voices, kind)
    return None if voice is None or voice.seat is None else yes(len(voice.plays) == NUM_SEGMENTS)


@_answers("Is this sound from the instrument in the video?")
def _from_stage(d: Description) -> str | None:
    sides = {voice.seat is not None for voice in _heard(d)}
    return yes(sides.pop()) if len(sides) == 1 else None


@_answers("How many instruments in the video did not sound from beginning to end?")
def _num_silent(d: Description) -> str | None:
    return NUMBERS[sum(not voice.plays for voice in _stage(d))]


@_answers("How many sounding <Object> in the video\uff1f")
def _num_sounding_of_kind(d: Description, kind: str) -> str | None:
    there = [voice for voice in d.voices if voice.kind == kind]
    return NUMBERS[sum(bool(v.plays) for v in there)] if there and not _hidden(d, kind) else None


@_answers("How many types of musical instruments sound in the video?")
def _num_types_heard(d: Description) -> str | None:
    return NUMBERS[len({voice.kind for voice in _heard(d)})]


def _leader(voices: list[Voice], which: str) -> Voice | None:
    """Return the first to begin, or the last to begin that also ends last; None where two are."""
    if len(voices) < 2:
        return None
    ordered = sorted(voices, key=lambda voice: min(voice.plays), reverse=which == "last")
    if min(ordered[0].plays) == min(ordered[1].plays):
        return None
    ends_last = all(max(ordered[0].plays) > max(other.plays) for other in ordered[1:])
    return ordered[0] if which == "first" or ends_last else None


@_answers("Is the <FL> sound coming from the <LR> instrument?")
def _is_leader_there(d: Description, which: str, seat: str) -> str | None:
    leader = _leader(_heard(d), which)
    there = any(voice.seat == seat for voice in d.voices)
    return yes(leader.seat == seat) if leader is not None and there else None


@_answers("What is the <LR> instrument of the <FL> sounding instrument?")
def _beside_leader(d: Description, side: str, which: str) -> str | None:
    return _beside(d, _leader(_heard(d), which), side)


@_answers("Where is the <LL> instrument?")
def _where_loudest(d: Description, _: str) -> str | None:
    ordered = sorted(_heard(d), key=_level)
    if len(ordered) < 2 or ordered[-1].level_db - ordered[-2].level_db < 5.0:
        return None
    return ordered[-1].seat


@_answers("Which is the musical instrument that sounds at the same time as the <Object>?")
def _at_same_time(d: Description, name: str) -> str | None:
    voice = _named(d, name)
    if voice is None:
        return None
    return _one({other.kind for other in _heard(d) if other is not voice and other.plays & voice.plays})


def _at(d: Description, seat: str) -> Voice | None:
    return next((voice for voice in _stage(d) if voice.seat == seat), None)


def _kind_at(d: Description, kind: str, seat: str) -> Voice | None:
    voice = _at(d, seat)
    return voice if voice is not None and voice.kind == kind else None


@_answers("Is the <Object> on the <LR> louder than the <Object> on the <LR>?")
def _kind_at_seat_louder(d: Description, a: str, seat_a: str, b: str, seat_b: str) -> str | None:
    return _more(_kind_at(d, a, seat_a), _kind_at(d, b, seat_b), _level, 5.0)


@_answers("Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?")
def _kind_at_seat_more_rhythmic(d: Description, a: str, seat_a: str, b: str, seat_b: str) -> str | None:
    return _more(_kind_at(d, a, seat_a), _kind_at(d, b, seat_b), _rate, 0.01)


@_answers("Is the instrument on the <LR> louder than the instrument on the <LR>?")
def _seat_louder(d: Description, one: str, other: str) -> str | None:
    return _more(_at(d, one), _at(d, other), _level, 5.0)


@_answers("Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?")
def _seat_more_rhythmic(d: Description, one: str, other: str) -> str | None:
    return _more(_at(d, one), _at(d, other), _rate, 0.01)


# In time


@_answers("What is the <TH> instrument that comes in?")
def _comes_in(d: Description, rank: str) -> str | None:
    number = ("first", "second", "third").index(rank)
    starts = sorted((min(voice.plays), voice.kind) for voice in _heard(d))
    times = Counter(start for start, _ in starts)
    settled = len(starts) > max(number, 1) and all(times[start] == 1 for start, _ in starts[: number + 1])
    return starts[number][1] if settled else None


@_answers("Where is the <FL> sounding instrument?")
def _where_leader(d: Description, which: str) -> str | None:
    leader = _leader(_heard(d), which)
    return None if leader is None else leader.seat


@_answers("Which <Object> makes the sound <FL>?")
def _which_of_kind(d: Description, kind: str, when: str) -> str | None:
    alike = [voice for voice in _heard(d) if voice.kind == kind]
    if when in ("first", "last"):
        if len(alike) > 1 and len({min(voice.plays) for voice in alike}) == 1 and when == "first":
            return "simultaneously"
        leader = _leader(alike, when)
        return None if leader is None else leader.seat
    words = when.split()
    cue = _named(d, words[-2] if words[-1] == "plays" else words[-1])
    if cue is None or len(alike) < 2:
        return None
    (sounds, *more) = sorted(cue.plays)
    if more:
        return None
    if words[-1] == "plays":
        return _seat_of({voice.seat for voice in alike if sounds in voice.plays})
    if words[:2] == ["right", "before"]:
        return _seat_of({v.seat for v in alike if sounds - 1 in v.plays and sounds not in v.plays})
    after = words[0] == "first"
    solos = {
        segment: {voice.seat for voice in alike if segment in voice.plays}
        for segment in range(NUM_SEGMENTS)
        if (segment > sounds if after else segment < sounds) and any(segment in v.plays for v in alike)
    }
    return _seat_of(solos[min(solos) if after else max(solos)]) if solos else None


def _seat_of(seats: set[str | None]) -> str | None:
    return seats.pop() if len(seats) == 1 else None


@_answers("Which instrument makes sounds <BA> the <Object>?")
def _before_or_after(d: Description, when: str, name: str) -> str | None:
    voice = _named(d, name)
    if voice is None:
        return None
    if " " not in when:
        start, sign = min(voice.plays), 1 if when == "after" else -1
        return _one({other.kind for other in _heard(d) if sign * (min(other.plays) - start) > 0})
    begins = {(s, v.kind) for v in _heard(d) for s in v.plays if s - 1 not in v.plays and v.kind != voice.kind}
    if when == "right after":
        return _one({kind for s, kind in begins if s - 1 in voice.plays and s not in voice.plays})
    if when == "first after":
        later = [(s, kind) for s, kind in begins if s > max(voice.plays)]
        return _one({kind for s, kind in later if s == min(later)[0]})
    earlier = [(s, kind) for s, kind in begins if s < min(voice.plays)]
    return _one({kind for s, kind in earlier if s == max(earlier)[0]})
