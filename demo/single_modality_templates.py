"""Question templates that sound alone or picture alone answers: MUSIC-AVQA's audio and visual ones.

An audio question counts what sounds off stage; a visual one means the picture alone, and is not asked about a kind
that plays off stage.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

from .instruments import KINDS
from .question_templates import (
    NUMBERS,
    Found,
    asks,
    comparable,
    hidden_kinds,
    likely_absent,
    longer,
    louder,
    more_rhythmic,
    neighbours,
    once,
    seen,
    sounding,
    yes,
)
from .scene import Player, Scene

# Audio: counting


@asks("A-count", "Are there <Object> and <Object> sound? ")
def _both_sound(scene: Scene) -> Iterator[Found]:
    heard = {player.kind for player in sounding(scene)}
    for one, other in itertools.permutations(KINDS, 2):
        if one in heard and other in heard:
            yield (one, other), "yes"
        elif one in heard or other in heard:
            yield (one, other), "no", likely_absent(scene, one) * likely_absent(scene, other)


@asks("A-count", "How many musical instruments were heard throughout the video?")
def _num_heard(scene: Scene) -> Iterator[Found]:
    """Asked where no kind sounds twice, since two of a kind cannot be told apart by ear."""
    players = sounding(scene)
    if len(once(players)) == len(players):
        yield (), NUMBERS[len(players)]


@asks("A-count", "Is there a <Object> sound?")
def _one_sounds(scene: Scene) -> Iterator[Found]:
    heard = {player.kind for player in sounding(scene)}
    for kind in KINDS:
        yield (kind,), yes(kind in heard), 1.0 if kind in heard else likely_absent(scene, kind)


# Audio: comparative


def _compared(scene: Scene, compare: Callable[[Player, Player], bool | None]) -> Iterator[Found]:
    for one, other in comparable(scene):
        truth = compare(one, other)
        if truth is not None:
            yield (one.kind, other.kind), yes(truth)


@asks("A-comp", "Is the <Object> louder than the <Object>?")
def _kind_louder(scene: Scene) -> Iterator[Found]:
    return _compared(scene, louder)


@asks("A-comp", "Is the <Object> more rhythmic than the <Object>?")
def _kind_more_rhythmic(scene: Scene) -> Iterator[Found]:
    return _compared(scene, more_rhythmic)


@asks("A-comp", "Is the <Object> playing longer than the <Object>?")
def _kind_longer(scene: Scene) -> Iterator[Found]:
    return _compared(scene, longer)


# Visual: counting; a kind that plays off stage is not asked about


@asks("V-count", "Are there <Object> and <Object> instruments in the video?")
def _both_seen(scene: Scene) -> Iterator[Found]:
    there = {player.kind for player in seen(scene)}
    for one, other in itertools.permutations([kind for kind in KINDS if kind not in hidden_kinds(scene)], 2):
        if one in there and other in there:
            yield (one, other), "yes"
        elif one in there or other in there:
            yield (one, other), "no"


@asks("V-count", "How many <Object> are in the entire video?")
def _num_of_kind(scene: Scene) -> Iterator[Found]:
    counts = Counter(player.kind for player in seen(scene))
    for kind in KINDS:
        if kind not in hidden_kinds(scene):
            yield (kind,), NUMBERS[counts[kind]]


@asks("V-count", "How many types of musical instruments appeared in the entire video?")
def _num_types_seen(scene: Scene) -> Iterator[Found]:
    yield (), NUMBERS[len({player.kind for player in seen(scene)})]


@asks("V-count", "Is there a <Object> in the entire video?")
def _one_seen(scene: Scene) -> Iterator[Found]:
    there = {player.kind for player in seen(scene)}
    for kind in KINDS:
        if kind not in hidden_kinds(scene):
            yield (kind,), yes(kind in there)


# Visual: location


@asks("V-loc", "What is the instrument on the <LR> of <Object>?")
def _beside_kind(scene: Scene) -> Iterator[Found]:
    for player in once(seen(scene)):
        for side in ("left", "right"):
            kinds = {other.kind for other in neighbours(scene, player, side)}
            if len(kinds) == 1 and player.kind not in hidden_kinds(scene):
                yield (side, player.kind), kinds.pop()


@asks("V-loc", "What kind of instrument is the <LRer> instrument? ")
def _outermost(scene: Scene) -> Iterator[Found]:
    players = seen(scene)
    if len(players) >= 2:
        yield ("leftest",), players[0].kind
        yield ("rightest",), players[-1].kind


@asks("V-loc", "What kind of musical instrument is it?")
def _only_kind(scene: Scene) -> Iterator[Found]:
    kinds = {player.kind for player in scene.players}
    if len(kinds) == 1:
        yield (), kinds.pop()


@asks("V-loc", "Where is the performance?")
def _place(scene: Scene) -> Iterator[Found]:
    yield (), scene.place
