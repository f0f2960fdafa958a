"""Decoding ahead of whoever takes the clips: in threads of this process, or in processes of their own."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from ...errors import BackendError, MediaError
from .clip_media import SegmentSettings
from .decode import MediaOutcome, done_ahead, film_path, media_outcome
from .decode_server import ClipFrames, Request, receive_outcome
from .frame_folder import MediaSource

_THREADS = 2  # more are no faster: most of the decoder's time is spent under Python's lock
_QUEUED = 2  # clips that each process is given at once, so that it never waits for the next
_AHEAD = 1  # clips a process that are decoded and wait, or are being decoded, beside those that it was given
_ATTEMPTS = 2


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """A clip to be decoded.

    Args:
        source: its file, folder of frames, or part of either.
        settings: what is taken of it.
        key: of its item, which what is done to its frames may depend on.
        views: numbers of the views that are made of its frames; () where no frames are wanted.
        tag: whatever the outcome is to come back with.
    """

    source: MediaSource
    settings: SegmentSettings
    key: str = ""
    views: tuple[int, ...] = ()
    tag: Any = None


class Decoder(ABC):
    """Decodes clips ahead of the caller; what it gives does not depend on how many threads or processes it has."""

    @abstractmethod
    def outcomes(self, requests: Iterable[DecodeRequest]) -> Iterator[tuple[DecodeRequest, MediaOutcome]]:
        """Yield each request with what came of it, in their order; a bounded number of clips is decoded ahead.

        A clip that cannot be decoded is an outcome with its error. The iterator is to be exhausted or closed before
        another one is begun.

        Raises:
            BackendError: no process can be started.
            Exception: what any other error was in a frame's preprocessing.
        """

    @abstractmethod
    def close(self) -> None:
        """End the threads or processes."""

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_decoder(workers: int, frames: ClipFrames | None = None) -> Decoder:
    """Return a decoder.

    Args:
        workers: processes; 0 for two threads of this process.
        frames: makes of each frame what is kept of it; without it frames are kept whole.

    Example:
        >>> with open_decoder(0) as decoder:
        ...     list(decoder.outcomes([]))
        []
    """
    return ProcessDecoder(workers, frames) if workers else ThreadDecoder(frames)


class ThreadDecoder(Decoder):
    """Two threads of this process."""

    def __init__(self, frames: ClipFrames | None) -> None:
        self._frames = frames
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="talik-media")

    def outcomes(self, requests: Iterable[DecodeRequest]) -> Iterator[tuple[DecodeRequest, MediaOutcome]]:
        """See `Decoder.outcomes`."""
        jobs = ((request, partial(self._decode, request)) for request in requests)
        return done_ahead(self._pool, jobs, most=2 * _THREADS)

    def _decode(self, request: DecodeRequest) -> MediaOutcome:
        frames = self._frames.of_clip(request.key, request.views) if self._frames and request.views else None
        return media_outcome(request.source, request.settings, frames)

    def close(self) -> None:
        """Wait for the clips in hand, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class _Worker:
    connection: Connection
    given: deque[int] = field(default_factory=deque)  # numbers, the one that it is at first


@dataclass(eq=False)
class _Session:
    """The requests of one iterator, by number."""

    taken: dict[int, DecodeRequest] = field(default_factory=dict)  # and not yielded yet
    waiting: deque[int] = field(default_factory=deque)  # to be given out
    lost: dict[int, int] = field(default_factory=dict)  # how often the worker of a clip died
    done: dict[int, MediaOutcome] = field(default_factory=dict)


