"""Every question that can be asked of a scene, with its true answer, in MUSIC-AVQA's templates.

Each template has one function that reads a scene's ground truth and yields (template values, answer). What is not
decidable with a clear margin is not asked: instruments that are compared differ by 5 dB, by 1.6 times the onsets or
by 1.5 s; "first" is first by 1.5 s. Where a template's words have two readings, it is asked only where both give the
same answer, or the reading stands in the function's docstring. "In the video" counts what sounds off stage, since the
sound track is part of the video; only a visual question means the picture alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .kinds import KINDS
from .scene import CLIP_SECONDS, Player, Scene

MARGIN_DB = 5.0
MARGIN_ONSETS = 1.6
MARGIN_SECONDS = 1.5
_TOGETHER_SECONDS = 0.3
_NUMBERS = ("zero", "one", "two", "three", "four")
_RANKS = ("first", "second", "third")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A question that a scene can answer.

    Attributes:
        type: the short type name, as "AV-loc".
        template: MUSIC-AVQA's `question_content`, to the letter.
        values: what fills the template's <...> places, in their order.
        answer: the true answer, one of MUSIC-AVQA's words.
        weight: how likely it is to be drawn among the candidates of its template and answer.
    """

    type: str
    template: str
    values: tuple[str, ...]
    answer: str
    weight: float = 1.0


Found = tuple[tuple[str, ...], str] | tuple[tuple[str, ...], str, float]
Finder = Callable[[Scene], Iterator[Found]]
TEMPLATES: dict[str, tuple[str, Finder]] = {}
"""Each template's short type and the function that finds its questions."""


def candidates_of(scene: Scene) -> list[Candidate]:
    """Return every question that is decidable in the scene, in a fixed order."""
    return [
        Candidate(type=short, template=template, values=found[0], answer=found[1], weight=found[2] if len(found) > 2 else 1.0)
        for template, (short, finder) in TEMPLATES.items()
        for found in finder(scene)
    ]


def _asks(short: str, template: str) -> Callable[[Finder], Finder]:
    def register(finder: Finder) -> Finder:
        TEMPLATES[template] = (short, finder)
        return finder

    return register


def sounding(scene: Scene) -> list[Player]:
    """Return the instruments that are heard, on stage or off."""
    return [player for player in scene.players if player.sounds]


def seen(scene: Scene) -> list[Player]:
    """Return the instruments on stage, from left to right."""
    return [player for player in scene.players if player.seen]


def _once(players: list[Player]) -> list[Player]:
    """Return the players whose kind no other of them has."""
    counts = Counter(player.kind for player in players)
    return [player for player in players if counts[player.kind] == 1]


def _hidden_kinds(scene: Scene) -> set[str]:
    return {player.kind for player in scene.players if not player.seen}


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _likely_absent(scene: Scene, kind: str) -> float:
    """Weigh a kind for a question whose answer is no: instruments that stand there silent are asked about first."""
    return 5.0 if any(player.kind == kind for player in scene.players) else 1.0


# Audio: counting


@_asks("A-count", "Are there <Object> and <Object> sound? ")
def _both_sound(scene: Scene) -> Iterator[Found]:
    heard = {player.kind for player in sounding(scene)}
    for one, other in itertools.permutations(KINDS, 2):
        if one in heard and other in heard:
            yield (one, other), "yes"
        elif one in heard or other in heard:
            yield (one, other), "no", _likely_absent(scene, one) * _likely_absent(scene, other)


@_asks("A-count", "How many musical instruments were heard throughout the video?")
def _num_heard(scene: Scene) -> Iterator[Found]:
    """Asked where no kind sounds twice, since two of a kind cannot be told apart by ear."""
    players = sounding(scene)
    if len(_once(players)) == len(players):
        yield (), _NUMBERS[len(players)]


@_asks("A-count", "Is there a <Object> sound?")
def _one_sounds(scene: Scene) -> Iterator[Found]:
    heard = {player.kind for player in sounding(scene)}
    for kind in KINDS:
        yield (kind,), _yes(kind in heard), 1.0 if kind in heard else _likely_absent(scene, kind)


# Audio: comparative


def _comparable(scene: Scene) -> Iterator[tuple[Player, Player]]:
    yield from itertools.permutations(_once(sounding(scene)), 2)


def _louder(one: Player, other: Player) -> bool | None:
    """Whether one is louder than the other; None without a clear margin."""
    difference = one.level_db - other.level_db
    return difference > 0 if abs(difference) >= MARGIN_DB else None


