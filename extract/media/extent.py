"""When a film begins and ends, of its picture's and its sound's times."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import MediaError
from .container import MediaFile, open_media

if TYPE_CHECKING:
    from .frame_folder import FrameFolder

#: Ten days: what damaged timestamps claim is not looked for.
_MAX_SECONDS = 864_000.0

#: Sound that ends so much later than the picture, or less, is how encoders fill their last packets.
TAIL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A film from its first frame (its first sample of sound where it has no picture) to the end of what lasts longer.

    Attributes:
        begin, end: seconds on the file's own clock.
        picture_end: when the picture ends; None where it ends with the film, or is not there.
        sound_goes_on: whether the end is the sound's; the last frame stays on display until then.
        sound_before: whether there is sound before `begin`.
    """

    begin: float
    end: float
    picture_end: float | None = None
    sound_goes_on: bool = False
    sound_before: bool = False

    @property
    def picture_seconds(self) -> float:
        """From the beginning to the end of the picture."""
        return self.seconds if self.picture_end is None else self.picture_end - self.begin

    @property
    def seconds(self) -> float:
        """From the beginning to the end."""
        return self.end - self.begin


def film_extent(file: MediaFile, times: npt.NDArray[np.float64] | None) -> Extent:
    """Return when a film begins and ends.

    Args:
        file: open.
        times: when each of its frames comes on; None without a picture.

    Raises:
        MediaError: it lasts no time, or longer than any film.
    """
    extent = _extent(file, times)
    if not 0.0 < extent.seconds < _MAX_SECONDS:
        raise file.error(f"damaged: by its timestamps it lasts {extent.seconds:.3g} s")
    return extent


def _extent(file: MediaFile, times: npt.NDArray[np.float64] | None) -> Extent:
    sound = file.sound
    if file.picture is None or times is None:
        assert sound is not None
        return Extent(begin=sound_begin(file), end=sound.end_seconds)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    end = file.picture.end_seconds if file.picture.timed else float(times[-1]) + step
    begin, end = float(times[0]), max(end, float(times[-1]) + file.picture.unit_seconds)
    if sound is None:
        return Extent(begin=begin, end=end)
    goes_on = sound.end_seconds - end > TAIL_SECONDS
    return Extent(
        begin=begin,
        end=sound.end_seconds if goes_on else end,
        picture_end=end if goes_on else None,
        sound_goes_on=goes_on,
        sound_before=begin - sound_begin(file) > TAIL_SECONDS,
    )


def folder_extent(folder: FrameFolder, num_frames: int) -> Extent:
    """Return the extent of a clip of extracted frames: of its frames, or of its sound where that goes on.

    A sound file that cannot be read has no say; where sound is wanted, reading it says so.
    """
    end = num_frames / folder.fps
    if folder.sound is not None:
        with contextlib.suppress(MediaError), open_media(folder.sound) as file:
            heard = file.sound.end_seconds - sound_begin(file) if file.sound is not None else 0.0
            if heard - end > max(TAIL_SECONDS, 1 / folder.fps):
                return Extent(begin=0.0, end=heard, sound_goes_on=True)
    return Extent(begin=0.0, end=end)


def sound_begin(file: MediaFile) -> float:
    """Return when the first sample of sound is heard, on the file's own clock."""
    assert file.sound is not None
    assert file.audio is not None
    begin = (file.audio.start_time or 0) * file.sound.unit_seconds  # later than packets that prime the decoder
    return max(begin, file.sound.start_seconds)