class ProcessDecoder(Decoder):
    """Processes of their own, for PyAV's loop over packets holds Python's lock: threads do not share it out.

    One whose process dies (a crash of the decoder, too little memory) is decoded once more in another, and is then an
    outcome with an error that says so.

    Args:
        workers: how many.
        frames: see `open_decoder`.
    """

    def __init__(self, workers: int, frames: ClipFrames | None) -> None:
        self._num_workers = workers
        self._frames = pickle.dumps(frames)
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._workers: list[_Worker] = []
        self._replied = False  # whether any worker ever gave a clip
        self._closed = False
        self._session = _Session()  # of the iterator that the workers decode for

    def outcomes(self, requests: Iterable[DecodeRequest]) -> Iterator[tuple[DecodeRequest, MediaOutcome]]:
        """See `Decoder.outcomes`."""
        if any(worker.given for worker in self._workers):  # of an iterator that was left where it stood
            self._end()
        session = self._session = _Session()
        coming = enumerate(requests)
        turn, exhausted = 0, False
        try:
            while True:
                if self._session is not session:
                    raise BackendError("another iterator of this decoder was begun before this one ended")
                while not exhausted and len(session.taken) < (_QUEUED + _AHEAD) * self._num_workers:
                    number, request = next(coming, (-1, None))
                    exhausted = request is None
                    if request is not None:
                        session.taken[number] = request
                        session.waiting.append(number)
                if not session.taken:
                    return
                self._hand_out(session)
                self._receive(session, block=turn not in session.done)
                self._hand_out(session)
                if turn in session.done:
                    yield session.taken.pop(turn), session.done.pop(turn)
                    turn += 1
        finally:
            if self._session is session and any(worker.given for worker in self._workers):
                self._end()  # what they are at would be taken for answers to other requests

    def _hand_out(self, session: _Session) -> None:
        """Give clips to workers that have room, started where there are fewer than wanted."""
        while session.waiting:
            worker = min(self._workers, key=lambda one: len(one.given), default=None)
            if len(self._workers) < self._num_workers and (worker is None or worker.given):
                worker = self._start()
            assert worker is not None
            if len(worker.given) >= _QUEUED:
                return
            number = session.waiting.popleft()
            one = session.taken[number]
            message: Request = (number, one.source, one.settings, one.key, one.views)
            worker.given.append(number)
            with suppress(OSError):  # it is gone, as its socket will say
                worker.connection.send(message)

    def _receive(self, session: _Session, *, block: bool) -> None:
        """Take the outcomes that have come, and what workers that died had been given."""
        busy = {worker.connection: worker for worker in self._workers if worker.given}
        for ready in wait(list(busy), None if block else 0):
            worker = busy[ready]  # type: ignore[index]
            try:
                number, outcome = receive_outcome(worker.connection)
            except (EOFError, OSError, RuntimeError):
                self._bury(worker, session)
                continue
            self._replied = True
            worker.given.remove(number)
            if isinstance(outcome, Exception):
                raise outcome
            session.done[number] = outcome

    def _bury(self, worker: _Worker, session: _Session) -> None:
        """Forget a worker that died; the clip that it was at is tried once more."""
        self._workers.remove(worker)
        worker.connection.close()
        assert self._server is not None
        if not self._replied and self._server.poll() is not None:
            raise _not_started()
        first, *others = worker.given
        session.waiting.extendleft(reversed(others))
        session.lost[first] = session.lost.get(first, 0) + 1
        if session.lost[first] < _ATTEMPTS:
            session.waiting.appendleft(first)
            return
        source = session.taken[first].source
        path = film_path(source)
        error = MediaError(
            f"{path}: each of {_ATTEMPTS} processes that decoded it died: the decoder crashed, or memory ran out"
        )
        session.done[first] = MediaOutcome(path=path, media=None, error=error)

    def _start(self) -> _Worker:
        """Have a worker forked."""
        if self._closed:
            raise BackendError("the processes that decode were ended")
        ours, theirs = Pipe()
        for attempt in range(2):
            try:
                if self._control is None:
                    self._start_server()
                assert self._control is not None
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
                break
            except OSError:
                if attempt or not self._replied:
                    raise _not_started() from None
                self._end_server()
        theirs.close()
        worker = _Worker(ours)
        self._workers.append(worker)
        return worker

    def _start_server(self) -> None:
        self._control, theirs = socket.socketpair()
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "talik.extract.media.decode_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **one, "CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,  # so that it and its workers end at once, and by us alone
            )
        self._control.sendall(len(self._frames).to_bytes(8, "little") + self._frames)

    def _end_server(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def close(self) -> None:
        """Kill the processes."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._end_server()
        for worker in self._workers:
            worker.connection.close()
        self._workers = []


def _not_started() -> BackendError:
    return BackendError(
        "the processes that decode cannot be started (what they said stands above); set workers = 0 in [extract], or "
        "--workers 0, to decode in this process"
    )
