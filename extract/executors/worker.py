"""A worker process of this machine: `python -m talik.extract.executors.worker FD`, begun by `local` alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

from .tasks import Job, Task, perform


def main() -> None:
    """Do the tasks that come through the pipe until it is closed."""
    connection = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job: Job | None = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, Task):
            assert job is not None
            connection.send(perform(job, message))
        else:
            job = message


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
