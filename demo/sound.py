"""Render a scene's sound: each instrument alone, set to its level, panned and summed."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from ..errors import BackendError
from .instruments import KINDS
from .scene import Player, Scene

SAMPLE_RATE_HZ = 48_000
_FADE_SECONDS = 0.02
_BLOCK_SECONDS = 0.05
_GATE_DB = 20.0
_VELOCITY = 96
_SCALES = {False: (0, 2, 4, 7, 9), True: (0, 3, 5, 7, 10)}  # major and minor pentatonic


def sound_of(scene: Scene) -> np.ndarray:
    """Return the clip's sound, (S, 2) float32 in [-1, 1] at `SAMPLE_RATE_HZ`, left channel first.

    Raises:
        BackendError: symusic or pretty_midi, of the demo extra, is not installed.
    """
    mix = np.zeros((2, _num_samples(scene)), dtype=np.float64)
    for number, player in enumerate(scene.players):
        if player.sounds:
            angle = player.pan * np.pi / 2.0
            stem = stem_of(scene, number)
            for channel, gain in zip(mix, np.sqrt(2.0) * np.array([np.cos(angle), np.sin(angle)]), strict=True):
                channel += stem * gain
    return np.ascontiguousarray(_limit(mix).T, dtype=np.float32)


def stem_of(scene: Scene, number: int) -> np.ndarray:
    """Return one instrument alone, (S,) float64, at its level and before panning; zero outside its intervals."""
    player = scene.players[number]
    rng = Random(f"talik demo notes {scene.seed} {scene.index} {number}")
    stem = _render(player, _choose_keys(rng, scene, player), _num_samples(scene))
    stem *= _gate(player, len(stem))
    loudness = gated_level_db(stem)
    return stem * 10.0 ** ((player.level_db - loudness) / 20.0)


def gated_level_db(samples: np.ndarray) -> float:
    """Return the RMS level, in dB re full scale, of the blocks within 20 dB of the loudest one; samples (S,).

    Gating keeps an instrument that plays few short notes as loud as one that never pauses, as ears do.
    """
    block = round(_BLOCK_SECONDS * SAMPLE_RATE_HZ)
    power = np.square(samples[: len(samples) // block * block]).reshape(-1, block).mean(axis=1)
    loud = power[power > power.max() * 10.0 ** (-_GATE_DB / 10.0)]
    return float(10.0 * np.log10(loud.mean())) if len(loud) else -np.inf


def _choose_keys(rng: Random, scene: Scene, player: Player) -> list[list[tuple[int, int]]]:
    """Return the (MIDI key, velocity) pairs of every note: a walk on the clip's scale in the kind's register."""
    kind = KINDS[player.kind]
    if kind.keys:
        first = rng.randrange(len(kind.keys))
        return [[kind.keys[(first + i) % len(kind.keys)]] for i in range(len(player.onsets))]
    key_of_pitch = {key + shift: key for low, high, shift in kind.zones for key in range(low, high + 1)}
    ladder = sorted(p for p in key_of_pitch if (p - scene.key) % 12 in _SCALES[scene.minor])
    step = rng.randrange(len(ladder))
    notes = []
    for _ in player.onsets:
        step = min(max(step + rng.choice((-2, -1, -1, 1, 1, 2)), 0), len(ladder) - 1)
        chord = {ladder[min(step + 2 * voice, len(ladder) - 1)] for voice in range(kind.num_voices)}
        notes.append([(key_of_pitch[pitch], _VELOCITY) for pitch in sorted(chord)])
    return notes


def _num_samples(scene: Scene) -> int:
    return round(scene.seconds * SAMPLE_RATE_HZ)


def _render(player: Player, notes: list[list[tuple[int, int]]], num_samples: int) -> np.ndarray:
    kind = KINDS[player.kind]
    symusic, synthesizer = _synthesizer()
    score = symusic.Score(480, ttype="second")
    track = symusic.Track(player.kind, program=kind.program, is_drum=bool(kind.keys), ttype="second")
    for i, (onset, chord) in enumerate(zip(player.onsets, notes, strict=True)):
        until = next(end for start, end in player.intervals if start <= onset < end)
        following = player.onsets[i + 1] if i + 1 < len(player.onsets) else until
        seconds = max(0.06, kind.legato * (min(following, until) - onset))
        for key, velocity in chord:
            track.notes.append(symusic.Note(onset, seconds, key, velocity, ttype="second"))
    score.tracks.append(track)
    left, right = np.asarray(synthesizer.render(score, True), dtype=np.float64)
    rendered = (left + right) / 2.0
    stem = np.zeros(num_samples)
    length = min(len(rendered), num_samples)
    stem[:length] = rendered[:length]
    return stem


def _gate(player: Player, num_samples: int) -> np.ndarray:
    """Return 1 inside the intervals and 0 outside, with short fades before each end, (S,) float64."""
    gate = np.zeros(num_samples)
    fade = round(_FADE_SECONDS * SAMPLE_RATE_HZ)
    for start, end in player.intervals:
        first, last = round(start * SAMPLE_RATE_HZ), round(end * SAMPLE_RATE_HZ)
        gate[first:last] = 1.0
        gate[last - fade : last] = np.linspace(1.0, 0.0, fade)
    return gate


def _limit(mix: np.ndarray) -> np.ndarray:
    """Bend what lies above 0.8 of full scale so that nothing reaches 1; the rest is untouched."""
    over = np.abs(mix) > 0.8
    loud = mix[over]
    mix[over] = np.sign(loud) * (0.8 + 0.19 * np.tanh((np.abs(loud) - 0.8) / 0.19))
    return mix


@lru_cache(maxsize=1)
def _synthesizer() -> tuple[Any, Any]:
    """Return symusic and its synthesizer over pretty_midi's General MIDI soundfont, once a process."""
    spec = importlib.util.find_spec("pretty_midi")
    try:
        import symusic
    except ImportError as error:
        raise BackendError(f"the demo set needs symusic ({error}); install talik[demo]") from None
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("the demo set needs pretty_midi's soundfont, which is not installed; install talik[demo]")
    soundfont = Path(spec.submodule_search_locations[0]) / "TimGM6mb.sf2"
    if not soundfont.is_file():
        raise BackendError(f"pretty_midi has no soundfont {soundfont.name}; install pretty_midi 0.2.11 or later")
    return symusic, symusic.Synthesizer(str(soundfont), SAMPLE_RATE_HZ, 0)
