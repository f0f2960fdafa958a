"""The evaluation set's own questions: two families of MUSIC-AVQA's audio-visual templates that need sight and sound.

*short*: sight and sound of one segment, or of two neighbouring ones, have to be bound.
*long*: one cue and one solo decide, blocks apart, and the rest of the clip distracts.

Templates are MUSIC-AVQA's to the letter. What fills <FL> and <BA> goes beyond its words ("when the drum plays", "right
after"), and <Object> may name the seat ("left violin"), since one of two alike is meant. All are asked of the alike two
and of the cues (`evaluation_scene.py`); that a question is asked says nothing of its answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from .evaluation_scene import ALIKE, CUES, segments_of
from .question_templates import MARGIN_DB, MARGIN_ONSETS, Candidate, yes
from .scene import Player, Scene

WHICH = "Which <Object> makes the sound <FL>?"
BEFORE_AFTER = "Which instrument makes sounds <BA> the <Object>?"
SAME_TIME = "Which is the musical instrument that sounds at the same time as the <Object>?"
LOUDER = "Is the <Object> on the <LR> louder than the <Object> on the <LR>?"
MORE_RHYTHMIC = "Is the <Object> on the <LR> more rhythmic than the <Object> on the <LR>?"


def family_candidates_of(scene: Scene) -> list[Candidate]:
    """Return every question of the two families that the scene can answer, in a fixed order."""
    alike = [player for player in scene.players if player.role in ALIKE]
    cues = [player for player in scene.players if player.role in CUES]
    if not alike:
        return []
    if scene.plot == "together":
        return [*_together(alike, cues), *_compared(alike)]
    if scene.plot == "right after":
        return [*_right_after(alike, cues), *_compared(alike)]
    return list(_apart(scene.plot, alike, cues))


def _together(alike: list[Player], cues: list[Player]) -> Iterator[Candidate]:
    for player in alike:
        for cue in cues:
            both = _segments(player) & _segments(cue)
            if both:
                yield _place(player, f"when the {cue.kind} plays", both, "short")
                yield Candidate(
                    type="AV-loc", template=SAME_TIME, values=(_named(player),), answer=cue.kind, family="short",
                    segments=tuple(sorted(both)),
                )  # fmt: skip


def _right_after(alike: list[Player], cues: list[Player]) -> Iterator[Candidate]:
    for player in alike:
        for cue in cues:
            (sounds,) = _segments(cue)
            if sounds - 1 in _segments(player):
                both = {sounds - 1, sounds}
                yield _place(player, f"right before the {cue.kind}", both, "short")
                yield _kind(cue, "right after", player, both, "short")


def _apart(plot: str, alike: list[Player], cues: list[Player]) -> Iterator[Candidate]:
    """Ask for the solo next to a cue and the cue next to a solo, in the direction that sight alone leaves open."""
    to_solo, to_cue = ("last before", "first after") if plot == "solo then cue" else ("first after", "last before")
    solo_first = plot == "solo then cue"
    ordered = sorted([*alike, *cues], key=lambda player: min(_segments(player)))
    for earlier, later in ((ordered[0], ordered[1]), (ordered[2], ordered[3])):
        solo, cue = (earlier, later) if solo_first else (later, earlier)
        both = _segments(solo) | _segments(cue)
        yield _place(solo, f"{to_solo} the {cue.kind}", both, "long")
        yield _kind(cue, to_cue, solo, both, "long")


def _compared(alike: list[Player]) -> Iterator[Candidate]:
    """Compare the alike two, of which each is heard only where it alone is seen playing."""
    for one, other in (alike, alike[::-1]):
        values = (one.kind, str(one.seat), other.kind, str(other.seat))
        solos = tuple(sorted(_segments(one) | _segments(other)))
        if abs(one.level_db - other.level_db) >= MARGIN_DB:
            truth = yes(one.level_db > other.level_db)
            yield Candidate(
                type="AV-comp", template=LOUDER, values=values, answer=truth, family="short", segments=solos
            )
        rates = one.onsets_per_second, other.onsets_per_second
        if max(rates) >= MARGIN_ONSETS * min(rates):
            truth = yes(rates[0] > rates[1])
            yield Candidate(
                type="AV-comp", template=MORE_RHYTHMIC, values=values, answer=truth, family="short", segments=solos
            )


def _place(player: Player, when: str, both: set[int], family: str) -> Candidate:
    return Candidate(
        type="AV-temp", template=WHICH, values=(player.kind, when), answer=str(player.seat), family=family,
        segments=tuple(sorted(both)),
    )  # fmt: skip


def _kind(cue: Player, when: str, player: Player, both: set[int], family: str) -> Candidate:
    return Candidate(
        type="AV-temp", template=BEFORE_AFTER, values=(when, _named(player)), answer=cue.kind, family=family,
        segments=tuple(sorted(both)),
    )  # fmt: skip


def _named(player: Player) -> str:
    return f"{player.seat} {player.kind}"


def _segments(player: Player) -> set[int]:
    return segments_of(player.intervals)
