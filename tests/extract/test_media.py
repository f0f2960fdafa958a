"""Decoding: picture and sound share their instants, in any container, at any frame rate and turn of the camera."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from talik.errors import MediaError, MissingMediaError, SettingsError
from talik.extract.media.clip_media import ClipMedia, SegmentSettings
from talik.extract.media.decode import decode_clip, iter_media

SECONDS = 6.0
EVENTS = (1.0, 3.0, 5.0)  # the centres of three segments: there a flash, and the beginning of a click
RATE = 16_000
WIDTH, HEIGHT = 96, 64


def make_clip(
    path: Path,
    *,
    times: np.ndarray | None = None,
    fps: int = 25,
    video: str | None = "libx264",
    audio: str | None = "aac",
    rate: int = 48_000,
    pixels: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sound_seconds: float = SECONDS,
    sound_starts: float = 0.0,
    picture_starts: float = 0.0,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    gains: tuple[float, float] = (0.8, 0.8),
) -> Path:
    """Write a clip whose frames carry their number as grey level, white at EVENTS, where the sound has a 10 ms tone."""
    with av.open(str(path), "w", options=container or {}) as out:
        if video:
            stream = out.add_stream(video, rate=fps, options=options or {})
            stream.width, stream.height = size
            stream.pix_fmt = pixels
        if audio:
            track = out.add_stream(audio, rate=rate, layout="stereo")
        if video:
            times = np.arange(round(SECONDS * fps)) / fps if times is None else times
            stream.codec_context.time_base = Fraction(1, 1000)
            for number, time in enumerate(times):
                flash = any(abs(time - event) < 0.5 / fps for event in EVENTS)
                picture = np.full((size[1], size[0], 3), 255 if flash else 20 + number % 100, np.uint8)
                picture[: size[1] // 2, : size[0] // 2] //= 2  # the upper left corner is darker: which way is up
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = round((time + picture_starts) * 1000), Fraction(1, 1000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        if audio:
            for frame in _sound(track, rate, sound_seconds, sound_starts, gains):
                out.mux(track.encode(frame))
            out.mux(track.encode(None))
    return path


def _sound(
    track: av.AudioStream, rate: int, seconds: float, starts: float, gains: tuple[float, float]
) -> Iterator[av.AudioFrame]:
    samples = np.zeros((2, round(seconds * rate)), np.float32)
    tone = np.sin(np.arange(rate // 100) * 2 * np.pi * 2000 / rate)
    for event in EVENTS:
        first = round((event - starts) * rate)
        if 0 <= first < samples.shape[1] - len(tone):
            samples[:, first : first + len(tone)] = np.outer(gains, tone)
    context = track.codec_context
    frame = av.AudioFrame.from_ndarray(samples, "fltp", layout="stereo")
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(starts * rate)
    resampler = av.AudioResampler(context.format, "stereo", rate, frame_size=context.frame_size or 1024)
    yield from (*resampler.resample(frame), *resampler.resample(None))


def decode(path: Path, **changed: object) -> ClipMedia:
    wanted: dict[str, object] = {"num_segments": 3, "window_seconds": 1.0, "sample_rate_hz": RATE}
    return decode_clip(path, **{**wanted, **changed})  # type: ignore[arg-type]


def onsets(waveforms: np.ndarray) -> np.ndarray:
    """Return where the click begins in each window, in seconds from its centre; NaN where there is none."""
    loud = np.abs(waveforms) > 0.2
    return np.where(loud.any(1), loud.argmax(1) / RATE - waveforms.shape[1] / RATE / 2, np.nan)


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames[:, HEIGHT // 2 + 2 :, WIDTH // 2 + 2 :].mean((1, 2, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clips that several tests read."""
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "plain.mp4", options={"g": "12", "bf": "3"}, container={"movflags": "faststart"})
    make_clip(folder / "silent.mp4", audio=None)
    make_clip(folder / "dark.wav", video=None, audio="pcm_s16le")
    make_clip(folder / "plain.mkv", audio="flac", options={"g": "12", "bf": "3"})
    return folder


