"""Which sample a packet of sound begins with, where a container's timestamps are coarser than samples (Matroska: ms).

Decoded from the beginning, samples are counted. After a seek there is only a rounded timestamp; so that a stretch of a
film has the same samples as the film decoded from its beginning, the packets before it are counted instead.

N: packets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame

from .container import MediaFile, demux, reopened


def counted_positions(file: MediaFile, rate_hz: int, *, jitter: int) -> npt.NDArray[np.int64] | None:
    """Return the number of each packet's first sample, (N,), as counted from the first that is decoded.

    Args:
        file: open, with sound.
        rate_hz: of the sound.
        jitter: samples by which a timestamp may differ from the count; one that differs more begins a new count.

    Returns:
        None where timestamps are as fine as samples, or packets do not all hold as many.
    """
    assert file.sound is not None
    track = file.sound
    unit = track.unit_seconds * rate_hz  # samples in a unit of the timestamps
    if unit <= 1.0 or not track.exact:
        return None
    first = _first_frames(file)
    if first is None:
        return None
    place, position, samples, length = first
    stamped = track.times * unit
    steps = np.abs(np.diff(stamped[place + 1 :]) - length)
    if np.any((steps > unit + 1.0) & (steps <= jitter)):
        return None
    found = np.rint(stamped).astype(np.int64)
    begin, counted = place + 1, position + samples
    while begin < len(found):
        expected = counted + np.arange(len(found) - begin, dtype=np.int64) * length
        off = np.flatnonzero(np.abs(found[begin:] - expected) > jitter)
        stop = begin + int(off[0]) if len(off) else len(found)
        found[begin:stop] = expected[: stop - begin]
        if stop < len(found):
            counted = int(found[stop])  # its timestamp, where the count begins anew
        begin = stop
    return found


def _first_frames(file: MediaFile) -> tuple[int, int, int, int] | None:
    """Return of the first decoded frame its packet's place, its first sample and its length; and the next one's."""
    assert file.sound is not None
    with reopened(file) as fresh:
        assert fresh.audio is not None
        head: tuple[int, int, int] | None = None
        for packet in demux(fresh.path, fresh.container, [fresh.audio]):
            for frame in packet.decode():
                assert isinstance(frame, AudioFrame)
                if head is not None:
                    return *head, frame.samples
                if packet.pts is None or frame.pts is None or frame.time_base is None:
                    return None
                place = int(np.searchsorted(file.sound.times, packet.pts))
                head = place, round(float(frame.pts * frame.time_base) * frame.sample_rate), frame.samples
    return None
