"""Scenes: the ground truth of each demo clip, decided before anything is drawn or played.

A scene depends on the seed and the clip's number alone, so clip i of a seed is the same in every set that holds it.
All times are in seconds from the clip's start and are multiples of one frame (1/8 s), so that a frame shows an
instrument playing exactly when it sounds. The scenes of the evaluation set are decided in `evaluation_scene.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from .instruments import KINDS, LEVELS_DB, NOTES_PER_BEAT, SEATS, Kind

CLIP_SECONDS = 8.0
FRAMES_PER_SECOND = 8
SPLITS = ("train", "val", "test")
PLACES = ("indoor", "outdoor")
SEAT_CENTRES = ((96, 156), (160, 88), (224, 156))
"""Where left, middle and right are on average, in pixels of a 320x240 frame; the middle stands behind, on a riser."""
_MAX_PLAYERS = 4
_BANDS, _BAND_FACTOR = 0.85, 7.0
_THIRD_REPEATS = 0.35
_MUTE_STAGE = 0.12
"""Share of the clips that show only silent instruments, and are heard from off stage."""

# Which of the four 2 s quarters of a clip an instrument plays in, with relative weights; "1111" is drawn apart.
_PATTERNS = {
    "1110": 7, "0111": 9, "1100": 15, "0011": 17, "0110": 11, "1000": 7, "0100": 7, "0010": 7, "0001": 8,
    "1001": 2, "1011": 2, "1101": 2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Player:
    """One instrument of a clip.

    Attributes:
        kind: a word of `KINDS`.
        seat: "left", "middle", "right", or None when it is heard from off stage and never seen.
        intervals: (start, end) of its sounding times, ordered and apart; () when it never sounds.
        onsets: the instants at which its notes start, ordered, each inside an interval.
        level_db: gated RMS level over its sounding time, dB relative to full scale.
        pan: 0.0 (left channel) to 1.0 (right channel).
        size: the longer side of its picture, in pixels of a 320x240 frame; 0 off stage.
        x, y: the centre of its picture, in the same pixels; 0 off stage.
        away: (start, end) of the times at which it has left the stage; it never sounds then.
        role: its part in the plot of a clip of the evaluation set; "" elsewhere.
    """

    kind: str
    seat: str | None
    intervals: tuple[tuple[float, float], ...]
    onsets: tuple[float, ...]
    level_db: float
    pan: float
    size: int = 0
    x: int = 0
    y: int = 0
    away: tuple[tuple[float, float], ...] = ()
    role: str = ""

    @property
    def sounds(self) -> bool:
        """Whether it is heard at all."""
        return bool(self.intervals)

    @property
    def seen(self) -> bool:
        """Whether it is on stage."""
        return self.seat is not None

    @property
    def sounding_seconds(self) -> float:
        """How long it sounds in all."""
        return sum(end - start for start, end in self.intervals)

    @property
    def onsets_per_second(self) -> float:
        """Note onsets in a second of its sounding time; 0.0 when it never sounds."""
        return len(self.onsets) / self.sounding_seconds if self.intervals else 0.0

    def plays_at(self, seconds: float) -> bool:
        """Whether it sounds at that instant."""
        return any(start <= seconds + 1e-9 < end for start, end in self.intervals)

    def shown_at(self, seconds: float) -> bool:
        """Whether it stands on stage at that instant."""
        return self.seen and not any(start <= seconds + 1e-9 < end for start, end in self.away)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip: its stage, its music and its players, on stage from left to right and then off stage.

    Attributes:
        seed, index: of the set, and of the clip in it.
        split: "train", "val" or "test".
        place: "indoor" or "outdoor".
        key, minor, beats_per_minute: of the music.
        players: on stage from left to right, then off stage.
        seconds: how long the clip lasts.
        frames_per_second: of its picture.
        plot: what happens in a clip of the evaluation set, a name of `PLOTS`; "" elsewhere.
    """

    seed: int
    index: int
    split: str
    place: str
    key: int
    minor: bool
    beats_per_minute: float
    players: tuple[Player, ...]
    seconds: float = CLIP_SECONDS
    frames_per_second: int = FRAMES_PER_SECOND
    plot: str = ""

    @property
    def video_id(self) -> str:
        """The clip's name, eight digits as MUSIC-AVQA's."""
        return f"{self.index:08d}"


def make_scene(seed: int, index: int) -> Scene:
    """Decide clip `index` (0 or more) of the set of `seed`."""
    rng = Random(f"talik demo scene {seed} {index}")
    key, minor = rng.randrange(12), rng.random() < 0.4
    beats_per_minute = float(rng.randrange(84, 124, 2))
    frame = 1.0 / FRAMES_PER_SECOND
    shifts = {quarter: (rng.randrange(3) * frame, rng.randrange(3) * frame) for quarter in range(1, 4)}
    place = rng.choice(PLACES)
    kinds_seen = _choose_kinds(rng, rng.choices((1, 2, 3), weights=(16, 32, 52))[0])
    seats = _choose_seats(rng, kinds_seen)
    mute = rng.random() < _MUTE_STAGE
    num_hidden = rng.choices((1, 2), weights=(3, 2))[0] if mute else int(rng.random() < 0.3)
    num_hidden = min(num_hidden, _MAX_PLAYERS - len(kinds_seen))
    hidden = [kind for kind in _choose_kinds(rng, len(KINDS), repeat=False) if kind not in kinds_seen][:num_hidden]
    sounding = [not mute and rng.random() < kind.sounding for kind in kinds_seen]
    if not hidden and not any(sounding):
        sounding[rng.randrange(len(sounding))] = True
    players = [
        _make_player(rng, kind, seat, heard, shifts, beats_per_minute)
        for kind, seat, heard in zip(kinds_seen, seats, sounding, strict=True)
    ]
    players.sort(key=lambda player: player.x)
    players += [_make_player(rng, kind, None, True, shifts, beats_per_minute) for kind in hidden]
    return Scene(
        seed=seed, index=index, split=split_of(seed, index), place=place, key=key, minor=minor,
        beats_per_minute=beats_per_minute, players=tuple(players),
    )  # fmt: skip


