"""How every command behaves: its verbosity, its errors in one line, its exit code."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from tqdm import tqdm
from typer.core import TyperCommand
from typer.main import get_command

from ..errors import TalikError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
_ENDED = (138, 143)  # by SIGUSR1, SIGTERM, when what was in hand is saved

#: Printed below the help of the whole command line, and stated in docs/commands.md.
EXIT_CODES = (
    f"Exit codes: {DONE} done; {FAILED} an error, which is the last line on stderr, or runs that failed; "
    f"{MISUSED} a command line that cannot be understood; {INTERRUPTED} interrupted by Ctrl-C; "
    f"{_ENDED[0]} and {_ENDED[1]} training ended by SIGUSR1 and SIGTERM, with a checkpoint."
)

#: The class of errors of a command line: click's, or that of typer's own copy of click.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


#: Modules whose notes below a warning are shown with -v alone.
_DETAILS = ("talik.adapt.scan", "talik.extract.encoders", "talik.cache")


class Notes(logging.Handler):
    """Writes log records to stderr, above progress bars that are there.

    Args:
        verbose: write the records of `_DETAILS` too.
    """

    def __init__(self, *, verbose: bool) -> None:
        super().__init__()
        self.verbose = verbose

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass over what only those want to know who ask for more: which implementation of a part runs, and why."""
        details = record.levelno < logging.WARNING and record.name.startswith(_DETAILS)
        return super().filter(record) is not False and (self.verbose or not details)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextmanager
def notes_shown(*, verbose: int = 0, quiet: bool = False) -> Iterator[None]:
    """Have the records of talik's loggers written to stderr: notes, warnings alone if quiet, all if verbose.

    Args:
        verbose: 1 shows talik's debug records with the names of their modules, 2 other libraries' records as well.
        quiet: show warnings and errors alone.
    """
    shown = logging.getLogger() if verbose > 1 else logging.getLogger("talik")
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = Notes(verbose=verbose > 0)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"))
    before = shown.level
    shown.addHandler(handler)
    shown.setLevel(level)
    try:
        yield
    finally:
        shown.removeHandler(handler)
        shown.setLevel(before)


def _verbosity(
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Say more, with the module that says it; twice: other libraries too.",
        ),
    ] = 0,
) -> None:
    """Take the option that every command has."""


_shared = typer.Typer(add_completion=False)
_shared.command()(_verbosity)


class Command(TyperCommand):
    """A command that also takes `-v`, and shows notes according to it and to `--quiet`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = get_command(_shared).params
        self.params = [*self.params, *(option for option in own if option.name == "verbose")]

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with notes_shown(verbose=ctx.params.pop("verbose", 0), quiet=bool(ctx.params.get("quiet"))):
            return super().invoke(ctx)


def run_command_line(app: typer.Typer) -> None:
    """Run the command line; talik's own errors end it in one line, anything else is a bug and shows its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of any encoding shows what it lacks by its escape
            stream.reconfigure(errors="backslashreplace")
    interrupted: list[int] = []
    atexit.register(_leave_if, interrupted)  # the first registered is the last called
    try:
        code = get_command(app).main(prog_name="talik", standalone_mode=False)
    except TalikError as error:
        _end(str(error), FAILED)
    except _UsageError as error:
        _end(_told(error), MISUSED)
    except (typer.Abort, KeyboardInterrupt):
        _end("stopped: not confirmed", FAILED)
    except SystemExit as ended:
        interrupted += [code for code in _ENDED if ended.code == code]
        raise
    interrupted += [INTERRUPTED] * (code == INTERRUPTED)
    sys.exit(code if isinstance(code, int) else DONE)


def _end(message: str, code: int) -> None:
    if message:
        typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _told(error: Any) -> str:
    """Return what is wrong with a command line, with the nearest known word and where help is; "" after the help."""
    said = " ".join(str(error.format_message()).split()).rstrip(".")
    if not said:  # a command that shows its help where nothing is asked of it
        return ""
    near = list(getattr(error, "possibilities", None) or ())
    if near:
        said = f"No such option: {error.option_name}; did you mean {near[0]}?"
    command = "talik" if error.ctx is None else error.ctx.command_path
    return f"{said[0].lower()}{said[1:]} (see {command} --help)".replace(". Did you mean", "; did you mean")


def _leave_if(interrupted: list[int]) -> None:
    """End the process without taking the interpreter down: freeing the modules of torch takes a second or more."""
    if interrupted:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(interrupted[0])
