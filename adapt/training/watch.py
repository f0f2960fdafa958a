"""Cheap checks at an epoch's end that say, once each, when a training goes nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..adapters.selection import Selection
from ..model.joint_model import JointModel
from ..scoring.metrics import validation_of
from .checkpoint import EpochRecord

_FLAT = 0.005  # of the loss, over the epochs that are looked at
_NEAR_ONE = 0.02  # that a gate may differ from 1 by at most


class TrainingWatch:
    """Looks at a run's epochs for signs that it learns nothing.

    Args:
        after: epochs before the first look; 0 never looks.
        blind: returns what the blind baseline scores on validation, 0 to 1; None where there is none. It is called
            once, at the first look.
        model: whose gates are looked at.

    Example:
        >>> watch = TrainingWatch(after=1, blind=lambda: 0.25, model=None)
        >>> watch.look([{"event": "epoch", "epoch": 1, "step": 9, "train_loss": 0.5, "val_loss": 0.6,
        ...              "val_accuracy": 0.25, "lr": 1e-3, "seconds": 2.0}])
        ['after epoch 1 the best validation, 25.0 %, has not left the blind baseline, 25.0 %']
    """

    def __init__(self, *, after: int, blind: Callable[[], float | None], model: JointModel | None) -> None:
        self._after, self._blind, self._model = after, blind, model
        self._checks = [self._blindness, self._flatness, self._gates]

    def look(self, history: Sequence[EpochRecord]) -> list[str]:
        """Return a line for each sign that is there after the last epoch; each comes once."""
        if not self._after or len(history) < self._after:
            return []
        found = [(check, check(history)) for check in self._checks]
        self._checks = [check for check, line in found if line is None]
        return [line for _, line in found if line]

    def _blindness(self, history: Sequence[EpochRecord]) -> str | None:
        """Compare validation with the blind baseline; "" ends the check without a line."""
        blind = self._blind()
        best = max(validation_of(record) or 0.0 for record in history)
        if blind is None or best > blind:
            return ""
        return (
            f"after epoch {len(history)} the best validation, {100 * best:.1f} %, has not left the blind baseline, "
            f"{100 * blind:.1f} %"
        )

    def _flatness(self, history: Sequence[EpochRecord]) -> str | None:
        losses = [record["train_loss"] for record in history[-max(2, self._after) :]]
        low, high = min(losses), max(losses)
        if len(losses) < 2 or high - low > _FLAT * abs(high):
            return None
        return f"the training loss is flat: {low:.4f} to {high:.4f} in the last {len(losses)} epochs"

    def _gates(self, history: Sequence[EpochRecord]) -> str | None:
        selections = [] if self._model is None else [m for m in self._model.modules() if isinstance(m, Selection)]
        if not selections:
            return ""
        largest = max(selection.largest_gate_change() for selection in selections)
        if largest > _NEAR_ONE:
            return ""
        near = f"within {100 * largest:.2g} % of 1"
        return f"after epoch {len(history)} every gate is {near}: the selection passes all tokens"