def split_of(seed: int, index: int, *, num_test: int = 5) -> str:
    """Return the split of a clip: of every 20 clips `num_test` test, 2 validate, the rest train.

    The first 4 of them are 2, 1 and 1 of train, val and test.
    """
    rng = Random(f"talik demo split {seed} {index // 20}")
    head = ["train", "train", "val", "test"]
    tail = ["train"] * (16 - num_test) + ["val"] + ["test"] * (num_test - 1)
    rng.shuffle(head)
    rng.shuffle(tail)
    return (head + tail)[index % 20]


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """Return the scene as plain JSON values."""
    return dataclasses.asdict(scene)


def scene_from_json(values: Mapping[str, Any]) -> Scene:
    """Return the scene that `scene_to_json` wrote."""
    players = tuple(
        Player(
            **{
                **p,
                "intervals": tuple(tuple(i) for i in p["intervals"]),
                "onsets": tuple(p["onsets"]),
                "away": tuple(tuple(i) for i in p.get("away", ())),
            }
        )
        for p in values["players"]
    )
    return Scene(**{**values, "players": players})


def _choose_kinds(rng: Random, num: int, *, repeat: bool = True) -> list[Kind]:
    """Draw `num` kinds by popularity and band; unless told, one kind may stand more than once."""
    kinds: list[Kind] = []
    left = dict(KINDS)
    band = rng.choice(sorted({kind.band for kind in KINDS.values()})) if rng.random() < _BANDS else None
    while len(kinds) < num:
        if kinds and repeat and rng.random() < (kinds[0].repeats if len(kinds) == 1 else _THIRD_REPEATS):
            kinds.append(kinds[0])
            continue
        repeat = repeat and not kinds
        kind = rng.choices(list(left.values()), weights=[_weight(k, band) for k in left.values()])[0]
        kinds.append(left.pop(kind.word))
    return kinds


def _weight(kind: Kind, band: str | None) -> float:
    return kind.popularity * (_BAND_FACTOR if kind.band == band else 1.0)


def _choose_seats(rng: Random, kinds: Sequence[Kind]) -> list[str]:
    free = list(SEATS)
    seats = []
    for kind in kinds:
        seat = rng.choices(free, weights=[kind.seats[SEATS.index(s)] for s in free])[0]
        free.remove(seat)
        seats.append(seat)
    return seats


def _make_player(
    rng: Random,
    kind: Kind,
    seat: str | None,
    heard: bool,
    shifts: Mapping[int, tuple[float, float]],
    beats_per_minute: float,
) -> Player:
    level = rng.choices(LEVELS_DB, weights=kind.levels)[0] + round(rng.uniform(-1.0, 1.0), 2)
    notes_per_beat = rng.choices(NOTES_PER_BEAT, weights=kind.rates)[0]
    intervals = _choose_intervals(rng, kind, shifts) if heard else ()
    onsets = tuple(t for interval in intervals for t in place_onsets(rng, interval, beats_per_minute * notes_per_beat))
    if seat is None:
        pan = round(rng.uniform(0.2, 0.8), 2)
        return Player(kind=kind.word, seat=None, intervals=intervals, onsets=onsets, level_db=level, pan=pan)
    place = SEATS.index(seat)
    x, y = SEAT_CENTRES[place]
    return Player(
        kind=kind.word, seat=seat, intervals=intervals, onsets=onsets, level_db=level, pan=(0.12, 0.5, 0.88)[place],
        size=rng.randrange(68, 85, 4), x=x + rng.randrange(-4, 5), y=y + rng.randrange(-6, 7),
    )  # fmt: skip


def _choose_intervals(
    rng: Random, kind: Kind, shifts: Mapping[int, tuple[float, float]]
) -> tuple[tuple[float, float], ...]:
    """Draw sounding intervals of 2 s or more, on a grid of 2 s whose lines the clip shifts outward by up to 0.25 s."""
    if rng.random() < kind.steady:
        return ((0.0, CLIP_SECONDS),)
    pattern = rng.choices(list(_PATTERNS), weights=list(_PATTERNS.values()))[0] + "0"
    intervals: list[tuple[float, float]] = []
    start: int | None = None
    for quarter, plays in enumerate(pattern):
        if plays == "1" and start is None:
            start = quarter
        elif plays == "0" and start is not None:
            begin = 2.0 * start - (shifts[start][0] if start else 0.0)
            end = 2.0 * quarter + (shifts[quarter][1] if quarter < 4 else 0.0)
            intervals.append((begin, end))
            start = None
    return tuple(intervals)


def place_onsets(rng: Random, interval: tuple[float, float], onsets_per_minute: float) -> list[float]:
    """Return onsets from the interval's start on, nearly even, a few of the quick ones left out."""
    start, end = interval
    step = 60.0 / onsets_per_minute
    onsets = [start]
    now = step
    while start + now < end - 0.15:
        if step > 0.6 or rng.random() >= 0.08:
            onsets.append(round(start + now + rng.uniform(-0.06, 0.06) * step, 4))
        now += step
    return onsets
