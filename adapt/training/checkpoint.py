"""A training run's whole state as safetensors and JSON: weights, optimiser, random state, position; no pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...cache.atomic_io import sync_file, sync_folder
from ...errors import RunError
from ..model.joint_model import JointModel
from .ema import Averages
from .run_folder import writing


def save_checkpoint(
    folder: Path,
    *,
    model: JointModel,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: dict[str, Any],
    averages: Averages | None = None,
) -> None:
    """Write the checkpoint beside its place and move it there, so that a kill leaves the old one or the new one.

    Args:
        folder: the checkpoint's folder.
        model: whose `state_dict()` is what is trained.
        optimizer: AdamW; its moments and steps are kept.
        best: the weights of the best epoch so far, empty before the first validation.
        progress: JSON: the epoch, the step, the history.
        averages: of the weights, where they are kept.
    """
    with writing(folder):
        partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in best.items()}
        tensors |= _optimizer_tensors(optimizer)
        tensors |= {f"average.{k}": v for k, v in (averages.state() if averages else {}).items()}
        adapter_state = {} if model.adapter is None else model.adapter.training_state()
        tensors |= {f"adapter.{k}": v for k, v in adapter_state.items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial / "state.safetensors")
        (partial / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
        for written in (partial / "state.safetensors", partial / "progress.json", partial):
            sync_file(written)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, *, model: JointModel, optimizer: torch.optim.Optimizer, averages: Averages | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Bring model, optimiser, averages and random state to what they were; return the best weights and the progress.

    Raises:
        RunError: the checkpoint is torn or belongs to another model.
    """
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # killed between the two renames
        old.rename(folder)
    try:
        tensors = load_file(folder / "state.safetensors")
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        model.load_state_dict(_under(tensors, "model."))
        _load_optimizer(optimizer, _under(tensors, "optimizer."))
        if model.adapter is not None and (adapter_state := _under(tensors, "adapter.")):
            model.adapter.load_training_state(adapter_state)
        if averages is not None:
            averages.load(_under(tensors, "average."))
        torch.set_rng_state(tensors["rng.cpu"])
        if torch.cuda.is_available() and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])
    except Exception as error:
        raise RunError(
            f"{folder}: the checkpoint cannot be read ({error}); remove the run's folder and start again"
        ) from error
    return _under(tensors, "best."), progress


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    out = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            out[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return out


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
