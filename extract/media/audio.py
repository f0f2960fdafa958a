"""Windows of sound around given instants: mono, at one rate, zero where the file has no sound.

T: windows, S: samples of a window at the wanted rate, C: channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame

from .clip_media import Channels
from .container import MediaFile, demux, reopened
from .sound_positions import counted_positions

#: Native samples kept on both sides of a window, in seconds, so that the resampler's filter has run in.
_PAD_SECONDS = 0.02

#: Decoded before a window after a seek and thrown away: what a codec needs until it is itself again (Opus: 80 ms).
_PREROLL_SECONDS = 0.25

#: A window further ahead than this is sought, a nearer one decoded towards, in seconds.
_SEEK_BEYOND_SECONDS = 1.0

#: Timestamps that differ from the samples counted so far by less than this are rounding (Matroska has whole ms).
_JITTER_SECONDS = 0.01

#: An instant this much later than a sample counts as at it, in samples: times are sums of binary fractions.
_SAME_SAMPLE = 1e-3

#: More than any recorder has: what damaged headers claim is not allocated.
_MAX_RATE_HZ = 768_000

#: Codecs that cannot be entered in the middle, since a frame's bits may lie in those before it.
_NOT_SEEKABLE = frozenset({"mp3", "mp3float", "wmav1", "wmav2", "wmapro"})


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Native samples of all windows: `samples` (T, n) float32; window j begins with native sample `starts[j]`."""

    samples: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]
    rate_hz: int
    channels: Channels

    def put(self, position: int, frame: AudioFrame) -> None:
        """Copy a decoded frame, whose first sample is number `position`, into the windows that it touches."""
        length = self.samples.shape[1]
        first = int(np.searchsorted(self.starts, position - length, side="right"))
        last = int(np.searchsorted(self.starts, position + frame.samples, side="left"))
        if first >= last:
            return
        mono = _mono(frame, self.channels)  # (n,)
        for j in range(first, last):
            begin = position - int(self.starts[j])
            into = slice(max(begin, 0), min(begin + len(mono), length))
            self.samples[j, into] = mono[into.start - begin : into.stop - begin]

    def silence_outside(self, begin: float, end: float) -> None:
        """Replace the samples before and after a part of the file, in seconds on its clock, by zeros."""
        first, last = (math.ceil(seconds * self.rate_hz - _SAME_SAMPLE) for seconds in (begin, end))
        for window, start in zip(self.samples, self.starts.tolist(), strict=True):
            window[: max(first - start, 0)] = 0.0
            window[max(last - start, 0) :] = 0.0


