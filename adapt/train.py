"""Training of one variant: AdamW, warm-up and cosine, validation with early stop, exact resume, results by type."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..cache.errors import RunError
from ..cache.settings import to_mapping
from ..extract.manifest.types import Question
from .answering import Prediction, answer, forward, prediction_records, score_records
from .checkpoint import load_checkpoint, save_checkpoint
from .experiment import Experiment, TrainSettings, VariantSettings, load_experiment
from .joint import JointModel
from .params import count_parameters, parameter_groups
from .runfolder import RunFolder
from .save import save_adapter
from .sources import CachedSource
from .workbench import Workbench, derived_seed


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run left.

    Args:
        folder: the run's folder.
        accuracy: of the best epoch's weights on the test split, 0 to 1; on validation where there is no test split.
        seconds: wall time of training and of the final evaluation.
        trainable_params: number of trained parameters, adapter and head.
        skipped: the run had ended before, and nothing was done.
    """

    folder: Path
    accuracy: float
    seconds: float
    trainable_params: int
    skipped: bool = False


def adapt(
    experiment: Experiment | Path | str,
    *,
    variant: str,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    workbench: Workbench | None = None,
) -> RunResult:
    """Train one variant of an experiment on the cached states, and evaluate it.

    Args:
        experiment: an experiment's TOML, or the experiment itself.
        variant: the name of one of its variants.
        seed: of the weights, the order of the data and dropout.
        resume: go on with an unfinished run of the same settings.
        device: where it runs.
        progress: show tqdm bars.
        workbench: the opened encoders and store of this experiment, shared by several runs.

    Raises:
        SettingsError, ManifestError, StoreError: what the experiment names is not there or does not fit.
        RunError: the run's folder is another run's, or training diverged.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    chosen = experiment.variant(variant)
    folder = RunFolder(experiment.runs / chosen.name / f"seed{seed}")
    settings = experiment.train_settings(chosen)
    folder.begin(run_config(experiment, chosen, settings, seed), resume=resume)
    if folder.done:
        return _result(folder, skipped=True)
    if settings.num_threads and device == "cpu":
        torch.set_num_threads(settings.num_threads)
    bench = workbench or Workbench(experiment, device=device)
    run = _Training(bench, chosen, settings, seed, folder, progress=progress)
    run.train()
    run.finish()
    return _result(folder)


def run_config(experiment: Experiment, variant: VariantSettings, train: TrainSettings, seed: int) -> dict[str, Any]:
    """Everything that a run depends on, as plain values: written into its folder."""
    extraction = experiment.extraction
    config: dict[str, Any] = {"experiment": experiment.name, "variant": variant.name, "seed": seed}
    for name, part in (("data", extraction.data), ("encoders", extraction.encoders), ("store", extraction.store)):
        config[name] = to_mapping(part)
    config["task"] = to_mapping(experiment.task)
    config["train"] = to_mapping(train)
    config["adapter"] = to_mapping(variant.adapter)
    config["insertion"] = to_mapping(variant.insertion if variant.insertion is not None else "none")
    config["placement"] = variant.placement
    return config


@dataclass
class _Progress:
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class _Training:
    def __init__(
        self,
        bench: Workbench,
        variant: VariantSettings,
        settings: TrainSettings,
        seed: int,
        folder: RunFolder,
        *,
        progress: bool,
    ) -> None:
        self.bench, self.settings, self.seed, self.folder, self.show = bench, settings, seed, folder, progress
        self.label = f"{variant.name}/seed{seed}"
        self.variant = variant
        self.model: JointModel = bench.build(variant, seed=seed)
        self.source: CachedSource = bench.cached(self.model)
        for note in self.model.insertions.notes:
            tqdm.write(f"{self.label}: {note}")
        self.questions = {s: self._stored(bench.questions(s)) for s in ("train", "val")}
        self.labels = {a: i for i, a in enumerate(bench.manifest.answers)}
        self.optimizer = torch.optim.AdamW(
            parameter_groups(
                self.model,
                lr=settings.lr,
                head_lr=settings.lr if settings.head_lr is None else settings.head_lr,
                weight_decay=settings.weight_decay,
            )
        )
        self.peak = [group["lr"] for group in self.optimizer.param_groups]
        self.at = _Progress()
        self.best: dict[str, Tensor] = {}
        torch.manual_seed(derived_seed(seed, "dropout"))

    def _stored(self, questions: Sequence[Question]) -> list[Question]:
        if not self.bench.experiment.extraction.data.allow_missing:
            return list(questions)
        return [q for q in questions if self.source.holds(q)]

    @property
    def steps_per_epoch(self) -> int:
        count, size = len(self.questions["train"]), self.settings.batch_size
        return max(1, count // size if self.settings.drop_last else math.ceil(count / size))

    def train(self) -> None:
        """Run the epochs that are left."""
        if self.folder.checkpoint.exists() or self.folder.checkpoint.with_name("checkpoint.old").exists():
            self.best, saved = load_checkpoint(self.folder.checkpoint, model=self.model, optimizer=self.optimizer)
            self.at = _Progress(**saved)
        total = self.settings.epochs * self.steps_per_epoch
        bar = tqdm(total=total, initial=self.at.step, desc=self.label, unit="batch", disable=not self.show)
        with bar:
            while self.at.epoch < self.settings.epochs and not self._out_of_patience():
                self._epoch(bar)
        self.model.load_state_dict(self.best)

    def _out_of_patience(self) -> bool:
        return 0 < self.settings.patience <= self.at.epoch - self.at.best_epoch

    def _epoch(self, bar: Any) -> None:
        started = time.perf_counter()
        self.model.train()
        losses: list[float] = []
        for batch in self.source.batches(self._order(self.at.epoch)):
            logits = self._forward(batch)
            labels = torch.tensor([self.labels[q.answer] for q in batch.questions], device=logits.device)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
            self._step(loss)
            losses.append(float(loss.detach()))
            bar.update(1)
        self.at.epoch += 1
        self._validate(sum(losses) / len(losses), started, bar)

    def _order(self, epoch: int) -> Iterator[list[Question]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order/{epoch}"))
        questions, size = self.questions["train"], self.settings.batch_size
        order = torch.randperm(len(questions), generator=generator).tolist()
        for start in range(0, self.steps_per_epoch * size, size):
            yield [questions[i] for i in order[start : start + size]]

    def _forward(self, batch: Any) -> Tensor:
        return forward(self.model, batch.states, self.bench.sampling.num_segments, amp=self.settings.amp)

    def _step(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise RunError(f"{self.label}: the loss is {float(loss)} at step {self.at.step}; lower lr or set clip_norm")
        scale = learning_rate_scale(
            self.at.step, total=self.settings.epochs * self.steps_per_epoch, warmup=self.settings.warmup
        )
        for group, peak in zip(self.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * scale
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.at.step += 1

    def _validate(self, train_loss: float, started: float, bar: Any) -> None:
        predictions = self._answers("val")
        accuracy = sum(p.correct for p in predictions) / len(predictions)
        loss = sum(-p.log_likelihood for p in predictions) / len(predictions)
        if (accuracy, -loss) > (self.at.best_accuracy, -self.at.best_loss):
            self.at.best_accuracy, self.at.best_loss, self.at.best_epoch = accuracy, loss, self.at.epoch
            self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        seconds = time.perf_counter() - started
        self.at.seconds += seconds
        self.at.history.append(
            {
                "event": "epoch",
                "epoch": self.at.epoch,
                "step": self.at.step,
                "train_loss": train_loss,
                "val_loss": loss,
                "val_accuracy": accuracy,
                "seconds": seconds,
            }
        )
        bar.set_postfix_str(f"loss {train_loss:.3f}, val {100 * accuracy:.1f} %")
        self.folder.write_lines("metrics.jsonl", self.at.history)
        save_checkpoint(
            self.folder.checkpoint,
            model=self.model,
            optimizer=self.optimizer,
            best=self.best,
            progress=dict(vars(self.at)),
        )

    def _answers(self, split: str) -> list[Prediction]:
        questions = self.questions.get(split) or self._stored(self.bench.questions(split))
        return answer(
            self.model,
            self.source,
            questions,
            answers=self.bench.manifest.answers,
            num_segments=self.bench.sampling.num_segments,
            batch_size=self.settings.eval_batch_size,
            amp=self.settings.amp,
        )

    def finish(self) -> None:
        """Write the weights, the test predictions and, last, the result."""
        started = time.perf_counter()
        split = "test" if "test" in self.bench.manifest.splits else "val"
        records = prediction_records(self._answers(split))
        seconds = self.at.seconds + time.perf_counter() - started
        trainable, every = count_parameters(self.model)
        save_adapter(self.folder, self.model, self.bench, self.variant, cuts=self.source.boundaries)
        self.folder.write_lines("predictions.jsonl", records)
        last = {"event": "done", "best_epoch": self.at.best_epoch, "seconds": seconds}
        counts = {"trainable_params": trainable, "all_params": every}
        self.folder.write_lines("metrics.jsonl", [*self.at.history, {**last, **counts}])
        self.folder.write_json(
            "result.json",
            {"split": split, **score_records(records), "seconds": seconds, "best_epoch": self.at.best_epoch, **counts},
        )
        self.folder.clear_checkpoint()


def learning_rate_scale(step: int, *, total: int, warmup: float) -> float:
    """The share of the peak rate at a step: a linear rise over `warmup` of all steps, then a cosine to zero."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _result(folder: RunFolder, *, skipped: bool = False) -> RunResult:
    found = folder.result()
    try:
        return RunResult(
            folder=folder.path,
            accuracy=float(found["accuracy"]),
            seconds=float(found["seconds"]),
            trainable_params=int(found["trainable_params"]),
            skipped=skipped,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.path / 'result.json'}: {json.dumps(str(error))} is missing or malformed") from None
