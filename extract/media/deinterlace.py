"""Interlaced frames made whole: each from its own two fields and those of the frames before and after it.

A frame of interlaced video holds two pictures, half a frame's time apart, in its odd and its even rows; what moves has
combs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from .colours import filtered

Deinterlace = Literal["off", "yadif", "bwdif"]
"""FFmpeg's filter, or none: frames as they are coded, both fields woven into each other."""

_ARGUMENTS = "mode=send_frame:parity=auto:deint=interlaced"

NOTE = (
    "frames are interlaced and are shown with both fields in each, so that what moves has combs; "
    '[data] deinterlace = "yadif" makes whole frames'
)


def with_neighbours(ordinals: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """Return some frames of a film of `count`, with the ones before and after each.

    >>> with_neighbours(np.array([0, 7]), 8).tolist()
    [0, 1, 6, 7]
    """
    around = np.concatenate([ordinals - 1, ordinals, ordinals + 1])
    return np.unique(around[(around >= 0) & (around < count)])


def deinterlaced(
    frames: Iterable[tuple[int, VideoFrame]], wanted: Sequence[int], how: Deinterlace
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the wanted frames whole, as the filter makes them of the film; those that are not interlaced as they are.

    Args:
        frames: those of `with_neighbours`, each with its number, in order.
        wanted: numbers, sorted.
        how: the filter.
    """
    chosen = set(wanted)
    held: dict[int, VideoFrame] = {}
    for number, frame in frames:
        held = {n: f for n, f in held.items() if n >= number - 2}
        held[number] = frame
        if number - 1 in chosen and number - 1 in held:
            yield number - 1, _whole(held, number - 1, how)
    last = max(held, default=-1)
    if last in chosen:
        yield last, _whole(held, last, how)


def _whole(held: dict[int, VideoFrame], number: int, how: Deinterlace) -> VideoFrame:
    frame = held[number]
    around = [f for n in (number - 1, number, number + 1) if (f := held.get(n)) is not None and _fits(f, frame)]
    if not frame.interlaced_frame or how == "off":
        return frame
    return filtered(around, (how, _ARGUMENTS))[around.index(frame)]


def _fits(one: VideoFrame, other: VideoFrame) -> bool:
    return (one.width, one.height, one.format.name) == (other.width, other.height, other.format.name)
