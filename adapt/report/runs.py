"""Reads finished run folders, runs/<experiment>/<variant>/seed<k>/, and refuses what is unfinished or malformed.

config.toml         the resolved settings
metrics.jsonl       one line an epoch, and a last line "done"
predictions.jsonl   the test split, one line a question
result.json         written last; a folder without it is unfinished
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import coerce
from ...errors import RunError, SettingsError
from ..evaluation.metrics import Scores, score


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run answered to one question; `probability` in [0, 1] is the run's own, of its answer."""

    question_id: str
    clip_id: str
    type: str
    template: str
    question: str
    answer: str
    prediction: str
    probability: float | None
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of training; accuracy is a fraction, `seconds` what the epoch took."""

    epoch: int
    step: int
    train_loss: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run: a variant trained with one seed and evaluated on one split.

    What older runs do not say is None: `device` ("cpu" or "cuda"), `together` (variants trained in lockstep), `flops`
    and `flops_trained` of a question, `depth` (where the first insertion sits, from 0, before the first unit, to 1,
    after the last: the mean over the trunks), `insertions` and `num_units` (how many; of the longest trunk entered).
    """

    path: Path
    experiment: str
    variant: str
    seed: int
    config: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    predictions: tuple[Prediction, ...]
    scores: Scores
    split: str
    best_epoch: int | None
    train_seconds: float
    trainable_params: int
    device: str | None = None
    live: bool = False
    together: int | None = None
    flops: int | None = None
    flops_trained: int | None = None
    depth: float | None = None
    insertions: int | None = None
    num_units: int | None = None

    @property
    def base(self) -> Path:
        """The folder of the experiment's file, which relative paths of the settings count from."""
        parents = self.path.resolve().parents  # <base>/runs/<experiment>/<variant>/seed<k>
        return parents[min(3, len(parents) - 1)]

    @property
    def name(self) -> str:
        """The run's place below the runs folder, as messages and files name it."""
        return f"{self.experiment}/{self.variant}/seed{self.seed}"


def find_runs(paths: Iterable[Path | str]) -> tuple[Path, ...]:
    """Return the run folders at and below `paths` (folders with a config.toml), sorted below each path, once each.

    Raises:
        RunError: a path that is not there, or that holds no run.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path}: no such folder; expected a run, a variant or an experiment below runs/")
        folders = (
            [path] if (path / "config.toml").is_file() else _outermost(c.parent for c in path.rglob("config.toml"))
        )
        if not folders:
            raise RunError(f"{path}: no run in it (no config.toml at or below it); train a variant first")
        found.update(dict.fromkeys(sorted(folders, key=_natural)))
    return tuple(found)


def is_finished(folder: Path | str) -> bool:
    """Whether a run folder has its result.json, which is written last."""
    return (Path(folder) / "result.json").is_file()


def read_run(folder: Path | str) -> Run:
    """Read one finished run folder and check that its files agree with each other.

    Raises:
        RunError: the folder is unfinished, or a file is missing, malformed or contradicts another.
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise RunError(f"{folder}: not a run folder (no config.toml)")
    if not is_finished(folder):
        raise RunError(f"{folder}: unfinished (no result.json); resume its training or leave it out")
    config = _read_toml(folder / "config.toml")
    result = _read_object(folder / "result.json")
    epochs, done = _read_metrics(folder / "metrics.jsonl")
    predictions = _read_predictions(folder / "predictions.jsonl")
    scores = score([p.type for p in predictions], [p.correct for p in predictions])
    _check_result(folder / "result.json", result, scores)
    return Run(
        path=folder,
        experiment=_take(config, "experiment", str, folder / "config.toml"),
        variant=_take(config, "variant", str, folder / "config.toml"),
        seed=_take(config, "seed", int, folder / "config.toml"),
        config=config,
        epochs=epochs,
        predictions=predictions,
        scores=scores,
        split=_take(result, "split", str, folder / "result.json"),
        best_epoch=_take(done, "best_epoch", int | None, folder / "metrics.jsonl"),
        train_seconds=_take(done, "seconds", float, folder / "metrics.jsonl"),
        trainable_params=_take(result, "trainable_params", int, folder / "result.json"),
        device=_take(result, "device", str | None, folder / "result.json"),
        live=bool(_take(result, "live", bool | None, folder / "result.json")),
        together=_take(result, "together", int | None, folder / "result.json"),
        flops=_take(result, "flops", int | None, folder / "result.json"),
        flops_trained=_take(result, "flops_trained", int | None, folder / "result.json"),
        **_read_insertions(folder / "adapter.json"),
    )


