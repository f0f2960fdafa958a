"""A run's numbers for TensorBoard and for Weights & Biases, beside metrics.jsonl; both packages are optional.

Each epoch is one point at its optimiser step. Since metrics.jsonl holds every epoch so far, a resumed run writes
TensorBoard's file anew from there, and tells W&B what it has not heard: no step stands twice, whatever was interrupted.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ...cache.atomic_io import write_file
from ...errors import RunError
from ..config.experiment import LogSettings
from .run_folder import writing

NAMES = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "val_accuracy": "accuracy/val",
    "val_map": "map/val",
    "lr": "lr",
    "seconds": "seconds",
}


class Scalars(Protocol):
    """Takes the records of metrics.jsonl, one an epoch."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of one record."""

    def close(self) -> None:
        """Write what is buffered and end the logger."""


def open_scalars(
    settings: LogSettings,
    folder: Path,
    *,
    name: str,
    config: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> list[Scalars]:
    """Open what the settings ask for, with the epochs so far already written; [] where they ask for nothing.

    Args:
        settings: the experiment's.
        folder: the run's.
        name: of the run, unique in the experiment.
        config: the run's settings, as its folder has them.
        history: the records so far.

    Raises:
        RunError: a package that is not installed, or a folder that cannot be written.
    """
    opened: list[Scalars] = []
    if settings.tensorboard:
        opened.append(TensorBoard(folder / "tensorboard"))
    if settings.wandb:
        opened.append(Wandb(settings.wandb, folder, name=name, config=config))
    for record in history:
        for scalars in opened:
            scalars.write(record)
    return opened


class TensorBoard:
    """Writes events into a folder that TensorBoard reads; earlier events of the folder are removed."""

    def __init__(self, folder: Path) -> None:
        writer = _imported("torch.utils.tensorboard", extra="tensorboard").SummaryWriter
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            self._writer = writer(log_dir=str(folder))

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one epoch's numbers at its step."""
        for key, tag in NAMES.items():
            if key in record:
                self._writer.add_scalar(tag, record[key], record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Wandb:
    """A run in a project of W&B; the run's folder keeps its id, so that a resumed run goes on in the same one."""

    def __init__(self, project: str, folder: Path, *, name: str, config: Mapping[str, Any]) -> None:
        wandb = _imported("wandb", extra="wandb")
        self._run = wandb.init(
            project=project,
            name=name,
            id=_kept_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            reinit="create_new",  # several runs of one process are open at once
        )
        self._known = int(self._run.step)  # the first step that it has not heard of; 0 for a new run

    def write(self, record: Mapping[str, Any]) -> None:
        """Log one epoch's numbers at its step, unless they are known."""
        if record["step"] >= self._known:
            self._run.log({tag: record[key] for key, tag in NAMES.items() if key in record}, step=record["step"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def _kept_id(folder: Path) -> str:
    path = folder / "wandb-id.txt"
    if not path.is_file():
        with writing(path):
            write_file(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="utf-8")


def _imported(module: str, *, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise RunError(
            f"[log] {extra}: the package {extra!r} is not installed ({error}); pip install 'talik[{extra}]', or remove "
            "the key"
        ) from None
