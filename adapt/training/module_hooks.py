"""What an adapter may do while it is trained: methods that it has or has not, called at their places by the training.

begin_training(total_steps)    before the first step, with the number of optimiser steps in all
extra_loss() -> Tensor | None  added to the loss of each step
after_step(step)               after each optimiser step (from 0), its gradients still there
training_state() -> tensors    what an exact resume needs beside parameters and buffers
load_training_state(tensors)   puts it back

Training by several processes (`distributed`) takes an `extra_loss` only of an adapter that says
`mixes_questions = False`: what it adds is of parameters alone, or a mean over the batch's questions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..model.joint_model import JointModel


def begin_training(model: JointModel, total_steps: int) -> None:
    """Tell the adapter how many optimiser steps there will be."""
    _call(model, "begin_training", total_steps)


def extra_loss(model: JointModel, loss: Tensor) -> Tensor:
    """The loss with what the adapter adds to it."""
    more = _call(model, "extra_loss")
    return loss if more is None else loss + more


def after_step(model: JointModel, step: int) -> None:
    """Tell the adapter that an optimiser step was taken, before its gradients go."""
    _call(model, "after_step", step)


def training_state(model: Any) -> dict[str, Tensor]:
    """The adapter's state beside its parameters, {} where it has none."""
    return _call(model, "training_state") or {}


def load_training_state(model: Any, state: dict[str, Tensor]) -> None:
    """Put back what `training_state` gave."""
    if state:
        _call(model, "load_training_state", state)


def _call(model: Any, name: str, *args: Any) -> Any:
    method = getattr(getattr(model, "adapter", None), name, None)
    return method(*args) if callable(method) else None
