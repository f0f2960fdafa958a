"""Successive halving of a sweep: at each rung the variants are ranked by validation, and the worse ones stop there.

What is decided depends on the validation of the epochs up to the rung alone, as the runs' folders hold it: not on the
time that anything took, on the number of processes, or on kills. A variant's score is its best epoch so far, by
accuracy, the mean over its seeds; equal accuracies are ranked by the mean loss, and then in the file's order. All seeds
of a variant stop, or none. A variant whose runs failed is ranked last. What was stopped stays stopped when variants are
added to the file; a new one is ranked among all that were at the rung.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ...errors import RunError
from ..config.experiment import Experiment
from ..config.sweep_settings import HalvingSettings
from ..scoring.metrics import validation_of
from ..training.run_folder import RunFolder
from ..training.stopped_runs import Stopped, read_stopped, write_stopped


@dataclass(frozen=True, kw_only=True)
class Score:
    """A variant's validation at a rung, means over seeds of each one's best epoch so far.

    Attributes:
        accuracy: 0 to 1; of multi-label answers their mAP. loss: of the same epochs.
        seeds: that count; not those that failed.
    """

    accuracy: float
    loss: float
    seeds: tuple[int, ...]


def rank(scores: Mapping[str, Score | None]) -> list[str]:
    """Return the variants from the best to the worst; those without a score last.

    >>> a, b = Score(accuracy=0.5, loss=1.0, seeds=(0,)), Score(accuracy=0.5, loss=0.9, seeds=(0,))
    >>> rank({"failed": None, "one": a, "other": b, "same": a})
    ['other', 'one', 'same', 'failed']
    """

    def key(name: str) -> tuple[float, float]:
        score = scores[name]
        return (math.inf, math.inf) if score is None else (-score.accuracy, score.loss)

    return sorted(scores, key=key)


def mean_score(best: Mapping[int, tuple[float, float]]) -> Score | None:
    """Return the means over seeds of accuracy and loss; None of no seed.

    >>> mean_score({0: (0.5, 1.0), 1: (0.25, 2.0)})
    Score(accuracy=0.375, loss=1.5, seeds=(0, 1))
    """
    if not best:
        return None
    accuracy, loss = (math.fsum(values) / len(best) for values in zip(*best.values(), strict=True))
    return Score(accuracy=accuracy, loss=loss, seeds=tuple(best))


def num_kept(num_variants: int, keep: float) -> int:
    """Return how many of a rung's variants go on: their share, rounded up, at least one.

    >>> [num_kept(n, 0.5) for n in (24, 7, 1)], num_kept(10, 0.3)
    ([12, 4, 1], 3)
    """
    return max(1, math.ceil(round(num_variants * keep, 9)))


def longest_training(experiment: Experiment, names: Sequence[str]) -> int:
    """Return the largest number of epochs that one of the variants trains."""
    return max(experiment.train_settings(experiment.variant(name)).epochs for name in names)


def best_until(folder: RunFolder, epoch: int) -> tuple[float, float] | None:
    """Return accuracy and loss of a run's best validation up to an epoch; None of one that has not come there.

    Raises:
        RunError: a malformed metrics.jsonl.
    """
    path = folder.path / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        history = [line for line in lines if line.get("event") == "epoch"]
        found = [(_validation(e), float(e["val_loss"])) for e in history if e["epoch"] <= epoch]
        reached = max((int(e["epoch"]) for e in history), default=0)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not as training writes it ({error!r}); train the run anew with --retrain") from None
    if not found or (reached < epoch and not folder.done):
        return None
    return max(found, key=lambda pair: (pair[0], -pair[1]))


def _validation(record: Mapping[str, object]) -> float:
    found = validation_of(record)
    if found is None:
        raise KeyError("val_accuracy")
    return found


def trained_folder(experiment: Experiment, name: str, seed: int) -> RunFolder:
    """Return the folder in which a run of a sweep is trained: that of a retraining while there is one."""
    folder = RunFolder(experiment.runs / name / f"seed{seed}")
    return folder.retrained


@dataclass
class Halving:
    """The decisions of one sweep.

    Args:
        experiment: its folders hold the runs.
        names: all variants of the sweep, in order.
        seeds: all seeds of the sweep.
        settings: share and rungs.

    Attributes:
        rungs: epochs after which variants are stopped.
        stopped: by variant, the rung at which it was stopped.
    """

    experiment: Experiment
    names: Sequence[str]
    seeds: Sequence[int]
    settings: HalvingSettings
    stopped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rungs = self.settings.epochs(longest_training(self.experiment, self.names))
        for name in self.names:
            rungs = [self._recorded(name, seed) for seed in self.seeds]
            if None not in rungs:  # a kill may have come between the records of two seeds; then it is decided again
                self.stopped[name] = min(rung for rung in rungs if rung is not None)

    @property
    def alive(self) -> list[str]:
        """The variants that were not stopped, in order."""
        return [name for name in self.names if name not in self.stopped]

    def decide(self, rung: int, *, failed: set[tuple[str, int]]) -> list[str]:
        """Stop the variants that are behind at a rung, write so into their folders, and return them.

        Args:
            rung: epochs; every run of a variant that is alive has come there, has ended or failed.
            failed: (variant, seed) of runs that failed.
        """
        here = [name for name in self.names if self.stopped.get(name, rung) >= rung]
        scores = {name: self._score(name, rung, failed) for name in here}
        order = rank(scores)
        kept = order[: num_kept(len(here), self.settings.keep)]
        out = [name for name in self.alive if name not in kept and scores[name] is not None]
        for name in out:
            self.stopped[name] = rung
            self._record(name, rung, scores, order, len(kept))
        return out

    def _score(self, name: str, rung: int, failed: set[tuple[str, int]]) -> Score | None:
        found = {}
        for seed in self.seeds:
            best = best_until(trained_folder(self.experiment, name, seed), rung)
            if best is not None and (name, seed) not in failed:
                found[seed] = best
        return mean_score(found)

    def _record(self, name: str, rung: int, scores: Mapping[str, Score | None], order: Sequence[str], num: int) -> None:
        score, last = scores[name], scores[order[num - 1]]
        assert score is not None  # else it failed, and is not stopped
        assert last is not None  # it is ranked before this one
        place = order.index(name) + 1
        mean = f" (mean of {len(score.seeds)} seeds)" if len(score.seeds) > 1 else ""
        reason = (
            f"validation {100 * score.accuracy:.1f} %{mean} was {_ordinal(place)} of {len(order)} up to epoch {rung}; "
            f"{num} went on, the last of them with {100 * last.accuracy:.1f} %"
        )
        facts = {
            "rung": rung,
            "place": place,
            "of": len(order),
            "kept": num,
            "score": {**asdict(score), "seeds": list(score.seeds)},
            "last_kept": {**asdict(last), "seeds": list(last.seeds)},
            **self._rule,
        }
        for seed in self.seeds:
            folder = trained_folder(self.experiment, name, seed)
            if not folder.done and folder.status == "unfinished":
                write_stopped(folder, Stopped(by="halving", epoch=rung, reason=reason, facts=facts))

    @property
    def _rule(self) -> dict[str, object]:
        return {"keep": self.settings.keep, "rungs": list(self.rungs)}

    def _recorded(self, name: str, seed: int) -> int | None:
        """Return the rung at which a run was stopped by these rules; None where it was not, or by others."""
        found = read_stopped(trained_folder(self.experiment, name, seed))
        if found is None or found.by != "halving":
            return None
        rule = {key: found.facts.get(key) for key in self._rule}
        return found.facts.get("rung") if rule == self._rule else None


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 <= number % 100 <= 20 else endings.get(number % 10, 'th')}"
