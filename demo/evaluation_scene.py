"""Scenes of the evaluation set: clips of 24 s in which it is known what each question asks for.

A clip is cut into 16 segments of 1.5 s, and what happens changes only between segments. Two alike instruments stand on
stage in most clips; which of them plays is seen and cannot be heard. Other instruments, the cues, are heard from off
stage for one segment and are never seen. So whatever relates a cue to one of the two needs sound and picture. Four
plots say when, in the clip's four blocks of four segments:

    together            the alike two play a segment each in every block, in either order; each cue sounds with one
    right after         the same; each cue sounds in the pause right after one of them
    solo then cue       one of the two plays somewhere in block 0, a cue sounds in block 1, the other in 2, a cue in 3
    cue then solo       the same with the blocks of cues first

and "open" is any stage. All else is drawn alike for all: no kind prefers a place, a level or a partner, and sound has
no place in the stereo picture. The alike two, and the seats, are interchangeable at every draw, so a reader without one
of the things that a question asks for is at chance on it (`weaker_readers.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random

from .instruments import KINDS, NOTES_PER_BEAT, SEATS
from .scene import PLACES, SEAT_CENTRES, Player, Scene, place_onsets, split_of

NUM_SEGMENTS, SEGMENT_SECONDS = 16, 1.5
BLOCK = 4
"""Segments of a block, within which the plots hide the order of sight and sound."""
PLOTS = {"together": 18, "right after": 17, "solo then cue": 18, "cue then solo": 18, "open": 29}
"""Every plot and its share of the clips in a hundred."""
ALIKE, CUES = ("alike 1", "alike 2"), ("cue 1", "cue 2")
"""The roles of the two alike instruments, and of the two cues."""

_FRAMES_PER_SECOND = 4
_LEVELS_DB, _CUE_LEVEL_DB = (-34.0, -27.0, -20.0), -23.0
_GUEST, _STRANGER = 0.8, 0.6
_LONG_REST = 3
_NUM_BLOCKS = NUM_SEGMENTS // BLOCK
_Times = dict[str, set[int]]


def make_evaluation_scene(seed: int, index: int) -> Scene:
    """Decide clip `index` (0 or more) of the evaluation set of `seed`."""
    rng = Random(f"talik evaluation scene {seed} {index}")
    plot = rng.choices(list(PLOTS), weights=list(PLOTS.values()))[0]
    return draw_scene(rng, plot, seed=seed, index=index)


def draw_scene(rng: Random, plot: str, *, seed: int = 0, index: int = 0) -> Scene:
    """Draw a scene of a plot; `seed` and `index` only name it."""
    key, minor, place = rng.randrange(12), rng.random() < 0.4, rng.choice(PLACES)
    beats_per_minute = float(rng.randrange(84, 124, 2))
    kinds = rng.sample(list(KINDS), len(KINDS))
    seats = rng.sample(SEATS, len(SEATS))
    cast = _open_cast(rng, kinds, seats) if plot == "open" else _cast(rng, plot, kinds, seats)
    players = [
        _make_player(rng, role, kind, seat, times, beats_per_minute) for role, (kind, seat, times) in cast.items()
    ]
    players.sort(key=lambda player: (not player.seen, player.x))
    return Scene(
        seed=seed, index=index, split=split_of(seed, index), place=place, key=key, minor=minor,
        beats_per_minute=beats_per_minute, players=tuple(players), seconds=NUM_SEGMENTS * SEGMENT_SECONDS,
        frames_per_second=_FRAMES_PER_SECOND, plot=plot,
    )  # fmt: skip


def segments_of(intervals: Sequence[tuple[float, float]]) -> set[int]:
    """Return the segments that the intervals, in seconds, cover."""
    return {
        segment
        for start, end in intervals
        for segment in range(round(start / SEGMENT_SECONDS), round(end / SEGMENT_SECONDS))
    }


_Cast = dict[str, tuple[str, str | None, set[int]]]
"""Of each role its kind, its seat, and the segments in which it sounds."""


def _cast(rng: Random, plot: str, kinds: Sequence[str], seats: Sequence[str]) -> _Cast:
    times = _paired_times(rng, plot) if plot in ("together", "right after") else _lone_times(rng, plot)
    cast: _Cast = {role: (kinds[0], seat, times[role]) for role, seat in zip(ALIKE, seats, strict=False)}
    cast.update({cue: (kind, None, times[cue]) for cue, kind in zip(CUES, kinds[1:], strict=False)})
    if rng.random() < _GUEST:
        cast["guest"] = (kinds[3], seats[2], times["guest"])
    if "stranger" in times and rng.random() < _STRANGER:
        cast["stranger"] = (kinds[4], None, times["stranger"])
    return cast


def _paired_times(rng: Random, plot: str) -> _Times:
    """Draw the times of a plot in which the alike two play in turn: at segments 0 and 2 of each block, one each."""
    one, other = ALIKE
    times: _Times = {role: set() for role in (*ALIKE, "guest")}
    for block in range(0, NUM_SEGMENTS, BLOCK):
        first, second = rng.sample((one, other), 2)
        times[first].add(block)
        times[second].add(block + 2)
    after = plot == "right after"
    for cue, role in zip(CUES, rng.sample(ALIKE, 2), strict=True):
        times[cue] = {rng.choice(sorted(times[role])) + after}
    # The guest plays beside both or neither of a block's solos, and where no cue can be meant instead of it.
    for block in rng.sample(range(_NUM_BLOCKS), rng.randrange(1, _NUM_BLOCKS)):
        times["guest"] |= {BLOCK * block + step + (not after) for step in (0, 2)}
    return times


def _lone_times(rng: Random, plot: str) -> _Times:
    """Draw the times of a plot in which each of the alike two plays once, in a block apart from the cues."""
    times: _Times = {}
    solo_first = plot == "solo then cue"
    closed: set[int] = set()  # between a solo and its cue nothing else comes in
    for pair, (role, cue) in enumerate(zip(rng.sample(ALIKE, 2), rng.sample(CUES, 2), strict=True)):
        blocks = [2 * BLOCK * pair, 2 * BLOCK * pair + BLOCK]
        solo_block, cue_block = blocks if solo_first else blocks[::-1]
        length = rng.randrange(1, 3)
        start = solo_block + rng.randrange(BLOCK - length + 1)
        times[role], times[cue] = set(range(start, start + length)), {cue_block + rng.randrange(BLOCK)}
        (sounds,) = times[cue]
        closed |= set(range(min(start, sounds), max(start, sounds) + 1))
    for role in ("guest", "stranger"):
        starts = sorted(set(range(NUM_SEGMENTS)) - closed)
        times[role] = set()
        for start in rng.sample(starts, min(len(starts), rng.randrange(1, 3))):
            times[role] |= set(range(start, min(start + rng.randrange(1, 5), NUM_SEGMENTS)))
    return times


def _open_cast(rng: Random, kinds: Sequence[str], seats: Sequence[str]) -> _Cast:
    """Draw any stage: those that sound are of different kinds; silent ones may repeat the kind of another."""
    num_seen = rng.choices((1, 2, 3), weights=(2, 3, 5))[0]
    mute = rng.random() < 0.2
    sounding = [not mute and rng.random() < 0.65 for _ in range(num_seen)]
    num_hidden = rng.choices((0, 1, 2), weights=(5, 3, 2))[0] or int(not any(sounding))
    cast: _Cast = {}
    for number in range(num_seen):
        kind = kinds[number]
        if number and not sounding[number] and rng.random() < 0.45:
            kind = cast["player 1"][0]
        cast[f"player {number + 1}"] = (kind, seats[number], _any_times(rng) if sounding[number] else set())
    for number in range(num_hidden):
        cast[f"hidden {number + 1}"] = (kinds[num_seen + number], None, _any_times(rng))
    return cast


def _any_times(rng: Random) -> set[int]:
    if rng.random() < 0.25:
        return set(range(NUM_SEGMENTS))
    times: set[int] = set()
    for _ in range(rng.randrange(1, 3)):
        start = rng.randrange(NUM_SEGMENTS - 1)
        times |= set(range(start, min(start + rng.randrange(2, 9), NUM_SEGMENTS)))
    return times


def _make_player(
    rng: Random, role: str, kind: str, seat: str | None, times: set[int], beats_per_minute: float
) -> Player:
    level = _CUE_LEVEL_DB if role in CUES else rng.choice(_LEVELS_DB)
    onsets_per_minute = beats_per_minute * rng.choice(NOTES_PER_BEAT)
    intervals = _intervals(times)
    onsets = tuple(t for interval in intervals for t in place_onsets(rng, interval, onsets_per_minute))
    player = Player(
        kind=kind, seat=seat, intervals=intervals, onsets=onsets, pan=0.5, role=role,
        level_db=level + round(rng.uniform(-0.5, 0.5), 2),
    )  # fmt: skip
    if seat is None:
        return player
    x, y = SEAT_CENTRES[SEATS.index(seat)]
    away = _choose_away(rng, times) if role == "guest" else set()
    return dataclasses.replace(
        player, away=_intervals(away), size=rng.randrange(68, 85, 4), x=x + rng.randrange(-4, 5),
        y=y + rng.randrange(-6, 7),
    )  # fmt: skip


def _choose_away(rng: Random, times: set[int]) -> set[int]:
    """Draw the long rests in which an instrument leaves the stage; it comes back to play."""
    rests = [run for run in _runs(set(range(NUM_SEGMENTS)) - times) if len(run) >= _LONG_REST]
    return {segment for run in rests if rng.random() < 0.6 for segment in run}


def _runs(segments: set[int]) -> list[range]:
    """Return the runs of neighbouring segments, in order."""
    runs: list[range] = []
    for segment in sorted(segments):
        if runs and runs[-1].stop == segment:
            runs[-1] = range(runs[-1].start, segment + 1)
        else:
            runs.append(range(segment, segment + 1))
    return runs


def _intervals(segments: set[int]) -> tuple[tuple[float, float], ...]:
    return tuple((run.start * SEGMENT_SECONDS, run.stop * SEGMENT_SECONDS) for run in _runs(segments))
