"""A training's whole state as safetensors and JSON: weights, optimiser, random state, position; no pickle."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from ...cache.atomic_io import sync_file, sync_folder
from ...errors import RunError
from ..model.joint_model import JointModel
from .optimizer import Averages
from .random_stream import derived_seed, set_torch_state, torch_state
from .run_folder import writing


class EpochRecord(TypedDict):
    """One epoch's line of metrics.jsonl; `step` counts optimiser steps from the start of the training.

    The validation is `val_accuracy` or, of multi-label answers, `val_map`.
    """

    event: str
    epoch: int
    step: int
    train_loss: float
    val_loss: float
    val_accuracy: NotRequired[float]
    val_map: NotRequired[float]
    lr: float
    seconds: float


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        best_epoch: the epoch, from 1, with the best validation; 0 before the first.
        best_accuracy: its accuracy, or mAP of multi-label answers, 0 to 1; -1 before the first.
        best_loss: its validation loss.
        seconds: wall time of all epochs.
        history: one record an epoch.
        batch: batches done of the epoch that is not done; this, and what follows, as of the last checkpoint.
        epoch_seconds: wall time of that epoch.
        step_losses: mean loss of each of its optimiser steps.
        held: questions and loss of each of its batches whose gradient waits for the optimiser step.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    batch: int = 0
    epoch_seconds: float = 0.0
    step_losses: list[float] = field(default_factory=list)
    held: list[tuple[int, float]] = field(default_factory=list)

    def add_epoch(
        self, *, train_loss: float, val_loss: float, validation: float, metric: str, lr: float, seconds: float
    ) -> bool:
        """Count an epoch and record it; return whether its validation is the best so far.

        Args:
            train_loss, val_loss: means over the epoch, and over the validation split.
            validation: by the task's metric, 0 to 1.
            metric: its name.
            lr: of the last step.
            seconds: wall time of the epoch.
        """
        self.epoch += 1
        self.batch, self.epoch_seconds, self.step_losses, self.held = 0, 0.0, [], []
        self.seconds += seconds
        improved = (validation, -val_loss) > (self.best_accuracy, -self.best_loss)
        if improved:
            self.best_accuracy, self.best_loss, self.best_epoch = validation, val_loss, self.epoch
        record = {
            "event": "epoch",
            "epoch": self.epoch,
            "step": self.step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            f"val_{metric}": validation,
            "lr": lr,
            "seconds": seconds,
        }
        self.history.append(cast(EpochRecord, record))
        return improved


class Checkpointer:
    """Saves the exact state of a training to a folder, and restores it.

    The folder holds state.safetensors (tensors by `model.*`, `best.*`, `optimizer.*`, `gradient.*`, `average.*`,
    `adapter.*`, `rng.*`) and progress.json.

    Args:
        folder: the checkpoint's folder; it need not exist.
        model: whose `state_dict()` is what is trained.
        optimizer: AdamW; its moments and steps are kept.
        averages: of the weights, where they are kept.
        device: the random state of whose generator is kept beside the CPU's.
        rank: of several processes that train together, this one's number.
    """

    def __init__(
        self,
        folder: Path,
        model: JointModel,
        optimizer: torch.optim.Optimizer,
        averages: Averages | None = None,
        *,
        device: str = "cpu",
        rank: int = 0,
    ) -> None:
        self.folder, self.model, self.optimizer, self.averages = folder, model, optimizer, averages
        self.device, self.rank = device, rank

    @property
    def _old(self) -> Path:
        return self.folder.with_name(self.folder.name + ".old")

    def save(
        self, progress: Progress, best: Mapping[str, Tensor], *, others: Sequence[Mapping[str, Tensor]] = ()
    ) -> None:
        """Write the checkpoint beside its place and move it there; a kill leaves the old one or the new one.

        The random state is that of torch's generators at the call.

        Args:
            progress: where the training stands.
            best: the weights of the best epoch so far, empty before the first validation.
            others: the random states of the other processes that train together, from that of rank 1 on.

        Raises:
            RunError: the disk refuses it.
        """
        with writing(self.folder):
            partial = self.folder.with_name(self.folder.name + ".partial")
            for leftover in (partial, self._old):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir(parents=True)
            found = self._tensors(best, gradients=bool(progress.held))
            found |= {f"rng.{rank}.{kind}": v for rank, state in enumerate(others, 1) for kind, v in state.items()}
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in found.items()}
            save_file(tensors, partial / "state.safetensors")
            (partial / "progress.json").write_text(json.dumps(vars(progress)), encoding="utf-8")
            for written in (partial / "state.safetensors", partial / "progress.json", partial):
                sync_file(written)
            if self.folder.exists():
                self.folder.rename(self._old)
            partial.rename(self.folder)
            sync_folder(self.folder.parent)
            shutil.rmtree(self._old, ignore_errors=True)

    def load(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """Restore model, optimiser, averages and torch's random state; return the progress and the best weights.

        Returns:
            None where there is no checkpoint.

        Raises:
            RunError: the checkpoint is damaged or belongs to another model.
        """
        if not self.folder.exists() and self._old.exists():  # killed between the two renames
            self._old.rename(self.folder)
        if not self.folder.exists():
            return None
        try:
            tensors = load((self.folder / "state.safetensors").read_bytes())
            progress = Progress(**json.loads((self.folder / "progress.json").read_text(encoding="utf-8")))
            self._restore(tensors)
        except Exception as error:
            raise RunError(
                f"{self.folder}: the checkpoint cannot be read ({error}); train the run anew with --retrain"
            ) from error
        return progress, _under(tensors, "best.")

    def clear(self) -> None:
        """Remove the checkpoint; a finished run needs none."""
        for folder in (self._old, self.folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _tensors(self, best: Mapping[str, Tensor], *, gradients: bool) -> dict[str, Tensor]:
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        found |= {f"best.{k}": v for k, v in best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        found |= {f"average.{k}": v for k, v in (self.averages.state() if self.averages else {}).items()}
        adapter = self.model.adapter
        found |= {f"adapter.{k}": v for k, v in (adapter.training_state() if adapter else {}).items()}
        if gradients:
            found |= {f"gradient.{k}": p.grad for k, p in self.model.named_parameters() if p.grad is not None}
        return found | {f"rng.{kind}": state for kind, state in torch_state(self.device).items()}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(_under(tensors, "model."))
        state: dict[int, dict[str, Any]] = {}
        for key, value in _under(tensors, "optimizer.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        adapter_state = _under(tensors, "adapter.")
        if self.model.adapter is not None and adapter_state:
            self.model.adapter.load_training_state(adapter_state)
        if self.averages is not None:
            self.averages.load(_under(tensors, "average."))
        gradients = _under(tensors, "gradient.")
        for name, parameter in self.model.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter)
        random = _under(tensors, f"rng.{self.rank}." if self.rank else "rng.")
        if random:
            set_torch_state(self.device, random)
        else:  # of a process more than there were
            torch.manual_seed(derived_seed(self.rank, "dropout of one process more"))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
