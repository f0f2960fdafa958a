"""Write a scene as an mp4 file: H.264 and AAC, under 200 kB for 8 s."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..cache.atomic_io import replacing
from ..errors import MediaError
from .picture import HEIGHT, WIDTH, Stage
from .scene import CLIP_SECONDS, Scene
from .sound import SAMPLE_RATE_HZ, sound_of

MAX_BYTES = 200_000  # of a clip of CLIP_SECONDS; of others in proportion
_AUDIO_BITS_PER_SECOND = 80_000
_CRFS = (29, 34, 40)


def write_video(scene: Scene, path: Path, *, fast_sound: bool = False) -> int:
    """Render a scene to `path`, whole or not at all, and return the file's size in bytes.

    Args:
        scene: what is shown and heard.
        path: of the file.
        fast_sound: encode the sound by the coder that takes a tenth of the time; other samples, as good to the ear.

    Raises:
        MediaError: the file cannot be written (a full disk, a folder without permission).
    """
    frames, sound = frames_of(scene), sound_of(scene)
    max_bytes = MAX_BYTES * scene.seconds / CLIP_SECONDS
    try:
        with replacing(path) as partial:
            for crf in _CRFS:
                _encode(frames, sound, partial, scene, crf=crf, fast_sound=fast_sound)
                if partial.stat().st_size < max_bytes:
                    break
    except (OSError, av.FFmpegError) as error:
        raise MediaError(f"{path}: cannot be written ({error}); free disk space or choose another folder") from None
    return path.stat().st_size


def frames_of(scene: Scene) -> np.ndarray:
    """Return every frame before encoding, (F, 240, 320, 3) uint8 RGB; frame i of F shows its first instant."""
    stage, num_frames = Stage(scene), round(scene.seconds * scene.frames_per_second)
    return np.stack([stage.frame(i / scene.frames_per_second) for i in range(num_frames)])


def _encode(frames: np.ndarray, sound: np.ndarray, path: Path, scene: Scene, *, crf: int, fast_sound: bool) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=scene.frames_per_second)
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture.thread_count = 1
        picture.options = {"crf": str(crf), "preset": "veryfast"}
        layout = "mono" if scene.plot else "stereo"  # in a plot both channels are equal
        track = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout=layout)
        track.bit_rate = _AUDIO_BITS_PER_SECOND
        track.options = {"aac_coder": "fast"} if fast_sound else {}  # a tenth of the time
        for pixels in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode(None))
        planes = np.ascontiguousarray(sound.T[: track.channels])
        for first in range(0, planes.shape[1], 1024):
            block = np.ascontiguousarray(planes[:, first : first + 1024])
            packet = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            packet.sample_rate, packet.pts, packet.time_base = SAMPLE_RATE_HZ, first, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(track.encode(packet))
        container.mux(track.encode(None))
