"""Decoded frames and sound against FFmpeg's own program (the one that imageio-ffmpeg carries): codecs, awkward files.

Every frame carries its number as dark and light stripes; the sound is noise, whose delay is found by correlation.
Frames may differ by one, sound by one millisecond.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from talik.extract.media.clip_media import ClipMedia
from talik.extract.media.decode import decode_clip

FPS, SECONDS, RATE = 25, 3.0, 16_000
WIDTH, HEIGHT = 96, 64
SEGMENTS, WINDOW = 9, 0.5


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a file is made; `video` and `audio` are options of ffmpeg, () for no such stream."""

    end: str
    video: tuple[str, ...] = ("-c:v", "libx264", "-bf", "2", "-g", "12", "-pix_fmt", "yuv420p")
    audio: tuple[str, ...] = ("-c:a", "pcm_s16le")
    before: tuple[str, ...] = ()  # between the picture's input and the sound's
    first: tuple[str, ...] = ()  # before the picture's input
    size: tuple[int, int] = (WIDTH, HEIGHT)
    fps: int = FPS
    seconds: float = SECONDS
    sound_seconds: float = SECONDS
    rate: int = 48_000
    channels: int = 2
    begins: float | None = None  # when the picture begins, where the container has no times of presentation


def codec(name: str, *options: str) -> tuple[str, ...]:
    return ("-c:v", name, "-pix_fmt", "yuv420p", *options)


def sound(name: str, *options: str) -> tuple[str, ...]:
    return ("-c:a", name, *options)


def turned(degrees: int) -> tuple[str, ...]:
    """Options of the picture's input that say how it is to be turned, anticlockwise, when it is shown."""
    return ("-noautorotate", "-display_rotation:v:0", str(degrees))