KINDS: dict[str, dict[str, object]] = {
    "all-keyframes.mp4": {"options": {"g": "1"}},
    "open-gop.mp4": {"options": {"g": "15", "x264-params": "open-gop=1:bframes=3:b-pyramid=normal:log-level=none"}},
    "fragmented.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "10"}},
    "hevc.mkv": {"video": "libx265", "audio": "ac3", "options": {"x265-params": "keyint=20:log-level=none"}},
    "vp9.webm": {"video": "libvpx-vp9", "audio": "libopus", "options": {"deadline": "realtime", "g": "20"}},
    "vp8.webm": {
        "video": "libvpx",
        "audio": "libopus",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "5", "g": "40"},
    },
    "transport.ts": {"options": {"g": "12", "bf": "3"}},
    "decoding-order.avi": {"video": "libx264", "audio": "pcm_s16le", "options": {"g": "12", "bf": "3"}},
    "odd.mov": {"video": "mjpeg", "audio": "pcm_s16le", "pixels": "yuvj420p", "size": (97, 65)},
    "cd-rate.mp4": {"rate": 44_100, "options": {"g": "250"}},
    "old.mp4": {"video": "mpeg4", "audio": "libmp3lame", "options": {"g": "12", "bf": "2", "qscale": "2"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_flash_and_click_coincide_in_every_segment(tmp_path: Path, kind: str) -> None:
    path = make_clip(tmp_path / kind, **KINDS[kind])  # type: ignore[arg-type]
    media = decode(path)
    assert media.frames is not None
    assert media.waveforms is not None
    width, height = KINDS[kind].get("size", (WIDTH, HEIGHT))  # type: ignore[misc]
    assert media.frames.shape == (3, height, width, 3)
    assert media.frames.dtype == np.uint8
    assert media.waveforms.shape == (3, RATE)
    assert media.waveforms.dtype == np.float32
    np.testing.assert_allclose(media.duration_seconds, SECONDS, atol=0.05)
    np.testing.assert_allclose(media.instants_seconds, EVENTS, atol=0.03)
    assert (brightness(media.frames) > 235).all()
    heard_at = media.instants_seconds + onsets(media.waveforms)
    tolerance = 0.03 if kind == "old.mp4" else 0.0012  # an MP3 encoder's delay is not told by an MP4
    np.testing.assert_allclose(heard_at, EVENTS, atol=tolerance)


@pytest.mark.parametrize("kind", ["open-gop.mp4", "vp8.webm", "transport.ts", "hevc.mkv", "decoding-order.avi"])
def test_seeking_gives_the_frames_that_decoding_from_the_beginning_gives(tmp_path: Path, kind: str) -> None:
    path = make_clip(tmp_path / kind, **KINDS[kind])  # type: ignore[arg-type]
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    media = decode(path, num_segments=19, sound=False)
    assert media.frames is not None
    shown = np.floor(media.instants_seconds * 25 + 1e-3).astype(int)
    for frame, number in zip(media.frames, shown, strict=True):
        np.testing.assert_array_equal(frame, every[number])


def test_the_frame_on_display_is_taken_at_variable_frame_rates(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(20) * 0.03, 0.6 + np.arange(5) * 0.7, 4.2 + np.arange(30) * 0.06])
    media = decode(make_clip(tmp_path / "variable.mp4", times=times, audio=None), num_segments=24, sound=False)
    assert media.frames is not None
    shown = np.searchsorted(times, media.instants_seconds + 1e-6, side="right") - 1
    flashes = np.array([any(abs(times[i] - e) < 0.02 for e in EVENTS) for i in shown])
    np.testing.assert_allclose(brightness(media.frames)[~flashes], (20 + shown % 100)[~flashes], atol=3)


def test_a_frame_serves_several_segments_when_there_are_few(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "few.mp4", times=np.array([0.0, 2.0, 4.0]), audio=None)
    media = decode(path, num_segments=30, sound=False)
    assert media.frames is not None
    assert len(np.unique(brightness(media.frames).round())) == 3


@pytest.mark.parametrize("kind", ["late.mkv", "late.mp4"])
@pytest.mark.parametrize(("picture", "sound"), [(0.0, 0.5), (0.5, 0.0), (1.0, 1.25)])
def test_offsets_of_the_streams_are_respected(tmp_path: Path, kind: str, picture: float, sound: float) -> None:
    # In the picture's own time the flashes are at EVENTS; the clicks are made at EVENTS of the file's clock.
    heard = SECONDS + picture - sound  # both end together
    path = make_clip(tmp_path / kind, audio="flac", picture_starts=picture, sound_starts=sound, sound_seconds=heard)
    media = decode(path)
    assert media.frames is not None
    assert media.waveforms is not None
    assert (brightness(media.frames) > 235).all()
    late = decode(path, window_seconds=3.0)
    assert late.waveforms is not None
    begins = onsets(late.waveforms)
    clicks = np.array([e for e in EVENTS if e >= sound]) - picture  # in the picture's time
    for centre, begin in zip(late.instants_seconds, begins, strict=True):
        inside = [c for c in clicks if centre - 1.5 <= c < centre + 1.49]
        assert (np.isnan(begin) and not inside) or abs(centre + begin - inside[0]) < 0.0012


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
        ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
        ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
        ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
    ],
    ids=["clockwise", "counter-clockwise", "upside-down", "mirrored"],
)
def test_the_display_matrix_is_applied(made: Path, tmp_path: Path, matrix: tuple[int, ...], turn: object) -> None:
    data = bytearray((made / "silent.mp4").read_bytes())
    a, b, c, d = (65_536 * m for m in matrix)
    struct.pack_into(">9i", data, data.find(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    upright = decode(made / "silent.mp4", sound=False).frames
    turned = decode(tmp_path / "turned.mp4", sound=False).frames
    assert upright is not None
    assert turned is not None
    np.testing.assert_array_equal(turned[0], turn(upright[0]))  # type: ignore[operator]


def test_instants_do_not_depend_on_what_is_asked_for(made: Path) -> None:
    both, sound = decode(made / "plain.mkv"), decode(made / "plain.mkv", frames=False)
    picture = decode(made / "plain.mkv", sound=False, window_seconds=None, sample_rate_hz=None)
    assert sound.frames is None
    assert picture.waveforms is None
    np.testing.assert_array_equal(both.instants_seconds, sound.instants_seconds)
    np.testing.assert_array_equal(both.instants_seconds, picture.instants_seconds)
    np.testing.assert_array_equal(both.waveforms, sound.waveforms)
    np.testing.assert_array_equal(both.frames, picture.frames)


def test_windows_are_silent_beyond_the_ends_of_the_sound(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "short.mkv", audio="flac", sound_seconds=4.0)
    waveforms = decode(path, window_seconds=4.0).waveforms  # windows of -1..3, 1..5 and 3..7 s; sound ends at 4 s
    assert waveforms is not None
    assert not waveforms[0, : RATE - 200].any()
    assert not waveforms[1, 3 * RATE + 200 :].any()
    assert not waveforms[2, RATE + 200 :].any()
    np.testing.assert_allclose(onsets(waveforms[:2]), [0.0, -2.0 + 0.0], atol=0.0012)


def test_the_channels_are_averaged_and_equal_rates_are_left_as_they_are(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "pan.mkv", audio="pcm_s16le", gains=(0.9, 0.3), rate=RATE)
    waveforms = decode(path).waveforms
    assert waveforms is not None
    tone = 0.6 * np.sin(np.arange(RATE // 100) * 2 * np.pi * 2000 / RATE)
    np.testing.assert_allclose(waveforms[:, RATE // 2 : RATE // 2 + len(tone)], np.tile(tone, (3, 1)), atol=1e-3)


def test_the_first_channel_alone_is_heard_where_it_is_asked_for(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "pan.mkv", audio="pcm_s16le", gains=(0.9, 0.3), rate=RATE)
    waveforms = decode(path, channels="first").waveforms
    assert waveforms is not None
    tone = 0.9 * np.sin(np.arange(RATE // 100) * 2 * np.pi * 2000 / RATE)
    np.testing.assert_allclose(waveforms[:, RATE // 2 : RATE // 2 + len(tone)], np.tile(tone, (3, 1)), atol=1e-3)


def test_no_sound_or_no_picture_is_an_error_unless_allowed(made: Path) -> None:
    with pytest.raises(MediaError, match=r"silent\.mp4: no sound in it"):
        decode(made / "silent.mp4")
    with pytest.raises(MediaError, match=r"dark\.wav: no picture in it"):
        decode(made / "dark.wav")
    silence = decode(made / "silent.mp4", missing_sound="silence")
    black = decode(made / "dark.wav", missing_picture="black")
    assert silence.waveforms is not None
    assert not silence.waveforms.any()
    assert silence.waveforms.shape == (3, RATE)
    assert black.frames is not None
    assert not black.frames.any()
    assert black.frames.shape[0] == 3
    assert black.waveforms is not None
    np.testing.assert_allclose(onsets(black.waveforms), 0.0, atol=0.0012)
    assert decode(made / "silent.mp4", sound=False).waveforms is None


def test_what_is_no_media_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(MissingMediaError, match=r"nowhere\.mp4: no such file"):
        decode(tmp_path / "nowhere.mp4")
    for name, data in {"empty.mp4": b"", "text.mp4": b"hello\n" * 99, "zero.mkv": bytes(5000)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MediaError, match=name) as caught:
            decode(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:6,\n{tmp_path / 'nowhere.mp4'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError, match=r"list\.m3u8"):
        decode(tmp_path / "list.m3u8")


@pytest.mark.parametrize("kind", ["plain.mp4", "plain.mkv", "dark.wav", "old.avi"])
def test_a_file_that_is_cut_off_is_never_padded(made: Path, tmp_path: Path, kind: str) -> None:
    if kind == "old.avi":
        make_clip(made / kind, video="mpeg4", audio="pcm_s16le")
    data = (made / kind).read_bytes()
    wanted = {"missing_picture": "black"} if kind == "dark.wav" else {}
    decode(made / kind, **wanted)
    for share in (0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.995):
        (tmp_path / kind).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(MediaError, match=kind):
            decode(tmp_path / kind, **wanted)


def test_flipped_bits_give_a_result_or_a_media_error(made: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reported: list[str] = []
    for turn in range(60):
        source = made / ("plain.mp4" if turn % 2 else "plain.mkv")
        data = np.frombuffer(source.read_bytes(), np.uint8).copy()
        places = rng.integers(0, len(data), size=(1, 8, 40)[turn % 3])
        data[places] ^= (1 << rng.integers(0, 8, size=len(places))).astype(np.uint8)
        path = tmp_path / f"flipped{source.suffix}"
        path.write_bytes(data.tobytes())
        try:
            media = decode(path)
        except MediaError as error:
            reported.append(str(error))
        else:
            assert media.waveforms is not None
            assert np.isfinite(media.waveforms).all()
    assert len(reported) > 5
    assert not [line for line in reported if "flipped.m" not in line or "\n" in line]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_files_come_in_order_and_a_bad_one_does_not_end_the_others(made: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    paths = [made / "plain.mp4", tmp_path / "bad.mp4", made / "plain.mkv", made / "silent.mp4", made / "plain.mp4"]
    settings = SegmentSettings(num_segments=3, window_seconds=1.0, sample_rate_hz=RATE)
    outcomes = list(iter_media(paths, settings, workers))
    assert [o.path for o in outcomes] == paths
    assert [o.error is None for o in outcomes] == [True, False, True, False, True]
    assert "bad.mp4" in str(outcomes[1].error)
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.media is not None
        alone = decode(outcome.path)
        np.testing.assert_array_equal(outcome.media.frames, alone.frames)
        np.testing.assert_array_equal(outcome.media.waveforms, alone.waveforms)


def test_decoding_stays_a_bounded_way_ahead(made: Path) -> None:
    asked: list[int] = []

    def paths() -> Iterator[Path]:
        for number in range(1000):
            asked.append(number)
            yield made / "silent.mp4"

    outcomes = iter_media(paths(), SegmentSettings(num_segments=2, sound=False), workers=2)
    next(outcomes)
    assert len(asked) <= 4
    outcomes.close()  # type: ignore[attr-defined]
    assert len(asked) <= 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_segments": 0},
        {"window_seconds": None},
        {"sample_rate_hz": None},
        {"window_seconds": -1.0},
        {"window_seconds": float("nan")},
        {"window_seconds": 1e-9},
        {"missing_sound": "quiet"},
        {"channels": "left"},
    ],
)
def test_settings_that_cannot_be_are_refused(made: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        decode(made / "plain.mp4", **wrong)