def _more_rhythmic(one: Player, other: Player) -> bool | None:
    """Whether one starts more notes a second of its sounding time than the other; None without a clear margin."""
    a, b = one.onsets_per_second, other.onsets_per_second
    return a > b if max(a, b) >= MARGIN_ONSETS * min(a, b) else None


def _longer(one: Player, other: Player) -> bool | None:
    """Whether one sounds longer in all than the other; None without a clear margin."""
    difference = one.sounding_seconds - other.sounding_seconds
    return difference > 0 if abs(difference) >= MARGIN_SECONDS else None


def _compared(scene: Scene, compare: Callable[[Player, Player], bool | None]) -> Iterator[Found]:
    for one, other in _comparable(scene):
        truth = compare(one, other)
        if truth is not None:
            yield (one.kind, other.kind), _yes(truth)


@_asks("A-comp", "Is the <Object> louder than the <Object>?")
def _kind_louder(scene: Scene) -> Iterator[Found]:
    return _compared(scene, _louder)


@_asks("A-comp", "Is the <Object> more rhythmic than the <Object>?")
def _kind_more_rhythmic(scene: Scene) -> Iterator[Found]:
    return _compared(scene, _more_rhythmic)


@_asks("A-comp", "Is the <Object> playing longer than the <Object>?")
def _kind_longer(scene: Scene) -> Iterator[Found]:
    return _compared(scene, _longer)


# Visual: counting; a kind that plays off stage is not asked about


@_asks("V-count", "Are there <Object> and <Object> instruments in the video?")
def _both_seen(scene: Scene) -> Iterator[Found]:
    there = {player.kind for player in seen(scene)}
    for one, other in itertools.permutations([kind for kind in KINDS if kind not in _hidden_kinds(scene)], 2):
        if one in there and other in there:
            yield (one, other), "yes"
        elif one in there or other in there:
            yield (one, other), "no"


@_asks("V-count", "How many <Object> are in the entire video?")
def _num_of_kind(scene: Scene) -> Iterator[Found]:
    counts = Counter(player.kind for player in seen(scene))
    for kind in KINDS:
        if kind not in _hidden_kinds(scene):
            yield (kind,), _NUMBERS[counts[kind]]


@_asks("V-count", "How many types of musical instruments appeared in the entire video?")
def _num_types_seen(scene: Scene) -> Iterator[Found]:
    yield (), _NUMBERS[len({player.kind for player in seen(scene)})]


@_asks("V-count", "Is there a <Object> in the entire video?")
def _one_seen(scene: Scene) -> Iterator[Found]:
    there = {player.kind for player in seen(scene)}
    for kind in KINDS:
        if kind not in _hidden_kinds(scene):
            yield (kind,), _yes(kind in there)


# Visual: location


def _neighbours(scene: Scene, player: Player, side: str) -> list[Player]:
    """Return the instruments on stage to the "left" or "right" of a player."""
    if side == "left":
        return [other for other in seen(scene) if other.x < player.x]
    return [other for other in seen(scene) if other.x > player.x]


@_asks("V-loc", "What is the instrument on the <LR> of <Object>?")
def _beside_kind(scene: Scene) -> Iterator[Found]:
    for player in _once(seen(scene)):
        for side in ("left", "right"):
            kinds = {other.kind for other in _neighbours(scene, player, side)}
            if len(kinds) == 1 and player.kind not in _hidden_kinds(scene):
                yield (side, player.kind), kinds.pop()


@_asks("V-loc", "What kind of instrument is the <LRer> instrument? ")
def _outermost(scene: Scene) -> Iterator[Found]:
    players = seen(scene)
    if len(players) >= 2:
        yield ("leftest",), players[0].kind
        yield ("rightest",), players[-1].kind


@_asks("V-loc", "What kind of musical instrument is it?")
def _only_kind(scene: Scene) -> Iterator[Found]:
    kinds = {player.kind for player in scene.players}
    if len(kinds) == 1:
        yield (), kinds.pop()


@_asks("V-loc", "Where is the performance?")
def _place(scene: Scene) -> Iterator[Found]:
    yield (), scene.place


# Audio-visual: existential


