"""The scene of an evaluation clip as a reader of it gets it: segment by segment, what is seen and what is heard."""

from __future__ import annotations

from dataclasses import dataclass

from .evaluation_scene import NUM_SEGMENTS, SEGMENT_SECONDS
from .instruments import SEATS
from .scene import Player, Scene

_MIDDLE = 0.5 * SEGMENT_SECONDS


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One instrument, over the segments of a clip.

    Attributes:
        role: its part in the plot. No question names it; it is for those who imagine what they cannot perceive.
        kind: a word of `KINDS`.
        seat: "left", "middle", "right"; None off stage.
        plays: the segments in which it plays: seen where it is on stage, heard wherever it is.
        away: the segments in which it is not on stage.
        level_db, onsets_per_second: how loud and how quick it is while it plays.
    """

    role: str
    kind: str
    seat: str | None
    plays: frozenset[int]
    away: frozenset[int]
    level_db: float
    onsets_per_second: float


@dataclass(frozen=True, kw_only=True)
class Description:
    """A clip in words: its plot (what kind of clip it is), its place and its instruments, on stage from the left."""

    plot: str
    place: str
    voices: tuple[Voice, ...]


def describe(scene: Scene) -> Description:
    """Return the scene in segments."""
    return Description(plot=scene.plot, place=scene.place, voices=tuple(map(_voice, scene.players)))


def described(plot: str, place: str, voices: list[Voice]) -> Description:
    """Return a description with its voices in order: on stage from left to right, then off stage."""
    ordered = sorted(voices, key=lambda v: len(SEATS) if v.seat is None else SEATS.index(v.seat))
    return Description(plot=plot, place=place, voices=tuple(ordered))


def _voice(player: Player) -> Voice:
    middles = [segment * SEGMENT_SECONDS + _MIDDLE for segment in range(NUM_SEGMENTS)]
    return Voice(
        role=player.role,
        kind=player.kind,
        seat=player.seat,
        plays=frozenset(s for s, middle in enumerate(middles) if player.plays_at(middle)),
        away=frozenset(s for s, middle in enumerate(middles) if player.seen and not player.shown_at(middle)),
        level_db=player.level_db,
        onsets_per_second=player.onsets_per_second,
    )
