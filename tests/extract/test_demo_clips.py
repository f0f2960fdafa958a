"""The demo set's clips: seen playing exactly when heard, loud and panned as told, the same for the same seed."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from talik.demo.instruments import SEATS
from talik.demo.make import make_demo
from talik.demo.picture import RAY_COLOUR
from talik.demo.scene import SEAT_CENTRES, Player, Scene, make_scene
from talik.demo.sound import SAMPLE_RATE_HZ, gated_level_db, sound_of, stem_of
from talik.demo.video_file import frames_of, write_video
from talik.errors import ManifestError, MediaError, SettingsError


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return frames (64, 240, 320, 3) uint8 and sound (2, S) float32 of a clip."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    return frames, sound


def player(kind: str, seat: str, *, level_db: float = -20.0, pan: float = 0.5, start: float = 0.0) -> Player:
    onsets = tuple(start + 0.5 * i for i in range(int((8.0 - start) / 0.5)))
    x, y = SEAT_CENTRES[SEATS.index(seat)]
    return Player(
        kind=kind, seat=seat, intervals=((start, 8.0),), onsets=onsets, level_db=level_db, pan=pan, size=76, x=x, y=y
    )


def stage(*players: Player) -> Scene:
    return Scene(
        seed=0, index=0, split="train", place="indoor", key=0, minor=False, beats_per_minute=100.0, players=players
    )


def ring_share(frame: np.ndarray, where: Player) -> float:
    """Return which share of 24 directions around a player meets the ring's colour at the ring's distance."""
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    down, across = rows - (where.y - 8), columns - where.x
    distance = np.hypot(down, across) / where.size
    ring = (distance > 0.47) & (distance < 0.6) & (np.abs(frame.astype(int) - np.array(RAY_COLOUR)).sum(axis=2) < 150)
    directions = ((np.arctan2(down, across) / np.pi + 1.0) * 12.0).astype(int) % 24
    return len(set(directions[ring].tolist())) / 24


def shows_playing(frame: np.ndarray, where: Player) -> bool:
    return ring_share(frame, where) > 0.6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder, num_clips=8, seed=3, workers=1, progress=False)
    return folder


def test_playing_is_seen_exactly_while_it_sounds(made: Path) -> None:
    """Probed in decoded frames, at many arbitrary instants of every player on stage."""
    probed = {True: 0, False: 0}
    for index in range(8):
        scene = make_scene(3, index)
        frames, _ = decode(made / "videos" / f"{scene.video_id}.mp4")
        for seconds in np.random.default_rng(index).uniform(0.0, 8.0, 40):
            frame = int(seconds * 8)
            for one in scene.players:
                if one.seat is None:
                    continue
                sounds = any(start <= seconds < end for start, end in one.intervals)
                assert shows_playing(frames[frame], one) == sounds, (index, seconds, one)
                probed[sounds] += 1
    assert min(probed.values()) > 100


def test_playing_is_seen_at_every_frame_of_every_kind() -> None:
    """No period hides it: every frame of a clip of each kind, before encoding."""
    for kind in ("piano", "violin", "drum", "accordion", "flute", "trumpet"):
        one = player(kind, "middle", start=4.0)
        frames = frames_of(stage(one))
        assert [shows_playing(frame, one) for frame in frames] == [False] * 32 + [True] * 32


def test_clips_are_as_promised(made: Path) -> None:
    paths = sorted((made / "videos").iterdir())
    assert len(paths) == 8
    for path in paths:
        assert path.stat().st_size < 200_000
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.pix_fmt) == (320, 240, "yuv420p")
            assert (audio.rate, audio.layout.name) == (SAMPLE_RATE_HZ, "stereo")
            for stream in (video, audio):
                assert stream.duration is not None
                assert stream.time_base is not None
                assert float(stream.duration * stream.time_base) == 8.0


def test_same_seed_same_pixels_and_samples() -> None:
    for index in (0, 5):
        scene = make_scene(3, index)
        assert np.array_equal(frames_of(scene), frames_of(make_scene(3, index)))
        assert np.array_equal(sound_of(scene), sound_of(make_scene(3, index)))
    assert not np.array_equal(frames_of(make_scene(3, 0)), frames_of(make_scene(4, 0)))
    assert not np.array_equal(sound_of(make_scene(3, 0)), sound_of(make_scene(4, 0)))


def test_same_seed_same_pixels_and_samples_in_another_process() -> None:
    scenes = [make_scene(3, index) for index in (4, 1)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for scene, frames, sound in zip(scenes, pool.map(frames_of, scenes), pool.map(sound_of, scenes), strict=True):
            assert np.array_equal(frames, frames_of(scene))
            assert np.array_equal(sound, sound_of(scene))


def test_two_workers_make_the_set_that_one_makes(tmp_path: Path, made: Path) -> None:
    """The same files but for the last bits that the video encoder leaves to chance."""
    make_demo(tmp_path / "other", num_clips=8, seed=3, workers=2, progress=False)
    for name in ("scenes.json", "annotations/avqa-train.json", "annotations/avqa-test.json"):
        assert (tmp_path / "other" / name).read_bytes() == (made / name).read_bytes()
    paths = sorted((made / "videos").iterdir())
    assert [path.name for path in paths] == [path.name for path in sorted((tmp_path / "other" / "videos").iterdir())]
    assert len(paths) == 8
    for path in paths[3:6]:
        ours, theirs = decode(path), decode(tmp_path / "other" / "videos" / path.name)
        assert np.abs(ours[0].astype(int) - theirs[0]).mean() < 1.0  # grey levels; two clips differ by tens
        assert np.array_equal(ours[1], theirs[1])


def test_level_and_pan(tmp_path: Path) -> None:
    """The loud one on the left is heard in the left channel of the encoded clip, the soft one in the right."""
    loud = player("violin", "left", level_db=-20.0, pan=0.12)
    soft = player("flute", "right", level_db=-29.0, pan=0.88)
    for scene, louder in ((stage(loud), 0), (stage(soft), 1), (stage(loud, soft), 0)):
        write_video(scene, tmp_path / "clip.mp4")
        _, sound = decode(tmp_path / "clip.mp4")
        power = np.square(sound).mean(axis=1)
        assert power[louder] > 4.0 * power[1 - louder]


@pytest.mark.parametrize("kind", ["violin", "drum", "congas", "piano", "electric_bass"])
def test_stems_have_their_level_and_keep_to_their_intervals(kind: str) -> None:
    scene = stage(player(kind, "left", level_db=-29.0, start=4.0))
    stem = stem_of(scene, 0)
    assert gated_level_db(stem) == pytest.approx(-29.0, abs=0.01)
    assert not stem[: 4 * SAMPLE_RATE_HZ].any()
    assert np.abs(stem[4 * SAMPLE_RATE_HZ :]).max() > 0.01
    assert np.abs(sound_of(scene)).max() < 1.0


def test_a_second_run_makes_only_what_is_missing(tmp_path: Path) -> None:
    first = make_demo(tmp_path, num_clips=4, seed=1, workers=1, progress=False)
    assert (first.num_made, first.num_clips) == (4, 4)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()}
    (tmp_path / "videos" / "00000002.mp4").unlink()
    second = make_demo(tmp_path, num_clips=5, seed=1, workers=1, progress=False)
    assert second.num_made == 2
    assert "5 clips (2 made now, 3 already there)" in second.summary()
    assert f"{100 * second.blind_accuracy:.1f} %" in second.summary()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()}
    assert sorted(after) == [f"{i:08d}.mp4" for i in range(5)]
    assert all(after[name] == times[name] for name in times if name != "00000002.mp4")
    clips = json.loads((tmp_path / "scenes.json").read_text(encoding="utf-8"))["clips"]
    asked = json.loads((tmp_path / "annotations" / "avqa-test.json").read_text(encoding="utf-8"))
    assert asked
    assert {clips[record["video_id"]]["split"] for record in asked} == {"test"}


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    make_demo(tmp_path / "set", num_clips=4, seed=1, workers=1, progress=False)
    with pytest.raises(SettingsError, match=r"holds the demo set of seed 1.*expected seed 2"):
        make_demo(tmp_path / "set", num_clips=4, seed=2, progress=False)
    with pytest.raises(SettingsError, match="found 3, expected 4 or more"):
        make_demo(tmp_path / "none", num_clips=3, progress=False)
    (tmp_path / "set" / "scenes.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ManifestError, match="not the scenes of a demo set"):
        make_demo(tmp_path / "set", num_clips=4, seed=1, progress=False)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(MediaError, match="cannot be made"):
        make_demo(tmp_path / "file", num_clips=4, seed=1, progress=False)
