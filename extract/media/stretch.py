"""A stretch of a film, from one second of it to another, that counts as a clip of its own.

What lies outside of it is neither seen nor heard: a stretch is what a file would be that was cut out of the film there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache.format.digests import digest_json
from ...errors import MediaError, SettingsError
from .extent import Extent
from .tar_member import FilePath, TarMember

if TYPE_CHECKING:
    from .frame_folder import FrameFolder

#: So much later than its film a stretch may end, in seconds: annotations have whole ones, rounded up.
_LATE_SECONDS = 1.0

_DIGITS = 6  # of a second: what differs by less is the same instant


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A part of a film, [start, end) in seconds from its first frame (its first sample where it has no picture).

    Attributes:
        media: the film: a file, or a folder of frames.
        start_seconds: where it begins, 0 or more; to the microsecond.
        end_seconds: where it ends; None for the film's end.
        where: the line of the manifest that names it, for messages; "" where there is none.
    """

    media: FilePath | FrameFolder
    start_seconds: float = 0.0
    end_seconds: float | None = None
    where: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if reason := bounds_error(self.start_seconds, self.end_seconds):
            raise SettingsError(f"{self.where or self.film}: {reason}")

    @property
    def film(self) -> FilePath:
        """The film's file, or the folder of its frames."""
        return self.media if isinstance(self.media, Path | TarMember) else self.media.path

    @property
    def fragment(self) -> str:
        """The stretch as the end of a name or of a link (W3C Media Fragments), "#t=60,70.5"."""
        return fragment(self.start_seconds, self.end_seconds)

    def __str__(self) -> str:
        return f"{self.film}{self.fragment}"

    def key(self, content: str) -> str:
        """Return the digest that it is known by, of its film's."""
        ends = (self.start_seconds, self.end_seconds)
        start, end = (None if seconds is None else round(seconds * 10**_DIGITS) for seconds in ends)
        return digest_json({"content": content, "start_us": start, "end_us": end})

    def within(self, film: Extent) -> Extent:
        """Return when it begins and ends, on the clock of the film whose extent is given.

        Raises:
            MediaError: it lies beyond the film's end.
        """
        place = f"{self.where}: " if self.where else ""
        lasts = f"{self.film} lasts {film.seconds:.2f} s"
        if self.start_seconds >= film.seconds:
            raise MediaError(f"{place}start is {self.start_seconds:g}, but {lasts}; expected less")
        if self.end_seconds is not None and self.end_seconds - film.seconds > _LATE_SECONDS:
            raise MediaError(f"{place}end is {self.end_seconds:g}, but {lasts}; expected no more, or leave end out")
        begin = film.begin + self.start_seconds
        end = film.end if self.end_seconds is None else film.begin + self.end_seconds
        picture_end = film.end if film.picture_end is None else film.picture_end
        return Extent(begin=begin, end=end, picture_end=max(picture_end, begin) if picture_end < end else None)


def stretch_of(
    media: FilePath | FrameFolder, start_seconds: float | None, end_seconds: float | None, where: str = ""
) -> FilePath | FrameFolder | Stretch:
    """Return a part of a film; the film itself where neither end is given, or it begins at 0 and goes on to the end.

    Raises:
        SettingsError: the end is not after the beginning, or either is no time in a film.

    Example:
        >>> str(stretch_of(Path("film.mp4"), 60, 70.5))
        'film.mp4#t=60,70.5'
        >>> stretch_of(Path("film.mp4"), 0, None) == Path("film.mp4")
        True
    """
    if not start_seconds and end_seconds is None:
        return media
    return Stretch(media=media, start_seconds=start_seconds or 0.0, end_seconds=end_seconds, where=where)


def bounds_error(start_seconds: float, end_seconds: float | None) -> str:
    """Return what is wrong with a stretch's beginning and end; "" if nothing is.

    >>> bounds_error(5.0, 5.0)
    'start is 5, end is 5; expected an end after the start'
    """
    for name, seconds in (("start", start_seconds), ("end", end_seconds)):
        if seconds is not None and not 0.0 <= seconds < float("inf"):
            return f"{name} is {seconds:g}, expected seconds from the film's beginning, 0 or more"
    if end_seconds is not None and round(end_seconds - start_seconds, _DIGITS) <= 0:
        return f"start is {start_seconds:g}, end is {end_seconds:g}; expected an end after the start"
    return ""


def fragment(start_seconds: float | None, end_seconds: float | None) -> str:
    """Return a stretch as the end of a name; "" of a whole film.

    >>> fragment(60.0, 70.25), fragment(3600.0, None), fragment(None, 7.0), fragment(0.0, None)
    ('#t=60,70.25', '#t=3600', '#t=0,7', '')
    """
    if not start_seconds and end_seconds is None:
        return ""
    return f"#t={_number(start_seconds or 0.0)}" + (f",{_number(end_seconds)}" if end_seconds is not None else "")


def _number(seconds: float) -> str:
    return f"{seconds:.{_DIGITS}f}".rstrip("0").rstrip(".")