X264 = codec("libx264", "-preset", "ultrafast", "-g", "12")
CODECS = {
    "h264": Kind(end="mkv"),
    "hevc": Kind(end="mkv", video=codec("libx265", "-preset", "ultrafast", "-x265-params", "log-level=none")),
    "vp9": Kind(end="webm", video=codec("libvpx-vp9", "-deadline", "realtime"), audio=sound("libopus")),
    "av1": Kind(end="mkv", video=codec("libaom-av1", "-cpu-used", "8", "-g", "20"), audio=sound("flac")),
    "mpeg4": Kind(end="mp4", video=codec("mpeg4", "-bf", "2", "-q:v", "2"), audio=sound("aac")),
    "mjpeg": Kind(end="mov", video=("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "2")),
    "aac": Kind(end="mp4", video=X264, audio=sound("aac")),
    "opus": Kind(end="mkv", video=X264, audio=sound("libopus")),
    "mp3": Kind(end="mkv", video=X264, audio=sound("libmp3lame")),
    "flac": Kind(end="mkv", video=X264, audio=sound("flac")),
    "pcm": Kind(end="mov", video=X264, audio=sound("pcm_s24le")),
}
AWKWARD = {
    "frames dropped at will": Kind(end="mkv", video=(*X264, "-vf", "select=mod(n\\,7)*mod(n\\,5)", "-fps_mode", "vfr")),
    "frame rate doubles midway": Kind(end="mp4", video=(*X264, "-vf", "setpts=if(lt(N\\,40)\\,N\\,40+(N-40)/2)/25/TB",
                                      "-fps_mode", "vfr", "-video_track_timescale", "90000"), audio=sound("aac")),
    "turned right": Kind(end="mp4", video=X264, first=turned(-90), audio=sound("aac")),
    "upside down": Kind(end="mov", video=X264, first=turned(180)),
    "turned left": Kind(end="mp4", video=X264, first=turned(90), audio=sound("aac")),
    "odd size": Kind(end="mkv", video=("-c:v", "libx264", "-pix_fmt", "yuv444p"), size=(97, 65)),
    "tiny": Kind(end="mkv", video=("-c:v", "ffv1"), size=(21, 9)),
    "ten bits": Kind(end="mkv", video=("-c:v", "libx264", "-pix_fmt", "yuv420p10le")),
    "full colour, lossless": Kind(end="mov", video=("-c:v", "png", "-pix_fmt", "rgb24")),
    "grey": Kind(end="mkv", video=("-c:v", "ffv1", "-pix_fmt", "gray")),
    "packets out of order": Kind(end="avi", video=codec("mpeg4", "-bf", "2", "-q:v", "2"), begins=0.0),
    "transport stream": Kind(end="ts", video=(*X264, "-bf", "2"), audio=sound("mp2")),
    "flash video": Kind(end="flv", video=X264, audio=sound("aac")),
    "fragments": Kind(end="mp4", video=(*X264, "-movflags", "frag_keyframe+empty_moov"), audio=sound("aac")),
    "one keyframe": Kind(end="mp4", video=codec("libx264", "-g", "999", "-bf", "3"), audio=sound("aac")),
    "two frames a second": Kind(end="mkv", video=X264, fps=2),
    "a hundred frames a second": Kind(end="mkv", video=X264, fps=100, seconds=1.2, sound_seconds=1.2),
    "sound ends early": Kind(end="mkv", video=X264, sound_seconds=1.6),
    "sound goes on": Kind(end="mkv", video=X264, sound_seconds=4.5),
    "sound begins late": Kind(end="mkv", video=X264, before=("-itsoffset", "0.4")),
    "picture begins late": Kind(end="mkv", video=(*X264, "-vf", "setpts=PTS+0.7/TB")),
    "mono": Kind(end="mkv", video=X264, channels=1),
    "six channels": Kind(end="mkv", video=X264, channels=6),
    "telephone": Kind(end="mkv", video=X264, rate=8_000, audio=sound("pcm_mulaw")),
    "compact disc": Kind(end="mp4", video=X264, rate=44_100, audio=sound("aac")),
    "studio": Kind(end="mkv", video=X264, rate=96_000, audio=sound("flac")),
    "eleven kilohertz": Kind(end="mkv", video=X264, rate=11_025),
    "no sound": Kind(end="mp4", video=X264, audio=()),
    "no picture": Kind(end="wav", video=()),
    "no picture, packed": Kind(end="mp3", video=(), audio=sound("libmp3lame")),
}  # fmt: skip


def ffmpeg(*options: str, data: bytes | None = None, level: str = "error") -> tuple[bytes, str]:
    """Run ffmpeg; return what it wrote to its standard output, and what it said."""
    command = (imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-v", level, "-y", *options)
    done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-800:]
    return done.stdout, done.stderr.decode()


def pictures(kind: Kind) -> np.ndarray:
    """Frames whose seven stripes spell their number, (N, H, W, 3) uint8."""
    width, height = kind.size
    count = round(kind.seconds * kind.fps)
    stripe = np.minimum(np.arange(width) * 7 // width, 6)
    bits = (np.arange(count)[:, None] >> stripe) & 1  # (N, W)
    rows = np.where(bits, 220, 35).astype(np.uint8)
    frames = np.repeat(rows[:, None], height, axis=1)
    frames[:, : height // 4] = 128  # which way is up
    return np.repeat(frames[..., None], 3, axis=3)


def noise(kind: Kind) -> np.ndarray:
    """Noise that any rate keeps (below 3 kHz), (N, C) float32; the same in every channel."""
    count = round(kind.sound_seconds * kind.rate)
    coarse = np.random.default_rng(7).uniform(-0.6, 0.6, round(kind.sound_seconds * 6_000) + 2)
    mono = np.interp(np.arange(count) / kind.rate * 6_000, np.arange(len(coarse)), coarse)
    return np.repeat(mono.astype(np.float32)[:, None], kind.channels, axis=1)


def make(path: Path, kind: Kind) -> Path:
    wave = path.with_name("noise.f32")
    wave.write_bytes(noise(kind).tobytes())
    width, height = kind.size
    options: list[str] = []
    if kind.video:
        options += [*kind.first, "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        options += ["-r", str(kind.fps), "-i", "-"]
    if kind.audio:
        options += [*kind.before, "-f", "f32le", "-ar", str(kind.rate), "-ac", str(kind.channels), "-i", str(wave)]
    ffmpeg(*options, *kind.video, *kind.audio, str(path), data=pictures(kind).tobytes() if kind.video else None)
    return path


def times_of(path: Path, stream: str) -> np.ndarray:
    """When FFmpeg says that each frame of a stream comes, on the file's own clock, in seconds."""
    show = ("-vf", "showinfo", "-fps_mode", "passthrough") if stream == "v:0" else ("-af", "ashowinfo")
    _, told = ffmpeg("-copyts", "-i", str(path), "-map", f"0:{stream}", *show, "-f", "null", "-", level="info")
    return np.array([float(t) for t in re.findall(r"showinfo.* n: *\d+ .*?pts_time:(\S+)", told)])


def frames_of(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    raw, _ = ffmpeg("-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough",
                    "-f", "rawvideo", "-pix_fmt", "rgb24", "-")  # fmt: skip
    return np.frombuffer(raw, np.uint8).reshape(-1, *shape)


def sound_of(path: Path, channels: int) -> np.ndarray:
    """All of the sound as FFmpeg decodes it, the channels averaged, at RATE, as float32."""
    averaged = "pan=mono|c0=" + "+".join(f"{1 / channels:.6f}*c{i}" for i in range(channels))
    raw, _ = ffmpeg("-i", str(path), "-map", "0:a:0", "-af", f"{averaged},aresample={RATE}", "-f", "f32le", "-")
    return np.frombuffer(raw, np.float32)


def delay_of(window: np.ndarray, reference: np.ndarray, start: float) -> float:
    """How much later `window` is than the reference from `start` on, in seconds; NaN where either is too quiet."""
    reach = RATE // 20
    first = round(start * RATE)
    padded = np.pad(reference, (RATE * 4, RATE * 8))
    around = padded[first + 4 * RATE - reach : first + 4 * RATE + len(window) + reach]
    if np.abs(window).mean() < 0.02 or np.abs(around[reach:-reach]).mean() < 0.02:
        return float("nan")
    found = np.correlate(around, window, mode="valid")  # (2 * reach + 1,)
    return (reach - int(found.argmax())) / RATE


def decoded(path: Path, kind: Kind) -> ClipMedia:
    return decode_clip(
        path, num_segments=SEGMENTS, window_seconds=WINDOW, sample_rate_hz=RATE,
        missing_sound="silence", missing_picture="black",
    )  # fmt: skip


@pytest.mark.parametrize("name", [*CODECS, *AWKWARD])
def test_frames_and_sound_are_those_of_ffmpeg(tmp_path: Path, name: str) -> None:
    kind = {**CODECS, **AWKWARD}[name]
    path = make(tmp_path / f"clip.{kind.end}", kind)
    media = decoded(path, kind)
    begin, end = 0.0, 0.0
    if kind.audio:
        heard_from = float(times_of(path, "a:0")[0])
        end = heard_from + len(reference := sound_of(path, kind.channels)) / RATE
    if kind.video:
        assert media.frames is not None
        sides = kind.size if name in ("turned left", "turned right") else kind.size[::-1]
        assert media.frames.shape[1:3] == sides
        shown = times_of(path, "v:0")
        begin = float(shown[0])
        theirs = frames_of(path, media.frames.shape[1:]).astype(np.int16)
        assert abs(len(theirs) - len(shown)) <= 1
        for instant, frame in zip(media.instants_seconds, media.frames, strict=True):
            expected = int(np.searchsorted(shown, begin + instant + 1e-6, side="right")) - 1
            found = int(np.abs(theirs - frame).mean((1, 2, 3)).argmin())
            assert np.abs(theirs[found] - frame).mean() < 6
            assert abs(found - expected) <= 1, (instant, found, expected)
        seconds = (end if end > shown[-1] + np.diff(shown)[-1] + 0.25 else shown[-1]) - begin
        np.testing.assert_allclose(media.duration_seconds, seconds, atol=1.2 * np.diff(shown).max() + 0.05)
    elif kind.audio:
        begin = heard_from
    assert media.waveforms is not None
    if not kind.audio:
        assert not media.waveforms.any()
        return
    begin = begin if kind.begins is None else kind.begins
    starts = media.instants_seconds - WINDOW / 2 + begin - heard_from
    delays = np.array([delay_of(w, reference, s) for w, s in zip(media.waveforms, starts, strict=True)])
    heard = ~np.isnan(delays)
    assert heard.sum() >= (4 if kind.sound_seconds < 2 else 7)
    assert np.abs(delays[heard]).max() <= 1e-3, delays
