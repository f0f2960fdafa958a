"""Question templates that need picture and sound together: MUSIC-AVQA's audio-visual ones.

"In the video" counts what sounds off stage too, since the sound track is part of the video. Where a template's words
have two readings, it is asked only where both give the same answer, or the reading stands in the function's docstring.
"Is there a voiceover?" is never asked: the demo has no voices.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

from .instruments import KINDS
from .question_templates import (
    MARGIN_DB,
    MARGIN_SECONDS,
    NUMBERS,
    TOGETHER_SECONDS,
    Found,
    asks,
    comparable,
    hidden_kinds,
    louder,
    more_rhythmic,
    neighbours,
    once,
    seen,
    sounding,
    yes,
)
from .scene import Player, Scene

_RANKS = ("first", "second", "third")

# Audio-visual: existential


@asks("AV-exist", "Is the <Object> in the video always playing?")
def _always_playing(scene: Scene) -> Iterator[Found]:
    for player in once(list(scene.players)):
        silent = scene.seconds - player.sounding_seconds
        if player.seen and (silent == 0.0 or silent >= MARGIN_SECONDS):
            yield (player.kind,), yes(silent == 0.0), 0.5 if not player.sounds else 1.0


@asks("AV-exist", "Is this sound from the instrument in the video?")
def _from_stage(scene: Scene) -> Iterator[Found]:
    """Asked where all that sounds is on stage (yes), or all of it off stage (no)."""
    sides = {player.seen for player in sounding(scene)}
    if len(sides) == 1:
        yield (), yes(sides.pop())


# Audio-visual: counting


@asks("AV-count", "How many instruments are sounding in the video?")
def _num_sounding(scene: Scene) -> Iterator[Found]:
    yield (), NUMBERS[len(sounding(scene))]


@asks("AV-count", "How many instruments in the video did not sound from beginning to end?")
def _num_silent(scene: Scene) -> Iterator[Found]:
    """Reads as: how many of those on stage never sound (MUSIC-AVQA's own answers are mostly zero and one)."""
    yield (), NUMBERS[sum(not player.sounds for player in seen(scene))]


@asks("AV-count", "How many sounding <Object> in the video？")
def _num_sounding_of_kind(scene: Scene) -> Iterator[Found]:
    counts = Counter(player.kind for player in sounding(scene))
    for kind in sorted({player.kind for player in scene.players}):
        if kind not in hidden_kinds(scene):
            yield (kind,), NUMBERS[counts[kind]]


@asks("AV-count", "How many types of musical instruments sound in the video?")
def _num_types_sounding(scene: Scene) -> Iterator[Found]:
    yield (), NUMBERS[len({player.kind for player in sounding(scene)})]


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


@asks("AV-loc", "Is the <FL> sound coming from the <LR> instrument?")
def _is_leader_there(scene: Scene) -> Iterator[Found]:
    for which in ("first", "last"):
        leader = _leader(sounding(scene), which)
        if leader is not None:
            for player in seen(scene):
                yield (which, str(player.seat)), yes(player is leader)


@asks("AV-loc", "What is the <LR> instrument of the <FL> sounding instrument?")
def _beside_leader(scene: Scene) -> Iterator[Found]:
    for which in ("first", "last"):
        leader = _leader(sounding(scene), which)
        if leader is not None and leader.seen:
            for side in ("left", "right"):
                kinds = {other.kind for other in neighbours(scene, leader, side)}
                if len(kinds) == 1:
                    yield (side, which), kinds.pop()


@asks("AV-loc", "Where is the <LL> instrument?")
def _where_loudest(scene: Scene) -> Iterator[Found]:
    """Asks for the loudest only: "lowest" could mean pitch, place or level."""
    players = sorted(sounding(scene), key=lambda p: -p.level_db)
    if len(players) < 2 or len(once(players)) < len(players) or not players[0].seen:
        return
    if players[0].level_db - players[1].level_db >= MARGIN_DB:
        yield ("loudest",), str(players[0].seat)


def _overlap_seconds(one: Player, other: Player) -> float:
    pairs = itertools.product(one.intervals, other.intervals)
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in pairs)


@asks("AV-loc", "Which is the musical instrument that sounds at the same time as the <Object>?")
def _at_same_time(scene: Scene) -> Iterator[Found]:
    """Asked where one kind sounds with it for 1.5 s or more, and nothing else for more than the grid's shift."""
    players = sounding(scene)
    for player in once(players):
        overlaps = {other.kind: 0.0 for other in players if other is not player}
        for other in players:
            if other is not player:
                overlaps[other.kind] = max(overlaps[other.kind], _overlap_seconds(player, other))
        together = [kind for kind, seconds in overlaps.items() if seconds >= MARGIN_SECONDS]
        if len(together) == 1 and all(s <= 0.6 for k, s in overlaps.items() if k not in together):
            yield (player.kind,), together[0]


# Audio-visual: comparative; kinds that sound twice are left out, as two of a kind cannot be told apart by ear


def _on_stage_pairs(scene: Scene) -> Iterator[tuple[Player, Player]]:
    return ((one, other) for one, other in comparable(scene) if one.seen and other.seen)


def _compared_seats(scene: Scene, compare: Callable[[Player, Player], bool | None], named: bool) -> Iterator[Found]:
    for one, other in _on_stage_pairs(scene):
        truth = compare(one, other)
        if truth is not None:
            seats = (str(one.seat), str(other.seat))
            yield (one.kind, seats[0], other.kind, seats[1]) if named else seats, yes(truth)


@asks("AV-comp", "Is the <Object> on the <LR> louder than the <Object> on the <LR>?")
def _kind_at_seat_louder(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, louder, named=True)


@asks("AV-comp", "Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?")
def _kind_at_seat_more_rhythmic(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, more_rhythmic, named=True)


@asks("AV-comp", "Is the instrument on the <LR> louder than the instrument on the <LR>?")
def _seat_louder(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, louder, named=False)


@asks("AV-comp", "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?")
def _seat_more_rhythmic(scene: Scene) -> Iterator[Found]:
    return _compared_seats(scene, more_rhythmic, named=False)


# Audio-visual: temporal


@asks("AV-temp", "What is the <TH> instrument that comes in?")
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


@asks("AV-temp", "Where is the <FL> sounding instrument?")
def _where_leader(scene: Scene) -> Iterator[Found]:
    for which in ("first", "last"):
        leader = _leader(sounding(scene), which)
        if leader is not None and leader.seen:
            yield (which,), str(leader.seat)


@asks("AV-temp", "Which <Object> makes the sound <FL>?")
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
        if max(starts) - min(starts) <= TOGETHER_SECONDS:
            yield (kind, "first"), "simultaneously"


@asks("AV-temp", "Which instrument makes sounds <BA> the <Object>?")
def _before_or_after(scene: Scene) -> Iterator[Found]:
    """Asked where one kind comes in before (after) it by 1.5 s, and every other does not by any reading."""
    players = sounding(scene)
    for player in once(players):
        for word, sign in (("before", -1.0), ("after", 1.0)):
            leads = {
                other: sign * (other.intervals[0][0] - player.intervals[0][0])
                for other in players
                if other is not player
            }
            clear = all(lead >= MARGIN_SECONDS or lead <= TOGETHER_SECONDS for lead in leads.values())
            kinds = {other.kind for other, lead in leads.items() if lead >= MARGIN_SECONDS}
            if clear and len(kinds) == 1:
                yield (word, player.kind), kinds.pop()