@_asks("AV-exist", "Is the <Object> in the video always playing?")
def _always_playing(scene: Scene) -> Iterator[Found]:
    for player in _once(list(scene.players)):
        silent = CLIP_SECONDS - player.sounding_seconds
        if player.seen and (silent == 0.0 or silent >= MARGIN_SECONDS):
            yield (player.kind,), _yes(silent == 0.0), 0.5 if not player.sounds else 1.0


@_asks("AV-exist", "Is this sound from the instrument in the video?")
def _from_stage(scene: Scene) -> Iterator[Found]:
    """Asked where all that sounds is on stage (yes), or all of it off stage (no)."""
    sides = {player.seen for player in sounding(scene)}
    if len(sides) == 1:
        yield (), _yes(sides.pop())


# Audio-visual: counting


@_asks("AV-count", "How many instruments are sounding in the video?")
def _num_sounding(scene: Scene) -> Iterator[Found]:
    yield (), _NUMBERS[len(sounding(scene))]


@_asks("AV-count", "How many instruments in the video did not sound from beginning to end?")
def _num_silent(scene: Scene) -> Iterator[Found]:
    """Reads as: how many of those on stage never sound (MUSIC-AVQA's own answers are mostly zero and one)."""
    yield (), _NUMBERS[sum(not player.sounds for player in seen(scene))]


@_asks("AV-count", "How many sounding <Object> in the video？")
def _num_sounding_of_kind(scene: Scene) -> Iterator[Found]:
    counts = Counter(player.kind for player in sounding(scene))
    for kind in sorted({player.kind for player in scene.players}):
        if kind not in _hidden_kinds(scene):
            yield (kind,), _NUMBERS[counts[kind]]


@_asks("AV-count", "How many types of musical instruments sound in the video?")
def _num_types_sounding(scene: Scene) -> Iterator[Found]:
    yield (), _NUMBERS[len({player.kind for player in sounding(scene)})]


# Audio-visual: location


def _leader(players: list[Player], which: str) -> Player | None:
    """Return the "first" or "last" sounding instrument, or None without a clear margin.

    The last one comes in last and is also heard last, so both readings of "last" agree.
    """
    if len(players) < 2:
        return None
    ordered = sorted(players, key=lambda p: p.intervals[0][0])
    if which == "first":
        gap = ordered[1].intervals[0][0] - ordered[0].intervals[0][0]
        return ordered[0] if gap >= MARGIN_SECONDS else None
    last, others = ordered[-1], ordered[:-1]
    comes_in_last = last.intervals[0][0] - others[-1].intervals[0][0] >= MARGIN_SECONDS
    ends_last = last.intervals[-1][1] - max(p.intervals[-1][1] for p in others) >= MARGIN_SECONDS
    return last if comes_in_last and ends_last else None


@_asks("AV-loc", "Is the <FL> sound coming from the <LR> instrument?")
def _is_leader_there(scene: Scene) -> Iterator[Found]:
    for which in ("first", "last"):
        leader = _leader(sounding(scene), which)
        if leader is not None:
            for player in seen(scene):
                yield (which, str(player.seat)), _yes(player is leader)


@_asks("AV-loc", "What is the <LR> instrument of the <FL> sounding instrument?")
def _beside_leader(scene: Scene) -> Iterator[Found]:
    for which in ("first", "last"):
        leader = _leader(sounding(scene), which)
        if leader is not None and leader.seen:
            for side in ("left", "right"):
                kinds = {other.kind for other in _neighbours(scene, leader, side)}
                if len(kinds) == 1:
                    yield (side, which), kinds.pop()


@_asks("AV-loc", "Where is the <LL> instrument?")
def _where_loudest(scene: Scene) -> Iterator[Found]:
    """Asks for the loudest only: "lowest" could mean pitch, place or level."""
    players = sorted(sounding(scene), key=lambda p: -p.level_db)
    if len(players) >= 2 and len(_once(players)) == len(players) and players[0].seen:
        if players[0].level_db - players[1].level_db >= MARGIN_DB:
            yield ("loudest",), str(players[0].seat)


def _overlap_seconds(one: Player, other: Player) -> float:
    pairs = itertools.product(one.intervals, other.intervals)
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in pairs)