def read_sound(
    file: MediaFile,
    instants: npt.NDArray[np.float64],
    *,
    window_seconds: float,
    sample_rate_hz: int,
    channels: Channels = "mean",
    between: tuple[float, float] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the sound around some instants.

    Args:
        file: open, with sound.
        instants: the windows' centres, (T,) seconds on the file's own clock, sorted.
        window_seconds: length of a window.
        sample_rate_hz: of the result.
        channels: the mean of the channels, or the first alone.
        between: seconds on the file's own clock before and after which all is silent, so that the samples between are
            those that decoding from the file's beginning gives; None to hear all there is.

    Returns:
        (T, S) float32 in [-1, 1], S = round(window_seconds * sample_rate_hz). Sample s of
        window t lies within half a sample of instants[t] - window_seconds / 2 + s / sample_rate_hz.

    Raises:
        MediaError: the stream is damaged, or changes its sample rate.
    """
    assert file.audio is not None
    native_hz = file.audio.codec_context.sample_rate
    if not 0 < native_hz <= _MAX_RATE_HZ:
        raise file.error(f"damaged: its sound has a sample rate of {native_hz} Hz")
    num_samples = round(window_seconds * sample_rate_hz)
    windows = _empty_windows(instants - window_seconds / 2, window_seconds, native_hz, sample_rate_hz, channels)
    _fill(file, windows, None if between is None else counted_positions(file, native_hz, jitter=_jitter(native_hz)))
    if between is not None:
        windows.silence_outside(*between)
    resampled = _resample(windows, sample_rate_hz)  # (T, m)
    begins = instants - window_seconds / 2 - windows.starts / native_hz
    offsets = np.rint(begins * sample_rate_hz).astype(np.int64)
    cut = [resampled[j, o : o + num_samples] for j, o in enumerate(offsets)]
    return np.clip(np.stack(cut), -1.0, 1.0)


def _empty_windows(
    begins: npt.NDArray[np.float64], window_seconds: float, native_hz: int, sample_rate_hz: int, channels: Channels
) -> _Windows:
    """Return windows of silence, padded, of a length that is a whole number of samples at both rates."""
    pad = math.ceil(_PAD_SECONDS * native_hz)
    step = native_hz // math.gcd(native_hz, sample_rate_hz)
    slack = math.ceil(native_hz / sample_rate_hz) + 2
    length = math.ceil((math.ceil(window_seconds * native_hz) + 2 * pad + slack) / step) * step
    starts = np.floor(begins * native_hz).astype(np.int64) - pad
    return _Windows(
        samples=np.zeros((len(begins), length), np.float32), starts=starts, rate_hz=native_hz, channels=channels
    )


def _jitter(rate_hz: int) -> int:
    return max(round(_JITTER_SECONDS * rate_hz), 1)


def _fill(file: MediaFile, windows: _Windows, counted: npt.NDArray[np.int64] | None = None) -> None:
    """Decode the sound that the windows cover; `counted` is the first sample of each packet, where it is known."""
    assert file.audio is not None
    length = windows.samples.shape[1]
    if not file.seekable or file.audio.codec_context.name in _NOT_SEEKABLE:
        with reopened(file) as fresh:
            for position, frame in _positions(fresh, windows.rate_hz):
                if position >= windows.starts[-1] + length:
                    return
                windows.put(position, frame)
        return
    far = round(_SEEK_BEYOND_SECONDS * windows.rate_hz)
    j = 0
    while j < len(windows.starts):
        sought = j
        _seek(file, int(windows.starts[j]) / windows.rate_hz - _PREROLL_SECONDS)
        for position, frame in _positions(file, windows.rate_hz, counted):
            windows.put(position, frame)
            reached = position + frame.samples
            while j < len(windows.starts) and reached >= windows.starts[j] + length:
                j += 1
            if j == len(windows.starts):
                return
            if j > sought and windows.starts[j] - reached > far:
                break
        else:
            return


def _seek(file: MediaFile, seconds: float) -> None:
    """Go to a packet of sound at or before `seconds` (the first where there is none)."""
    assert file.sound is not None
    assert file.audio is not None
    track = file.sound
    index = int(np.searchsorted(track.keys, seconds / track.unit_seconds, side="right")) - 1
    target = int(track.seeks[max(index, 0)]) if len(track.seeks) else round(seconds / track.unit_seconds)
    if index <= 0:  # the packets before the first that is heard prime the decoder
        target = min(target, int(file.audio.start_time or 0)) - math.ceil(1.0 / track.unit_seconds)
    file.container.seek(target, stream=file.audio, backward=True, any_frame=False)


def _positions(
    file: MediaFile, rate_hz: int, counted: npt.NDArray[np.int64] | None = None
) -> Iterator[tuple[int, AudioFrame]]:
    """Yield decoded frames, each with the number of its first sample, counted from time zero of the file's clock."""
    assert file.audio is not None
    expected: int | None = None
    jitter = _jitter(rate_hz)
    for packet in demux(file.path, file.container, [file.audio]):
        for frame in packet.decode():
            assert isinstance(frame, AudioFrame)
            if frame.sample_rate != rate_hz:
                raise file.error(f"its sound changes from {rate_hz} to {frame.sample_rate} Hz on its way")
            stamped = _sample_number(frame, rate_hz)
            if counted is not None and file.sound is not None and frame.pts is not None:
                place = int(np.searchsorted(file.sound.times, frame.pts))
                known = place < len(counted) and file.sound.times[place] == frame.pts
                stamped = int(counted[place]) if known else stamped
            if expected is None or (stamped is not None and abs(stamped - expected) > jitter):
                expected = stamped or 0
            yield expected, frame
            expected += frame.samples


def _sample_number(frame: AudioFrame, rate_hz: int) -> int | None:
    if frame.pts is None or frame.time_base is None:
        return None
    return round(Fraction(frame.pts) * frame.time_base * rate_hz)


def _mono(frame: AudioFrame, channels: Channels) -> npt.NDArray[np.float32]:
    """Return the mean of a frame's channels, or the first, (n,) float32 with full scale at 1."""
    samples = frame.to_ndarray()  # (C, n) planar, (1, n * C) packed
    scaled: npt.NDArray[np.float32]
    if samples.dtype == np.uint8:
        scaled = (samples.astype(np.float32) - 128.0) / 128.0
    elif np.issubdtype(samples.dtype, np.integer):
        scaled = samples.astype(np.float32) / float(2 ** (8 * samples.dtype.itemsize - 1))
    else:
        scaled = samples.astype(np.float32, copy=False)
    if frame.format.is_packed:
        scaled = scaled.reshape(frame.samples, -1).T
    one = len(scaled) == 1 or channels == "first"
    mono: npt.NDArray[np.float32] = scaled[0] if one else scaled.mean(axis=0, dtype=np.float32)
    return mono


def _resample(windows: _Windows, sample_rate_hz: int) -> npt.NDArray[np.float32]:
    """Return the windows' samples at another rate, (T, n * sample_rate_hz / rate_hz) float32.

    All go through one resampler, one behind the other; what leaks across lies in their padding.
    """
    if windows.rate_hz == sample_rate_hz:
        return windows.samples
    num_windows, length = windows.samples.shape
    frame = AudioFrame.from_ndarray(windows.samples.reshape(1, -1), format="fltp", layout="mono")
    frame.sample_rate = windows.rate_hz
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate_hz)
    pieces = [f.to_ndarray()[0] for f in (*resampler.resample(frame), *resampler.resample(None))]
    out_length = length * sample_rate_hz // windows.rate_hz
    out = np.zeros(num_windows * out_length, np.float32)
    joined = np.concatenate(pieces)[: len(out)]
    out[: len(joined)] = joined
    return out.reshape(num_windows, out_length)
