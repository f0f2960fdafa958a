"""Every error that talik raises on purpose.

    TalikError
    ├── SettingsError(ValueError)        a key or value of an experiment or of a call
    │   └── PlugInError                  an installed package's entry point that cannot be loaded
    ├── ManifestError(ValueError)        annotations, questions, clips
    ├── MediaError(OSError)              one video or sound file
    │   └── MissingMediaError            files that are not there
    ├── EncoderError(ValueError)         a model that cannot be opened
    │   └── TrunkError                   a model that cannot be cut exactly
    ├── StoreError(OSError)              a feature store
    │   ├── StoreFormatError             a folder that is not (this version of) a store
    │   │   └── NoStoreError             nothing is there
    │   ├── StoreMismatchError           what is asked for is not what is stored
    │   ├── StoreLockedError             another process is writing
    │   ├── ObjectChangedError           another process has written an object of object storage
    │   ├── StoreFullError               the disk cannot hold it
    │   ├── MissingItemError             an item that was never extracted
    │   └── CorruptItemError             stored bytes that fail their checksum
    ├── NumericsError(ArithmeticError)   NaN, Inf or overflow in a state
    ├── BackendError(RuntimeError)       a backend that was asked for and cannot run
    └── RunError(RuntimeError)           a run folder, checkpoint or training run
        ├── RunDiffersError          a run folder that holds a run of other settings or data
        └── RunLockedError           a run that another process is training

A message says what was found, what was expected and what to do, in one line. Every class pickles, since an
error raised in a worker must reach its parent: arguments are plain strings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TalikError(Exception):
    """The root of the tree; the command line catches this class and nothing else.

    Example:
        >>> import talik
        >>> try:
        ...     talik.adapt("exp.toml", variant="trimodel")
        ... except talik.TalikError as error:
        ...     print(error)
        unknown variant 'trimodel'; did you mean 'trimodal'? (known: lora, probe, trimodal)
    """


class SettingsError(TalikError, ValueError):
    """A key or value that an experiment or a call cannot have."""


class PlugInError(SettingsError):
    """An installed package's entry point that cannot be loaded."""


class ManifestError(TalikError, ValueError):
    """Annotations that are malformed, or that name what is not there."""


class MediaError(TalikError, OSError):
    """A video or sound file that cannot be decoded as asked."""


class MissingMediaError(MediaError):
    """Media files that a manifest names and the disk does not have."""


class EncoderError(TalikError, ValueError):
    """A pretrained model that cannot be opened."""


class TrunkError(EncoderError):
    """A model that cannot be cut between units without changing its result."""


class StoreError(TalikError, OSError):
    """A feature store that cannot be read or written."""


class StoreFormatError(StoreError):
    """A folder that is not a talik store, or one of another format version."""


class NoStoreError(StoreFormatError):
    """A path or URL where there is no store."""


class StoreMismatchError(StoreError):
    """A request whose identity differs from what is stored."""


class StoreLockedError(StoreError):
    """A store that another process is writing."""


class ObjectChangedError(StoreError):
    """An object in object storage that is no longer what it was when it was looked at."""


class StoreFullError(StoreError):
    """A disk without room for what is to be written."""


class MissingItemError(StoreError):
    """An item that the store does not hold."""


class CorruptItemError(StoreError):
    """Stored bytes that do not match their checksum."""


class NumericsError(TalikError, ArithmeticError):
    """A state with NaN or Inf, or beyond the range of the storage data type."""


class BackendError(TalikError, RuntimeError):
    """A backend that was asked for by name and cannot run here."""


class RunError(TalikError, RuntimeError):
    """A run folder, checkpoint or training run that cannot go on."""


class RunDiffersError(RunError):
    """A run folder that holds a run of other settings or other data."""


class RunLockedError(RunError):
    """A run that another process is training."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one.

    >>> counted(1, "item"), counted(1200, "clip"), counted(0, "query")
    ('1 item', '1,200 clips', '0 queries')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the one-line message for a name that is not among `known`, with the nearest one first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})"


def name_item(error: Exception, item: str) -> None:
    """Put the name of what was in hand before an error's message, unless the message names it already.

    The error keeps its type, attributes and traceback, so that whoever catches it by type still does.

    Args:
        error: that leaves.
        item: a clip, a text, or several of a batch.

    Example:
        >>> error = ValueError("a plug-in's message")
        >>> name_item(error, "clips/a.mp4")
        >>> str(error)
        "clips/a.mp4: a plug-in's message"
    """
    if item in str(error):
        return
    if isinstance(error, OSError) and error.strerror is not None:
        error.strerror = f"{item}: {error.strerror}"
    elif isinstance(error, UnicodeError) and hasattr(error, "reason"):
        error.reason = f"{item}: {error.reason}"
    elif len(error.args) <= 1:
        error.args = (f"{item}: {error}" if error.args else item,)
    if item not in str(error):
        error.add_note(f"in hand: {item}")
