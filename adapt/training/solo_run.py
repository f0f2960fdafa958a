"""One variant trained by itself: epochs, batches, evaluation, the end; a signal ends it early, with a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ...progress import progress_bar
from ..scoring.predictions import Prediction
from .stop_signals import GOES_ON, StopRequested, StopSignals
from .trainer import Trainer


def train_alone(trainer: Trainer, *, progress: bool = True, stop: StopSignals | None = None) -> None:
    """Train to the last epoch, or until validation stops improving; then score the best epoch's weights.

    A run that is paused before (see `Trainer.paused`) keeps its checkpoint and is not scored.

    Args:
        trainer: brought to its checkpoint where it has one.
        progress: show a tqdm bar that counts questions.
        stop: signals that end the process between two batches, when a checkpoint is written.

    Raises:
        RunError: the loss is not finite, or the disk refuses a file.
        KeyboardInterrupt, SystemExit: a signal has come (see `StopSignals.leave`).
    """
    _SoloRun(trainer, stop or StopSignals()).run(progress=progress)


class _SoloRun:
    def __init__(self, trainer: Trainer, stop: StopSignals) -> None:
        self.trainer, self.stop = trainer, stop

    def run(self, *, progress: bool) -> None:
        trainer = self.trainer
        total, done = trainer.data.questions_per_epoch * trainer.settings.epochs, trainer.questions_done
        with (
            progress_bar(total=total, initial=done, desc=trainer.label, unit=" questions", disable=not progress) as bar,
            trainer.own_random_stream(),
        ):
            bar.set_postfix_str(trainer.last_validation, refresh=False)
            while not (trainer.ended or trainer.paused):
                self.started = time.perf_counter()
                trainer.begin_epoch()
                self._train_epoch(bar)
                trainer.check_losses()
                predictions = self._answers("val", self._save)
                trainer.end_epoch(predictions, seconds=time.perf_counter() - self.started)
                bar.set_postfix_str(trainer.last_validation)
            if trainer.paused:
                return
            self.started = time.perf_counter()
            trainer.load_best_weights()
            predictions = self._answers(trainer.data.final_split)
            trainer.finish(predictions, seconds=time.perf_counter() - self.started)

    def _train_epoch(self, bar: Any) -> None:
        """Train on the epoch's batches; a signal that comes while one is waited for takes effect at once."""
        while True:
            try:
                for index, batch in enumerate(self.trainer.train_batches(), self.trainer.progress.batch):
                    self.trainer.step(batch)
                    bar.update(self.trainer.data.batch_size(index))
                    self._keep_position()
                return
            except StopRequested:
                self._save()
                self._leave()

    def _keep_position(self) -> None:
        """Between two batches: save a checkpoint if one is due or a signal has come, and let the signal take effect."""
        processes = self.trainer.processes
        if processes.size > 1 and not self.trainer.gradients.between_steps:  # each process has its own
            return
        due, signum = processes.largest([self.trainer.save_is_due, self.stop.signum])
        if due or signum:
            self._save()
        if signum:
            self.stop.signum = signum
            self._leave()

    def _save(self) -> None:
        self.trainer.save_position(seconds=time.perf_counter() - self.started)

    def _leave(self) -> None:
        trainer = self.trainer
        said = f"{trainer.folder.path}: stopped by {self.stop.name} {trainer.position}; {GOES_ON}"
        self.stop.leave(said if trainer.processes.leads else "")

    def _answers(self, split: str, save: Callable[[], None] = lambda: None) -> list[Prediction]:
        """Answer a split; a signal ends that at the next batch, with a checkpoint that goes on before the first one."""
        while True:
            before = self.trainer.random_position
            try:
                return self.trainer.evaluate(split, self.stop)
            except StopRequested:
                self.trainer.random_position = before
                save()
                self._leave()
