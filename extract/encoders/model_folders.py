"""Folders of models and weights that a user names: found beside the experiment, or said not to be there.

What looks like a path is never asked of a hub; what may be either is a folder where there is one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ...errors import EncoderError


def find_model(spec: str, name: str, base: Path, *, whole: bool = True) -> str:
    """Return the folder that `name` means, as an absolute path, or `name` itself where it is a hub's.

    Args:
        spec: the encoder as the user wrote it, for messages.
        name: what stands in it behind the prefix: a path, or a name such as "org/model".
        base: the folder that relative paths count from.
        whole: the model is to be made from it, so that its configuration has to be there.

    Raises:
        EncoderError: a path without a folder, or a folder without a model.

    Example:
        >>> find_model("hf:google-bert/bert-base-uncased", "google-bert/bert-base-uncased", Path("/data"))
        'google-bert/bert-base-uncased'
    """
    folder = place_of(name, base)
    if folder.is_dir():
        if whole and not (folder / "config.json").is_file():
            adapter = (folder / "adapter_config.json").is_file()
            more = ", but an adapter of PEFT's: name the model, and the folder in weights" if adapter else ""
            raise EncoderError(f"{spec}: cannot be opened: the folder {folder} holds no config.json{more}")
        return str(folder)
    if folder.exists():
        raise EncoderError(f"{spec}: cannot be opened: {folder} is a file; expected a model's folder, with config.json")
    if not may_be_hub_name(name) or ("/" in name and place_of(name.partition("/")[0], base).is_dir()):
        raise EncoderError(f"{spec}: cannot be opened: there is no folder {folder}; expected one with config.json")
    if Path(name).is_dir():  # which transformers would take
        raise EncoderError(
            f"{spec}: cannot be opened: there is no folder {folder}; the one of that name in the working directory is "
            "not meant, since paths count from the experiment's file"
        )
    return name


def find_weights(spec: str, weights: str | Path, base: Path) -> Path:
    """Return the absolute path of a file of weights, or of a folder of them.

    Args:
        spec: the encoder as the user wrote it, for messages.
        weights: as the user wrote it.
        base: the folder that a relative path counts from.

    Raises:
        EncoderError: nothing is there.
    """
    path = place_of(weights, base)
    if not path.exists():
        raise EncoderError(
            f"{spec}: weights: {path}: no such file or folder; expected weights (.safetensors, .pt), or a model's or "
            "adapter's folder"
        )
    return path


def place_of(path: str | Path, base: Path) -> Path:
    """Return `path` as an absolute one; a relative one counts from `base`, ~ is the user's home."""
    try:
        path = Path(path).expanduser()
    except RuntimeError:  # the home of an unknown user
        path = Path(path)
    return (base / path).resolve()


def may_be_hub_name(name: str) -> bool:
    """Say whether `name` has the form of a hub's: "model" or "org/model"; paths have others."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith("~")


def hub_refusal(error: BaseException) -> str | None:
    """Return, in one clause, why a hub did not give a model; None where the error is of another kind."""
    from huggingface_hub import errors

    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    for one in chain:
        if isinstance(one, errors.GatedRepoError):
            return "the hub gives it to no one without access (it is gated)"
        if isinstance(one, errors.RevisionNotFoundError):
            return "the hub has no such revision of it"
        if isinstance(one, errors.RepositoryNotFoundError):
            return "the hub has no model of that name, or a private one"
    for one in chain:
        if isinstance(one, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
            return "the hub cannot be reached, and its cache on this machine has no model of that name"
    return None


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence what the hub's client says about its tries; an error says it in one line."""
    from huggingface_hub.utils import logging as hub_logging

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
