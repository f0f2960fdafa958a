"""The film of a file: the picture and the sound that a player would take of all the streams that a container holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ...errors import MediaError
from .tar_member import FilePath

Stream = VideoStream | AudioStream

#: Pictures that stand beside the film: covers, previews, layers that only add to another stream.
_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent

#: Sound for some listeners, which players leave to be asked for.
_FOR_SOME = Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired

#: Codecs of still pictures: with few frames beside a film they are its previews.
_STILL_CODECS = frozenset({"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000"})
_STILL_SHARE = 1 / 20


def candidates(path: FilePath, container: InputContainer) -> list[Stream]:
    """Return the streams that may be the film's picture or its sound: no cover, and with a decoder.

    Raises:
        MediaError: picture or sound, but no decoder for any of it.
    """
    found: list[Stream] = []
    for streams in (
        [s for s in container.streams.video if not s.disposition & _NO_FILM],
        list(container.streams.audio),
    ):
        known = [s for s in streams if s.codec_context is not None]
        if streams and not known:
            raise MediaError(f"{path}: no decoder for its {streams[0].type}")
        found += known
    return found


def choose_film(
    streams: Sequence[Stream], num_packets: Mapping[int, int]
) -> tuple[VideoStream | None, AudioStream | None]:
    """Return the picture and the sound that a player shows unless it is told otherwise.

    The one that the container marks as the default; of several, or of none, the first. A still before a film does not
    count, whatever its mark, nor does a stream without packets while there is another.

    Args:
        streams: of `candidates`.
        num_packets: of each stream, by its index.
    """
    videos = [s for s in streams if isinstance(s, VideoStream)]
    audios = [s for s in streams if isinstance(s, AudioStream)]
    most = max((num_packets[s.index] for s in videos), default=0)
    picture = min(videos, key=lambda s: (_is_still(s, num_packets[s.index], most), *_rank(s)), default=None)
    sound = min(audios, key=lambda s: (not num_packets[s.index], *_rank(s)), default=None)
    return picture, sound


def _is_still(stream: VideoStream, count: int, most: int) -> bool:
    few = count <= most * _STILL_SHARE if stream.codec_context.name in _STILL_CODECS else False
    return most > 1 and (count <= 1 or few)


def _rank(stream: Stream) -> tuple[bool, bool, int]:
    marks = stream.disposition
    return not marks & Disposition.default, bool(marks & _FOR_SOME), stream.index
