"""Signals that ask a training to end: the batch in hand is finished and a checkpoint written before it does.

Caught are Ctrl-C (SIGINT), SIGTERM, and SIGUSR1, which Slurm sends before a job's time ends (`--signal=USR1@120`). A
signal that another program of this process handles (submitit's SIGUSR2, which requeues its job) reaches that handler
when the checkpoint is written.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

GOES_ON = "a checkpoint is kept, and the same command goes on from it"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_OF_OTHERS = (signal.SIGUSR2,)  # caught where another program of this process handles it


class StopRequested(Exception):  # noqa: N818  (no error)
    """A signal has come while questions were answered; what was answered is left."""


class StopSignals:
    """Notes the signals that ask this process to end, while `caught` is open.

    Attributes:
        signum: the number of the signal that has come, 0 for none.

    >>> stop = StopSignals()
    >>> with stop.caught():
    ...     signal.raise_signal(signal.SIGTERM)
    ...     print(stop.signum == signal.SIGTERM)
    ...     stop.leave("the checkpoint is kept")
    Traceback (most recent call last):
    SystemExit: 143
    """

    def __init__(self) -> None:
        self.signum = 0
        self._former: dict[int, Any] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Note signals while this is open, in the main thread; one that is still pending at the end takes effect then.

        A second Ctrl-C interrupts at once. A signal that is ignored (as `nohup` has it) stays so.
        """
        for signum in (*_ENDING, *_OF_OTHERS) if threading.current_thread() is threading.main_thread() else ():
            former = signal.getsignal(signum)
            if callable(former) or (former is signal.SIG_DFL and signum in _ENDING):
                self._former[signum] = former
                signal.signal(signum, self._note)
        try:
            yield
        finally:
            for number, former in self._former.items():
                signal.signal(number, former)
        self.leave()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum

    @property
    def name(self) -> str:
        """The name of the signal that has come, "" for none."""
        return signal.Signals(self.signum).name if self.signum else ""

    def leave(self, said: str = "") -> None:
        """Let the signal that has come take effect: end the process, or call the handler that the signal had before.

        Nothing is done where none has come.

        Args:
            said: a line for stderr, whatever is logged where: a worker's log is read by nobody.

        Raises:
            KeyboardInterrupt: of SIGINT.
            SystemExit: of the others, with 128 and the signal's number: 143 of SIGTERM, 138 of SIGUSR1.
        """
        signum, self.signum = self.signum, 0
        if not signum:
            return
        if said:
            tqdm.write(said, file=sys.stderr)
        former = self._former.get(signum)
        if callable(former):
            former(signum, None)
        else:
            raise SystemExit(128 + signum)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End this process at once, by SystemExit, when SIGTERM or SIGUSR1 comes while this is open: others do the work."""

    def leave(signum: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    former: dict[int, Callable[..., Any] | int] = {}
    for signum in (signal.SIGTERM, signal.SIGUSR1) if threading.current_thread() is threading.main_thread() else ():
        if signal.getsignal(signum) is signal.SIG_DFL:
            former[signum] = signal.SIG_DFL
            signal.signal(signum, leave)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
