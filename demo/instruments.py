"""List the demo set's kinds of instrument: how each looks, sounds and tends to behave.

Names are MUSIC-AVQA's answer words. The picture is a glyph of OpenMoji's colour font, the sound a General MIDI
program (or keys of the percussion channel), in a register and with an articulation of its own. Habits are mild
priors, as on real stages: they let a model that reads only the question do a little better than the most frequent
answer, and never decide a question.
"""

from __future__ import annotations

from dataclasses import dataclass

SEATS = ("left", "middle", "right")
LEVELS_DB = (-40.0, -30.0, -20.0)
"""Soft, middle and loud: gated RMS level of an instrument over its sounding time, in dB relative to full scale."""
NOTES_PER_BEAT = (0.5, 1.5, 4.0)
"""Slow, middle and fast: how many notes an instrument starts in a beat of the clip's tempo."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of instrument.

    Attributes:
        word: MUSIC-AVQA's answer word.
        glyph: the character of OpenMoji's font that shows it.
        program: General MIDI program, 0 to 127; unused on the percussion channel.
        keys: percussion (key, velocity) in the order they are struck, on the percussion channel; else empty.
        zones: the register, as (lowest key, highest key, shift): the synthesizer plays some of the soundfont's
            samples away from their pitch, so a key sounds `shift` semitones higher (measured).
        num_voices: notes that sound together.
        legato: a note's length as a fraction of the time to the next one.
        band: the kinds that are often seen together with it share this name.
        popularity: relative frequency among the instruments of all clips.
        repeats: chance that others of its kind stand beside it.
        sounding: chance that it sounds when it is seen.
        seats: relative tendency to sit left, middle, right.
        levels: relative tendency to be soft, middle, loud.
        rates: relative tendency to be slow, middle, fast.
        steady: chance that it plays from the beginning to the end, when it sounds.
    """

    word: str
    glyph: str
    program: int = 0
    keys: tuple[tuple[int, int], ...] = ()
    zones: tuple[tuple[int, int, int], ...] = ()
    num_voices: int = 1
    legato: float = 0.9
    band: str = ""
    popularity: float = 1.0
    repeats: float = 0.3
    sounding: float = 0.7
    seats: tuple[float, float, float] = (1.0, 1.0, 1.0)
    levels: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rates: tuple[float, float, float] = (1.0, 1.0, 1.0)
    steady: float = 0.2


_ALL = (
    Kind(
        word="violin",
        glyph="\U0001f3bb",
        program=40,
        zones=((52, 60, 10), (61, 66, 14)),
        legato=1.0,
        band="chamber",
        popularity=1.5,
        repeats=0.5,
        sounding=0.88,
        seats=(4.0, 1.0, 1.0),
        levels=(1.0, 2.2, 1.0),
        rates=(1.0, 2.3, 1.0),
        steady=0.25,
    ),
    Kind(
        word="trumpet",
        glyph="\U0001f3ba",
        program=56,
        zones=((58, 75, 0),),
        legato=0.55,
        band="jazz",
        popularity=0.9,
        repeats=0.45,
        sounding=0.55,
        seats=(1.0, 1.0, 4.0),
        levels=(0.5, 1.0, 2.6),
        rates=(1.0, 2.2, 0.9),
        steady=0.05,
    ),
    Kind(
        word="saxophone",
        glyph="\U0001f3b7",
        program=66,
        zones=((46, 62, 0),),
        legato=0.9,
        band="jazz",
        popularity=1.1,
        repeats=0.4,
        sounding=0.75,
        seats=(1.0, 1.0, 3.0),
        levels=(0.7, 1.0, 2.3),
        rates=(1.4, 1.4, 0.8),
        steady=0.08,
    ),
    Kind(
        word="drum",
        glyph="\U0001f941",
        keys=((36, 45), (42, 115), (38, 127), (42, 115)),
        band="jazz",
        popularity=1.2,
        repeats=0.15,
        sounding=0.85,
        seats=(0.7, 4.0, 0.7),
        levels=(0.5, 1.0, 2.6),
        rates=(0.7, 1.0, 2.6),
        steady=0.35,
    ),
    Kind(
        word="accordion",
        glyph="\U0001fa97",
        program=21,
        zones=((46, 58, 6),),
        num_voices=3,
        legato=1.0,
        band="folk",
        popularity=1.0,
        repeats=0.08,
        sounding=0.65,
        seats=(1.0, 3.0, 1.0),
        levels=(1.0, 2.3, 1.0),
        rates=(2.6, 1.0, 0.7),
        steady=0.25,
    ),
    Kind(
        word="banjo",
        glyph="\U0001fa95",
        program=105,
        zones=((50, 56, 9), (60, 63, 9)),
        legato=0.4,
        band="folk",
        popularity=0.8,
        repeats=0.2,
        sounding=0.45,
        seats=(3.0, 1.0, 1.0),
        levels=(2.2, 1.2, 0.5),
        rates=(0.5, 1.0, 2.6),
        steady=0.06,
    ),
    Kind(
        word="electric_bass",
        glyph="\U0001f3b8",
        program=33,
        zones=((42, 57, -12),),
        legato=0.8,
        band="jazz",
        popularity=0.9,
        repeats=0.08,
        sounding=0.55,
        seats=(1.0, 1.0, 3.0),
        levels=(2.2, 1.2, 0.5),
        rates=(2.2, 1.4, 0.7),
        steady=0.2,
    ),
    Kind(
        word="flute",
        glyph="\U0001fa88",
        program=73,
        zones=((79, 96, 0),),
        legato=0.95,
        band="chamber",
        popularity=1.1,
        repeats=0.45,
        sounding=0.7,
        seats=(3.0, 1.0, 1.0),
        levels=(2.6, 1.0, 0.5),
        rates=(2.3, 1.2, 0.7),
        steady=0.06,
    ),
    Kind(
        word="piano",
        glyph="\U0001f3b9",
        program=0,
        zones=((39, 43, 8), (45, 52, 13), (54, 58, 14)),
        num_voices=2,
        legato=0.9,
        band="chamber",
        popularity=1.5,
        repeats=0.1,
        sounding=0.92,
        seats=(1.0, 4.0, 1.0),
        levels=(1.0, 2.2, 1.2),
        rates=(0.9, 2.2, 1.1),
        steady=0.4,
    ),
    Kind(
        word="congas",
        glyph="\U0001fa98",
        keys=((62, 125), (63, 100), (64, 80), (63, 100)),
        band="folk",
        popularity=0.7,
        repeats=0.5,
        sounding=0.35,
        seats=(1.0, 2.0, 2.0),
        levels=(2.3, 1.1, 0.7),
        rates=(0.7, 1.1, 2.3),
        steady=0.12,
    ),
)

KINDS: dict[str, Kind] = {kind.word: kind for kind in _ALL}
"""Every kind by its word."""
