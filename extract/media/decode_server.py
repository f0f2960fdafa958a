"""Processes that decode: one that has imported everything forks the others, which then decode clip after clip.

Run as `python -m talik.extract.media.decode_server FD`, FD being a Unix socket. Over it come the pickled function that
makes of frames what is kept of them, and then, for each worker, a socket of its own; its end is the end of all.

A worker takes (number, source, settings, arguments of the function) from its socket and answers with the number, the
pickled outcome and the sizes of its arrays, whose bytes are in an anonymous file in memory that is handed over with it:
nothing has a name that could be left behind, and a clip may be of any size.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Protocol

import numpy as np

from .clip_media import SegmentSettings
from .decode import FrameFunction, MediaOutcome, media_outcome
from .frame_folder import MediaSource


class ClipFrames(Protocol):
    """What makes of a clip's frames what is kept of them; it pickles."""

    def of_clip(self, key: str, views: tuple[int, ...]) -> FrameFunction:
        """Return what takes each frame (H, W, 3) uint8 of a clip; what that returns are NumPy arrays, in dicts."""
        ...


_NICENESS = 5  # whoever feeds the device goes first

#: What a worker is given: a number, the file, what is taken of it, and for its frames the item's key and the views.
Request = tuple[int, MediaSource, SegmentSettings, str, tuple[int, ...]]


def send_outcome(connection: Connection, number: int, outcome: MediaOutcome | Exception) -> None:
    """Send what came of a clip: a pickle through the socket, the arrays' bytes in a file in memory."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        content = pickle.dumps(outcome, protocol=5, buffer_callback=buffers.append)
    except Exception:  # an exception of a library's own may not pickle
        buffers, content = [], pickle.dumps(RuntimeError(str(outcome)))
    parts = [buffer.raw() for buffer in buffers]
    connection.send((number, content, [part.nbytes for part in parts]))
    if parts:
        file = _file_in_memory()
        try:
            for part in parts:
                while part.nbytes:
                    part = part[os.write(file, part) :]
            send_handle(connection, file, None)
        finally:
            os.close(file)


def receive_outcome(connection: Connection) -> tuple[int, MediaOutcome | Exception]:
    """Return what `send_outcome` sent.

    Raises:
        EOFError, OSError, RuntimeError: the worker is gone.
    """
    number, content, sizes = connection.recv()
    block = np.empty(sum(sizes), np.uint8)
    if sizes:
        file = recv_handle(connection)
        try:
            done = 0
            while done < len(block):
                done += os.preadv(file, [block[done:]], done)  # type: ignore[list-item]
        finally:
            os.close(file)
    starts = np.cumsum([0, *sizes])
    buffers = [block[start:stop] for start, stop in pairwise(starts)]
    return number, pickle.loads(content, buffers=buffers)


def _file_in_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("talik-clip")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _read(control: socket.socket, size: int) -> bytes:
    """Return the next bytes and not one more, which would lose the socket that comes with it."""
    found = b""
    while len(found) < size:
        part = control.recv(size - len(found))
        if not part:
            sys.exit(0)
        found += part
    return found


def work(connection: Connection, frames: ClipFrames | None) -> None:
    """Decode what comes through a socket until it is closed."""
    while True:
        try:
            number, source, settings, key, views = connection.recv()
        except (EOFError, OSError):
            return
        outcome: MediaOutcome | Exception
        try:
            outcome = media_outcome(source, settings, frames.of_clip(key, views) if frames and views else None)
        except Exception as error:
            outcome = error
        try:
            send_outcome(connection, number, outcome)
        except OSError:  # whoever asked is gone
            return


def main() -> None:
    """Fork a worker for each socket that comes, until there come no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets workers that end
    with suppress(OSError):
        os.nice(_NICENESS)
    control = socket.socket(fileno=int(sys.argv[1]))
    frames: ClipFrames | None = pickle.loads(_read(control, int.from_bytes(_read(control, 8), "little")))
    while True:
        said, descriptors, *_ = socket.recv_fds(control, 1, 1)
        if not said:
            os.killpg(0, signal.SIGKILL)
        if os.fork() == 0:
            control.close()
            work(Connection(descriptors[0]), frames)
            os._exit(0)
        os.close(descriptors[0])


if __name__ == "__main__":
    main()