@_asks("AV-loc", "Which is the musical instrument that sounds at the same time as the <Object>?")
def _at_same_time(scene: Scene) -> Iterator[Found]:
    """Asked where one kind sounds with it for 1.5 s or more, and nothing else for more than the grid's shift."""
    players = sounding(scene)
    for player in _once(players):
        overlaps = {other.kind: 0.0 for other in players if other is not player}
        for other in players:
            if other is not player:
                overlaps[other.kind] = max(overlaps[other.kind], _overlap_seconds(player, other))
        together = [kind for kind, seconds in overlaps.items() if seconds >= MARGIN_SECONDS]
        if len(together) == 1 and all(s <= 0.6 for k, s in overlaps.items() if k not in together):
            yield (player.kind,), together[0]


# Audio-visual: comparative; kinds that sound twice are left out, as two of a kind cannot be told apart by ear


def _on_stage_pairs(scene: Scene) -> Iterator[tuple[Player, Player]]:
    return ((one, other) for one, other in _comparable(scene) if one.seen and other.seen)


def _compared_seats(
    scene: Scene, compare: Callable[[Player, Player], bool | None], named: bool
) -> Iterator[Found]:
    for one, other in _on_stage_pairs(scene):
        truth = compare(one, other)
        if truth is not None:
            seats = (str(one.seat), str(other.seat))
            yield (one.kind, seats[0], other.kind, seats[1]) if named else seats, _yes(truth)


@_asks("AV-comp", "Is the <Object> on the <LR> louder than the <Object> on the <LR>?")
def _kind_at_seat_louder(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, _louder, named=True)


@_asks("AV-comp", "Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?")
def _kind_at_seat_more_rhythmic(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, _more_rhythmic, named=True)


@_asks("AV-comp", "Is the instrument on the <LR> louder than the instrument on the <LR>?")
def _seat_louder(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, _louder, named=False)


@_asks("AV-comp", "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?")
def _seat_more_rhythmic(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, _more_rhythmic, named=False)


# Audio-visual: temporal


@_asks("AV-temp", "What is the <TH> instrument that comes in?")
def _comes_in(scene: Scene) -> Iterator[Found]:
    ordered = sorted(sounding(scene), key=lambda p: p.intervals[0][0])
    starts = [player.intervals[0][0] for player in ordered]
    for rank, player in enumerate(ordered[: len(_RANKS)]):
        after_last = rank == 0 or starts[rank] - starts[rank - 1] >= MARGIN_SECONDS
        before_next = rank + 1 == len(ordered) or starts[rank + 1] - starts[rank] >= MARGIN_SECONDS
        earlier = range(rank)
        ranked = all(starts[i + 1] - starts[i] >= MARGIN_SECONDS for i in earlier)
        if len(ordered) >= 2 and after_last and before_next and ranked:
            yield (_RANKS[rank],), player.kind


@_asks("AV-temp", "Where is the <FL> sounding instrument?")
def _where_leader(scene: Scene) -> Iterator[Found]:
    for which in ("first", "last"):
        leader = _leader(sounding(scene), which)
        if leader is not None and leader.seen:
            yield (which,), str(leader.seat)


@_asks("AV-temp", "Which <Object> makes the sound <FL>?")
def _which_of_kind(scene: Scene) -> Iterator[Found]:
    for kind in KINDS:
        players = [player for player in sounding(scene) if player.kind == kind]
        if len(players) < 2 or not all(player.seen for player in players):
            continue
        for which in ("first", "last"):
            leader = _leader(players, which)
            if leader is not None:
                yield (kind, which), str(leader.seat)
        starts = [player.intervals[0][0] for player in players]
        if max(starts) - min(starts) <= _TOGETHER_SECONDS:
            yield (kind, "first"), "simultaneously"


@_asks("AV-temp", "Which instrument makes sounds <BA> the <Object>?")
def _before_or_after(scene: Scene) -> Iterator[Found]:
    """Asked where one kind comes in before (after) it by 1.5 s, and every other does not by any reading."""
    players = sounding(scene)
    for player in _once(players):
        for word, sign in (("before", -1.0), ("after", 1.0)):
            leads = {
                other: sign * (other.intervals[0][0] - player.intervals[0][0])
                for other in players
                if other is not player
            }
            clear = all(lead >= MARGIN_SECONDS or lead <= _TOGETHER_SECONDS for lead in leads.values())
            kinds = {other.kind for other, lead in leads.items() if lead >= MARGIN_SECONDS}
            if clear and len(kinds) == 1:
                yield (word, player.kind), kinds.pop()


TWO_ANSWERS = frozenset(t for t in TEMPLATES if t.startswith(("Is ", "Are ")) or t == "Where is the performance?")
"""The templates that only two answers fit."""
