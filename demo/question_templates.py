"""Shared by all question templates: their table, the margins of decidable answers, and comparisons of instruments.

Each template has one function that reads a scene's ground truth and yields (template values, answer). What is not
decidable with a clear margin is not asked: instruments that are compared differ by 5 dB, by 1.6 times the onsets or
by 1.5 s; "first" is first by 1.5 s.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .scene import Player, Scene

MARGIN_DB = 5.0
MARGIN_ONSETS = 1.6
MARGIN_SECONDS = 1.5
TOGETHER_SECONDS = 0.3
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A question that a scene can answer.

    Attributes:
        type: the short type name, as "AV-loc".
        template: MUSIC-AVQA's `question_content`, to the letter.
        values: what fills the template's <...> places, in their order.
        answer: the true answer, one of MUSIC-AVQA's words.
        weight: how likely it is to be drawn among the candidates of its template and answer.
        family: "long" or "short" for the evaluation set's own questions (`evaluation_templates.py`), else "basic".
        segments: the segments that decide it, in order; () for a basic question.
    """

    type: str
    template: str
    values: tuple[str, ...]
    answer: str
    weight: float = 1.0
    family: str = "basic"
    segments: tuple[int, ...] = ()

    @property
    def row(self) -> str:
        """The question's type and family in one, as "AV-temp, long"; the type alone for a basic one."""
        return self.type if self.family == "basic" else f"{self.type}, {self.family}"


Found = tuple[tuple[str, ...], str] | tuple[tuple[str, ...], str, float]
Finder = Callable[[Scene], Iterator[Found]]
TEMPLATES: dict[str, tuple[str, Finder]] = {}
"""Each template's short type and the function that finds its questions."""


def asks(short: str, template: str) -> Callable[[Finder], Finder]:
    """Register the decorated function as the finder of a template's questions.

    Args:
        short: the question type's short name, as "AV-loc".
        template: MUSIC-AVQA's `question_content`, to the letter.
    """

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


def once(players: list[Player]) -> list[Player]:
    """Return the players whose kind no other of them has."""
    counts = Counter(player.kind for player in players)
    return [player for player in players if counts[player.kind] == 1]


def hidden_kinds(scene: Scene) -> set[str]:
    """Return the kinds of the instruments that play off stage."""
    return {player.kind for player in scene.players if not player.seen}


def yes(truth: bool) -> str:
    """Return the answer word of a truth value."""
    return "yes" if truth else "no"


def likely_absent(scene: Scene, kind: str) -> float:
    """Weigh a kind for a question whose answer is no: instruments that stand there silent are asked about first."""
    return 5.0 if any(player.kind == kind for player in scene.players) else 1.0


def neighbours(scene: Scene, player: Player, side: str) -> list[Player]:
    """Return the instruments on stage to the "left" or "right" of a player."""
    if side == "left":
        return [other for other in seen(scene) if other.x < player.x]
    return [other for other in seen(scene) if other.x > player.x]


def comparable(scene: Scene) -> Iterator[tuple[Player, Player]]:
    """Yield every ordered pair of sounding instruments whose kinds are unique among those that sound."""
    yield from itertools.permutations(once(sounding(scene)), 2)


def louder(one: Player, other: Player) -> bool | None:
    """Whether one is louder than the other; None without a clear margin."""
    difference = one.level_db - other.level_db
    return difference > 0 if abs(difference) >= MARGIN_DB else None


def more_rhythmic(one: Player, other: Player) -> bool | None:
    """Whether one starts more notes a second of its sounding time than the other; None without a clear margin."""
    a, b = one.onsets_per_second, other.onsets_per_second
    return a > b if max(a, b) >= MARGIN_ONSETS * min(a, b) else None


def longer(one: Player, other: Player) -> bool | None:
    """Whether one sounds longer in all than the other; None without a clear margin."""
    difference = one.sounding_seconds - other.sounding_seconds
    return difference > 0 if abs(difference) >= MARGIN_SECONDS else None
