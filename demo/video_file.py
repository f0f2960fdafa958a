"""Write a scene as an mp4 file: H.264 and AAC, 8 s, under 200 kB."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..cache.atomic_io import replacing
from ..errors import MediaError
from .picture import HEIGHT, WIDTH, Stage
from .scene import CLIP_SECONDS, FRAMES_PER_SECOND, Scene
from .sound import SAMPLE_RATE_HZ, sound_of

MAX_BYTES = 200_000
_AUDIO_BITS_PER_SECOND = 80_000
_CRFS = (29, 34, 40)
NUM_FRAMES = round(CLIP_SECONDS * FRAMES_PER_SECOND)


def write_video(scene: Scene, path: Path) -> int:
    """Render a scene to `path`, whole or not at all, and return the file's size in bytes.

    Raises:
        MediaError: the file cannot be written (a full disk, a folder without permission).
    """
    frames, sound = frames_of(scene), sound_of(scene)
    try:
        with replacing(path) as partial:
            for crf in _CRFS:
                _encode(frames, sound, partial, crf)
                if partial.stat().st_size < MAX_BYTES:
                    break
    except (OSError, av.FFmpegError) as error:
        raise MediaError(f"{path}: cannot be written ({error}); free disk space or choose another folder") from None
    return path.stat().st_size


def frames_of(scene: Scene) -> np.ndarray:
    """Return every frame before encoding, (64, 240, 320, 3) uint8 RGB; frame i shows the instant i / 8 s."""
    stage = Stage(scene)
    return np.stack([stage.frame(i / FRAMES_PER_SECOND) for i in range(NUM_FRAMES)])


def _encode(frames: np.ndarray, sound: np.ndarray, path: Path, crf: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture.thread_count = 1
        picture.options = {"crf": str(crf), "preset": "veryfast"}
        track = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="stereo")
        track.bit_rate = _AUDIO_BITS_PER_SECOND
        for pixels in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
        planes = np.ascontiguousarray(sound.T)
        for first in range(0, planes.shape[1], 1024):
            block = np.ascontiguousarray(planes[:, first : first + 1024])
            packet = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            packet.sample_rate, packet.pts, packet.time_base = SAMPLE_RATE_HZ, first, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(track.encode(packet))
        container.mux(track.encode(None))