def group_by_variant(runs: Iterable[Run]) -> dict[str, tuple[Run, ...]]:
    """Return the runs by variant, in order of appearance, seeds ascending, all on the same questions.

    Raises:
        RunError: one variant and seed twice, or runs that answer different questions.
    """
    grouped: dict[str, list[Run]] = {}
    first: Run | None = None
    for run in runs:
        first = first or run
        _check_same_questions(first, run)
        same = grouped.setdefault(run.variant, [])
        for other in same:
            if other.seed == run.seed:
                raise RunError(f"variant {run.variant!r} with seed {run.seed} twice: {other.path} and {run.path}")
        same.append(run)
    return {name: tuple(sorted(members, key=lambda r: r.seed)) for name, members in grouped.items()}


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Without those inside another: what a run keeps below its own folder is no run."""
    every = set(folders)
    return [folder for folder in every if every.isdisjoint(folder.parents)]


def _natural(path: Path) -> tuple[Any, ...]:
    stem = path.name.rstrip("0123456789")
    return (path.parent, stem, int(path.name[len(stem) :] or -1))


def _read_object(path: Path) -> dict[str, Any]:
    return _parse_object(_read_text(path), str(path))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{path}: not TOML ({error})") from None


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = _read_text(path).split("\n")
    return [(f"{path}:{i}", _parse_object(text, f"{path}:{i}")) for i, text in enumerate(lines, 1) if text.strip()]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path}: missing, though the run has a result.json; train it again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(value, dict):
        raise RunError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _take(values: Mapping[str, Any], key: str, hint: Any, where: Path | str) -> Any:
    if key not in values and not isinstance(None, hint):
        raise RunError(f"{where}: no {key!r}; found {', '.join(sorted(values)) or 'nothing'}")
    try:
        return coerce(hint, values.get(key), where=key)
    except SettingsError as error:
        raise RunError(f"{where}: {error}") from None


def _read_metrics(path: Path) -> tuple[tuple[Epoch, ...], dict[str, Any]]:
    """The epochs (a repeated one counts as last written) and the line "done"."""
    epochs: dict[int, Epoch] = {}
    done: dict[str, Any] | None = None
    optional = {"val_loss", "val_accuracy"}
    for where, line in _read_lines(path):
        if line.get("event") == "done":
            done = line
        elif line.get("event") == "epoch":
            numbers = {key: _take(line, key, int, where) for key in ("epoch", "step")}
            for key in ("train_loss", "val_loss", "val_accuracy", "seconds"):
                numbers[key] = _take(line, key, float | None if key in optional else float, where)
            epochs[numbers["epoch"]] = Epoch(**numbers)
    if done is None:
        raise RunError(f"{path}: no line with the event 'done'; the run did not end as it should, train it again")
    return tuple(epochs[number] for number in sorted(epochs)), done


def _read_insertions(path: Path) -> dict[str, Any]:
    """`depth`, 1 without insertions; `insertions` and `num_units`."""
    if not path.is_file():
        return {}
    found = _read_object(path)
    try:
        first: dict[str, int] = {}
        for insertion in found["insertions"]:
            for modality, boundary in insertion.items():
                first[modality] = min(int(boundary), first.get(modality, int(boundary)))
        units = {modality: int(found["encoders"][modality]["num_units"]) for modality in first}
        depths = [boundary / units[modality] for modality, boundary in first.items()]
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise RunError(f"{path}: not as training writes it ({error!r}); train the variant again") from None
    depth = sum(depths) / len(depths) if depths else 1.0
    return {"depth": depth, "insertions": len(found["insertions"]), "num_units": max(units.values(), default=0)}


def _read_predictions(path: Path) -> tuple[Prediction, ...]:
    predictions: dict[str, Prediction] = {}
    texts = ("question_id", "clip_id", "type", "template", "question", "answer", "prediction")
    for where, line in _read_lines(path):
        taken = {key: _take(line, key, str, where) for key in texts}
        taken["probability"] = _take(line, "probability", float | None, where)
        taken["correct"] = _take(line, "correct", bool, where)
        if taken["correct"] != (taken["prediction"] == taken["answer"]):
            raise RunError(f"{where}: 'correct' contradicts 'prediction' and 'answer'")
        if taken["question_id"] in predictions:
            raise RunError(f"{where}: question {taken['question_id']!r} is there twice")
        predictions[taken["question_id"]] = Prediction(**taken)
    if not predictions:
        raise RunError(f"{path}: no prediction in it; expected one line a question")
    return tuple(predictions.values())


def _check_result(path: Path, result: Mapping[str, Any], scores: Scores) -> None:
    found = _take(result, "accuracy", float, path)
    if abs(found - scores.overall.accuracy) > 1e-6:
        raise RunError(f"{path}: accuracy {found} but predictions.jsonl counts {scores.overall.accuracy:.6f}")
    expected = scores.to_json()["by_type"]
    if result.get("by_type", expected) != expected:
        raise RunError(f"{path}: by_type differs from what predictions.jsonl counts, {expected}")


def _check_same_questions(first: Run, run: Run) -> None:
    if run.split != first.split:
        raise RunError(f"{run.name} is on split {run.split!r}, {first.name} on {first.split!r}; report one split")
    mine, theirs = _asked(run.predictions), _asked(first.predictions)
    if mine == theirs:
        return
    odd = next(iter((mine ^ theirs) or mine))
    raise RunError(
        f"{run.name} and {first.name} answer different questions ({len(mine)} and {len(theirs)}; "
        f"one that differs: {odd[0]!r}); report runs of one data set together"
    )


def _asked(predictions: Sequence[Prediction]) -> set[tuple[str, str, str, str]]:
    return {(p.question_id, p.clip_id, p.type, p.answer) for p in predictions}
