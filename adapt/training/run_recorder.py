"""What a run writes for its reader: metrics, predictions, the result, and the scalars of TensorBoard and W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.experiment import LogSettings
from ..scoring.metrics import validation_of
from ..scoring.predictions import Prediction, prediction_records, score_records
from .checkpoint import EpochRecord
from .loggers import open_scalars
from .run_folder import RunFolder


def epoch_line(history: Sequence[EpochRecord]) -> str:
    """Return the last epoch's losses in a line for a progress bar, "" before the first.

    >>> epoch_line([])
    ''
    >>> epoch_line([{"event": "epoch", "epoch": 1, "step": 9, "train_loss": 0.5, "val_loss": 0.6,
    ...              "val_accuracy": 0.25, "lr": 1e-3, "seconds": 2.0}])
    'epoch 1, loss 0.500, val 25.0 %'
    """
    if not history:
        return ""
    last = history[-1]
    validation = 100 * (validation_of(last) or 0.0)
    return f"epoch {last['epoch']}, loss {last['train_loss']:.3f}, val {validation:.1f} %"


class RunRecorder:
    """Writes a run's numbers into its folder and to the loggers that the experiment names.

    Args:
        folder: the run's, prepared.
        name: of the run, unique in the experiment, for the loggers.
        config: the run's settings, for the loggers.
        log: which loggers.
        history: the records of the epochs so far; the trainer appends to it.

    Raises:
        RunError: a logger's package is not installed, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        name: str,
        config: Mapping[str, Any],
        log: LogSettings,
        history: Sequence[EpochRecord],
    ) -> None:
        self.folder, self.history = folder, history
        self._scalars = open_scalars(log, folder.path, name=name, config=config, history=history)

    def record_epoch(self) -> None:
        """Write the last epoch of the history to metrics.jsonl and to the loggers."""
        self.folder.write_lines("metrics.jsonl", self.history)
        for scalars in self._scalars:
            scalars.write(self.history[-1])

    def record_result(
        self,
        predictions: Sequence[Prediction],
        *,
        task: str,
        classes: Sequence[str] = (),
        split: str,
        facts: Mapping[str, Any],
    ) -> None:
        """Write predictions.jsonl, the last line of metrics.jsonl and, last, result.json; close the loggers.

        Args:
            predictions: of the split that the finished run is scored on.
            task: the kind of task, which decides what is counted.
            classes: the run's answers, in the order of its classes; needed for multi-label answers.
            split: its name.
            facts: what result.json says beside the scores; among them `best_epoch`, `seconds`, `trainable_params` and
                `all_params`.
        """
        records = prediction_records(predictions)
        self.folder.write_lines("predictions.jsonl", records)
        last = {k: facts[k] for k in ("best_epoch", "seconds", "trainable_params", "all_params")}
        self.folder.write_lines("metrics.jsonl", [*self.history, {"event": "done", **last}])
        self.folder.write_json(
            "result.json", {"split": split, **score_records(records, kind=task, classes=classes), **facts}
        )
        for scalars in self._scalars:
            scalars.close()
