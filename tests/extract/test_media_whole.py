"""Stated sizes and durations refuse nothing that decodes; what is cut off is refused with what was found."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from talik.errors import MediaError
from talik.extract.media.clip_media import ClipMedia
from talik.extract.media.decode import decode_clip

Ffmpeg = Callable[..., bytes]
SECONDS, RATE = 3.0, 8_000
SINE = ("-f", "lavfi", "-i", f"aevalsrc='0.5*sin(2*PI*500*t)':s={RATE}:d={SECONDS:g}")
PICTURE = ("-f", "lavfi", "-i", f"testsrc2=s=64x48:r=10:d={SECONDS:g}", "-pix_fmt", "yuv420p")


def decode(path: Path, **changed: object) -> ClipMedia:
    wanted: dict[str, object] = {"num_segments": 3, "window_seconds": 0.5, "sample_rate_hz": RATE}
    wanted |= {"missing_picture": "black", "missing_sound": "silence"}
    return decode_clip(path, **{**wanted, **changed})  # type: ignore[arg-type]


def assert_whole(path: Path, tolerance: float = 0.1) -> None:
    media = decode(path)
    assert media.waveforms is not None
    np.testing.assert_allclose(media.duration_seconds, SECONDS, atol=tolerance)
    np.testing.assert_allclose(np.abs(media.waveforms).max(1), 0.5, atol=0.06)


def wav(*, riff: int | None, data: int | None, odd: bool = False, before: bytes = b"", head: bytes = b"RIFF") -> bytes:
    """A WAV file of 16 bits (8 where `odd`) with the sizes that its header is to state; None for the right ones."""
    wave = 0.5 * np.sin(2 * np.pi * 500 * np.arange(round(SECONDS * RATE) + odd) / RATE)
    samples = np.rint(wave * 127 + 128).astype(np.uint8) if odd else np.rint(wave * 32767).astype("<i2")
    width = samples.itemsize
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, width * RATE, width, 8 * width)
    content = samples.tobytes()
    size = len(content) if data is None else data
    rest = b"WAVE" + before + form + b"data" + struct.pack("<I", size) + content
    return head + struct.pack("<I", len(rest) if riff is None else riff) + rest


UNKNOWN = {
    "zeros": (0, 0),
    "Python's wave module": (36, 0),
    "all ones": (0xFFFF_FFFF, 0xFFFF_FFFF),
    "all ones less the head": (0xFFFF_FFFF, 0xFFFF_FFFF - 36),
    "sox": (0x7FFF_F024, 0x7FFF_F000),
    "the greatest signed": (0x7FFF_FFFF, 0x7FFF_FFFF - 36),
    "arecord": (0x8000_0024, 0x8000_0000),
    "only the outer one": (0xFFFF_FFFF, None),
    "only the inner one": (None, 0xFFFF_FFFF),
    "the head counted too": (round(SECONDS * RATE) * 2 + 44, round(SECONDS * RATE) * 2 + 44),
    "one byte more": (round(SECONDS * RATE) * 2 + 37, round(SECONDS * RATE) * 2 + 1),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_wav_whose_size_was_not_known_is_as_long_as_its_samples(tmp_path: Path, kind: str) -> None:
    riff, data = UNKNOWN[kind]
    (tmp_path / "a.wav").write_bytes(wav(riff=riff, data=data))
    assert_whole(tmp_path / "a.wav", 0.005)


def test_an_odd_number_of_bytes_needs_no_padding(tmp_path: Path) -> None:
    for extra in (0, 1):  # with, and without the byte that makes it even counted
        data = wav(riff=None, data=None, odd=True)
        (tmp_path / "a.wav").write_bytes(data[:4] + struct.pack("<I", len(data) - 8 + extra) + data[8:])
        assert_whole(tmp_path / "a.wav", 0.005)


def test_rf64_counts_in_64_bits(tmp_path: Path) -> None:
    size = round(SECONDS * RATE) * 2

    def rf64(data: int) -> bytes:
        table = struct.pack("<4sIQQQI", b"ds64", 28, 72 + data, data, size // 2, 0)
        return wav(riff=0xFFFF_FFFF, data=0xFFFF_FFFF, before=table, head=b"RF64")

    (tmp_path / "a.wav").write_bytes(rf64(size))
    assert_whole(tmp_path / "a.wav", 0.005)
    (tmp_path / "cut.wav").write_bytes(rf64(size)[:-4000])
    with pytest.raises(MediaError, match=r"cut\.wav: cut off: it has 440\d\d bytes, its 'data' chunk ends at byte 48"):
        decode(tmp_path / "cut.wav")


def test_an_aiff_file_whose_size_was_not_known_is_as_long_as_its_samples(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    path = tmp_path / "a.aiff"
    ffmpeg(*SINE, path)
    data = bytearray(path.read_bytes())
    for name, offset, value in ((b"FORM", 4, 0x7F00_0000), (b"SSND", 4, 0x7F00_0000 - 48), (b"COMM", 10, 0x3F80_0000)):
        struct.pack_into(">I", data, data.index(name) + offset, value)  # as SoX writes into a pipe
    path.write_bytes(data)
    assert_whole(path, 0.01)


@pytest.mark.parametrize("end", ["wav", "au", "caf", "flac", "mp3", "ogg", "aac", "avi", "flv", "mkv", "ts", "nut"])
def test_files_from_a_pipe_are_whole(ffmpeg: Ffmpeg, tmp_path: Path, end: str) -> None:
    names = {"aac": "adts", "mkv": "matroska", "ts": "mpegts"}
    codecs = {"avi": ("-c:a", "pcm_s16le"), "flv": ("-c:a", "aac"), "mkv": ("-c:a", "flac"), "ts": ("-c:a", "ac3")}
    film = (*PICTURE, "-c:v", "mpeg4") if end in ("avi", "flv", "mkv", "ts", "nut") else ()
    film = (*film[:-1], "flv1") if end == "flv" else film
    rate = ("-ar", "44100") if end in ("flv", "ts") else ()
    path = tmp_path / f"a.{end}"
    path.write_bytes(ffmpeg(*SINE, *film, *codecs.get(end, ()), *rate, "-f", names.get(end, end), "-"))
    assert_whole(path, 0.25)


def test_an_estimated_duration_is_not_missed(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    quiet = "aevalsrc='if(lt(t,2),0.5*sin(2*PI*500*t),0.45*random(0))':s=32000:d=3"
    path = tmp_path / "a.mp3"  # of a bit rate that rises on the way, and without a count of its frames
    ffmpeg("-f", "lavfi", "-i", quiet, "-write_xing", "0", "-q:a", "2", path)
    np.testing.assert_allclose(decode(path).duration_seconds, SECONDS, atol=0.1)


CHAPTERS = ";FFMETADATA1\n" + "".join(
    f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={end}\ntitle={start}\n"
    for start, end in ((0, 2000), (2000, 20000))
)
LINES = "1\n00:00:00,500 --> 00:00:01,500\nhello\n\n2\n00:00:17,000 --> 00:00:19,000\nthe end\n"


@pytest.mark.parametrize("end", ["mp4", "mkv", "mov", "m4a"])
def test_chapters_subtitles_data_and_other_tracks_may_outlast_the_film(
    ffmpeg: Ffmpeg, tmp_path: Path, end: str
) -> None:
    (tmp_path / "chapters.txt").write_text(CHAPTERS)
    (tmp_path / "lines.srt").write_text(LINES)
    picture = ("-an", "-vn")[:0] if end != "m4a" else ("-vn",)
    film = tmp_path / f"film.{end}"
    ffmpeg(*SINE, *PICTURE, *picture, "-ar", "16000", film)
    after = ("-c", "copy", tmp_path / f"chapters.{end}")
    ffmpeg("-i", film, "-i", tmp_path / "chapters.txt", "-map_metadata", "1", "-map_chapters", "1", *after)
    longer = ("-f", "lavfi", "-i", "sine=900:d=19:r=16000")
    ffmpeg("-i", film, *longer, "-map", "0", "-map", "1", "-disposition:a:1", "0", tmp_path / f"second.{end}")
    made = [f"chapters.{end}", f"second.{end}"]
    if end != "m4a":
        text = "srt" if end == "mkv" else "mov_text"
        ffmpeg(
            "-i", film, "-i", tmp_path / "lines.srt", "-map", "0", "-map", "1", "-c:s", text, tmp_path / f"lines.{end}"
        )
        made.append(f"lines.{end}")
    if end == "mov":
        ffmpeg("-i", film, "-c", "copy", "-timecode", "00:00:00:00", tmp_path / "timecode.mov")
        made.append("timecode.mov")
    for name in made:
        assert_whole(tmp_path / name, 0.15)


def stated(data: bytes, seconds: float) -> bytes:
    """A Matroska file that says that it lasts so long (its Duration, element 4489, in milliseconds)."""
    place = data.index(bytes.fromhex("4489 88")) + 3
    return data[:place] + struct.pack(">d", 1000 * seconds) + data[place + 8 :]


def test_a_wrong_duration_of_a_whole_matroska_file_is_no_damage(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg(*SINE, *PICTURE, "-c:a", "flac", path)
    path.write_bytes(stated(path.read_bytes(), 40.0))
    assert_whole(path)


KINDS = (
    "mp4",
    "mov",
    "mkv",
    "webm",
    "avi",
    "flv",
    "wmv",
    "wav",
    "aiff",
    "au",
    "caf",
    "w64",
    "flac",
    "mp3",
    "m4a",
    "ogg",
)


@pytest.mark.parametrize("end", KINDS)
def test_a_file_that_was_cut_off_is_refused_with_what_was_found(ffmpeg: Ffmpeg, tmp_path: Path, end: str) -> None:
    films = ("mp4", "mov", "mkv", "webm", "avi", "flv", "wmv")
    rate = ("-ar", "48000" if end == "webm" else "44100") if end in films else ()
    front = ("-movflags", "faststart") if end in ("mp4", "mov", "m4a") else ()
    path = tmp_path / f"a.{end}"
    ffmpeg(*SINE, *(PICTURE if end in films else ()), *rate, *front, path)
    decode(path)
    data = path.read_bytes()
    for share in (0.05, 0.35, 0.6, 0.9, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(MediaError, match=rf"a\.{end}: (damaged|cut off|cannot be decoded|neither)") as caught:
            decode(path)
        assert "\n" not in str(caught.value)


def test_a_hole_in_a_matroska_file_is_refused(ffmpeg: Ffmpeg, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg(*SINE, *PICTURE, "-c:a", "flac", "-cluster_time_limit", "500", path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(MediaError, match=r"a\.mkv: (damaged|cannot)"):
        decode(path)
