"""Decoding in processes: as in threads to the bit, in order; a process that dies costs nothing but time."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from talik.errors import BackendError, MediaError
from talik.extract.encoders.image_preprocess import ImagePreprocess
from talik.extract.media.clip_media import SegmentSettings
from talik.extract.media.decode_pool import DecodeRequest, open_decoder
from talik.extract.media.decode_server import ClipFrames
from talik.extract.stage.frame_inputs import FrameInputs

SETTINGS = SegmentSettings(num_segments=3, window_seconds=0.25, sample_rate_hz=8000)
KILLED = '''
import os, signal
from functools import partial

class Killed:
    """Of the clip "bad", ends the process as often as there are files in a folder, each time one less."""
    def __init__(self, folder, error=None):
        self.folder, self.error = folder, error

    def of_clip(self, key, views):
        return partial(self.take, key)

    def take(self, key, pixels):
        left = sorted(os.listdir(self.folder)) if key == "bad" else []
        if left:
            os.unlink(os.path.join(self.folder, left[0]))
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error and key == "bad":
            raise TypeError(self.error)
        return {0: pixels[:2].copy()}
'''


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Callable[..., bytes]) -> list[Path]:
    """Films of several sizes and lengths; the last one is none."""
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"{number}.mp4" for number in range(6)]
    for number, path in enumerate(paths[:5]):
        picture = f"testsrc2=s={48 + 16 * number}x48:r=5:d={1 + number % 3}"
        ffmpeg("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", f"sine=f={200 + number}:d=1", path)
    paths[5].write_bytes(b"no film")
    return paths


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ClipFrames]:
    """Makes what kills its process a number of times at the clip "bad"."""
    (tmp_path / "talik_test_killed.py").write_text(KILLED, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def make(times: int, error: str | None = None) -> ClipFrames:
        (tmp_path / "left").mkdir(exist_ok=True)
        for number in range(times):
            (tmp_path / "left" / str(number)).touch()
        module = importlib.import_module("talik_test_killed")
        return cast(ClipFrames, module.Killed(str(tmp_path / "left"), error))

    return make


def requests(films: list[Path], bad: int | None = None) -> list[DecodeRequest]:
    keys = ["bad" if number == bad else str(number) for number in range(len(films))]
    return [DecodeRequest(source=f, settings=SETTINGS, key=k, views=(0,)) for f, k in zip(films, keys, strict=True)]


def decoded(workers: int, frames: ClipFrames, wanted: list[DecodeRequest]) -> list[tuple[str, Any, Any, str]]:
    """What comes of each request: its key, frames, sound, error."""
    with open_decoder(workers, frames) as decoder:
        found = [(request.key, outcome.media, outcome.error) for request, outcome in decoder.outcomes(wanted)]
    return [
        (key, media and [frame[0].tolist() for frame in media.prepared or ()], media and media.waveforms, str(error))
        for key, media, error in found
    ]


def same(some: list[tuple[str, Any, Any, str]], others: list[tuple[str, Any, Any, str]]) -> bool:
    return [(k, f, e) for k, f, _, e in some] == [(k, f, e) for k, f, _, e in others] and all(
        np.array_equal(one[2], other[2]) for one, other in zip(some, others, strict=True) if one[2] is not None
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_what_threads_give(films: list[Path], workers: int) -> None:
    preprocess = ImagePreprocess(height=20, width=24, resize=0, fit="stretch")
    frames = FrameInputs(cast(Any, SimpleNamespace(modality="visual", preprocess=preprocess, num_frames=None)))
    wanted = requests(films * 4)
    expected = decoded(0, frames, wanted)
    assert [error == "None" for *_, error in expected] == [True] * 5 + [False] + ([True] * 5 + [False]) * 3
    assert same(decoded(workers, frames, wanted), expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_whose_process_dies_once_is_decoded_again(
    films: list[Path], killed: Callable[..., ClipFrames], workers: int, tmp_path: Path
) -> None:
    expected = decoded(0, killed(0), requests(films, bad=1))
    assert same(decoded(workers, killed(1), requests(films, bad=1)), expected)
    assert os.listdir(tmp_path / "left") == []


def test_a_clip_whose_process_dies_again_is_named_and_the_others_are_there(
    films: list[Path], killed: Callable[..., ClipFrames]
) -> None:
    expected = decoded(0, killed(0), requests(films, bad=1))
    found = decoded(2, killed(9), requests(films, bad=1))
    assert same(found[:1] + found[2:], expected[:1] + expected[2:])
    assert found[1][1] is None
    assert found[1][3].startswith(f"{films[1]}: each of 2 processes that decoded it died")


def test_an_error_of_the_preprocessing_is_raised_with_the_clips_name(
    films: list[Path], killed: Callable[..., ClipFrames]
) -> None:
    with pytest.raises(TypeError, match=r"1\.mp4: no such picture"):
        decoded(2, killed(0, "no such picture"), requests(films, bad=1))


def test_a_decoder_goes_on_after_an_iterator_that_was_closed_early(
    films: list[Path], killed: Callable[..., ClipFrames]
) -> None:
    with open_decoder(2, killed(0)) as decoder:
        first = decoder.outcomes(requests(films))
        assert next(first)[0].key == "0"
        first.close()  # type: ignore[attr-defined]
        keys = [request.key for request, _ in decoder.outcomes(requests(films[:3]))]
    assert keys == ["0", "1", "2"]


def test_an_iterator_left_where_it_stood_does_not_mix_with_the_next(
    films: list[Path], killed: Callable[..., ClipFrames]
) -> None:
    with open_decoder(2, killed(0)) as decoder:
        first = decoder.outcomes(requests(films))
        assert next(first)[0].key == "0"
        assert [request.key for request, _ in decoder.outcomes(requests(films[:3]))] == ["0", "1", "2"]
        with pytest.raises(BackendError, match="another iterator"):
            next(first)


def test_processes_that_cannot_be_started(films: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with open_decoder(1) as decoder, pytest.raises(BackendError, match="workers = 0"):
        list(decoder.outcomes(requests(films[:1])))


def test_a_film_that_is_none_is_an_outcome(films: list[Path]) -> None:
    with open_decoder(1) as decoder:
        ((_, outcome),) = decoder.outcomes(requests(films[5:]))
    assert isinstance(outcome.error, MediaError)
