"""Threads, for the tests of extraction that compare sums to the last bits or run many small models; ffmpeg."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import imageio_ffmpeg
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread while a module's tests run; `pytest.mark.usefixtures` asks for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ffmpeg() -> Callable[..., bytes]:
    """Run FFmpeg's own program (the one that imageio-ffmpeg carries) and return what it wrote to its output."""

    def run(*options: object, data: bytes | None = None) -> bytes:
        command = (imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-v", "error", "-y", *map(str, options))
        done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()[-800:]
        return done.stdout

    return run
