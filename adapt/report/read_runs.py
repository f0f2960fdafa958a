"""Read finished run folders, runs/<experiment>/<variant>/seed<k>/, and refuse unfinished or malformed ones.

config.toml         the resolved settings
metrics.jsonl       one line per epoch, and a last line "done"
predictions.jsonl   the test split, one line per question
result.json         written last; a folder without it is unfinished
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydantic
from pydantic.dataclasses import dataclass as checked_dataclass

from ...errors import RunError
from ..scoring.metrics import Scores, score
from ..scoring.multi_label import label_text, score_labels
from ..training.run_data import RunData
from ..training.run_folder import RunFolder
from .runs import CHECKED, Epoch, Prediction, Run, labels_of

T = TypeVar("T")


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class _Identity:
    experiment: str
    variant: str
    seed: int


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class _Done:
    best_epoch: int | None = None
    seconds: float


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class _Result:
    split: str
    accuracy: float
    map: float | None = None
    trainable_params: int
    by_type: Any = None
    device: str | None = None
    live: bool | None = None
    together: int | None = None
    flops: int | None = None
    flops_trained: int | None = None


def with_prefixes(paths: Iterable[Path | str] | Mapping[str, Any]) -> dict[Path, str]:
    """Find the run folders below each path, with the prefix that their variants' names get.

    Args:
        paths: paths, whose runs have none; or by prefix a path, or several.

    Raises:
        RunError: a path that does not exist, or without a run.
    """
    if not isinstance(paths, Mapping):
        return dict.fromkeys(find_runs(paths), "")
    found: dict[Path, str] = {}
    for prefix, below in paths.items():
        found |= dict.fromkeys(find_runs([below] if isinstance(below, str | Path) else below), prefix)
    return found


def find_runs(paths: Iterable[Path | str]) -> tuple[Path, ...]:
    """Find the run folders (those with a config.toml) at and below `paths`, sorted below each path, once each.

    Raises:
        RunError: a path that does not exist, or without a run.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path}: no such folder; expected a run, a variant or an experiment below runs/")
        folders = {path} if (path / "config.toml").is_file() else {c.parent for c in path.rglob("config.toml")}
        if not folders:
            raise RunError(f"{path}: no run in it (no config.toml at or below it); train a variant first")
        outermost = [f for f in folders if folders.isdisjoint(f.parents)]  # a run's own subfolders are not runs
        found.update(dict.fromkeys(sorted(outermost, key=_natural_order)))
    return tuple(found)


def is_finished(folder: Path | str) -> bool:
    """Tell whether a run folder has its result.json, which is written last."""
    return (Path(folder) / "result.json").is_file()


def read_run(folder: Path | str, *, split: str | None = None, prefix: str = "") -> Run:
    """Read one finished run folder and check that its files agree with each other.

    Args:
        folder: of the run.
        split: whose predictions count, as `talik evaluate` wrote them; the split that the run was scored on by default.
        prefix: put before the variant's name, with a slash; "" for none.

    Raises:
        RunError: the folder is unfinished, or a file is missing, malformed or contradicts another.
    """
    folder = Path(folder)
    settings, outcome, metrics = (folder / name for name in ("config.toml", "result.json", "metrics.jsonl"))
    if not settings.is_file():
        raise RunError(f"{folder}: not a run folder (no config.toml)")
    if not is_finished(folder):
        raise RunError(f"{folder}: unfinished (no result.json); resume its training or leave it out")
    try:
        config = tomllib.loads(_read_text(settings))
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{settings}: not TOML ({error})") from None
    identity = _build(_Identity, config, settings)
    result = _build(_Result, _parse_object(_read_text(outcome), outcome), outcome)
    epochs, done = _read_metrics(metrics)
    other = split is not None and split != result.split
    answers = folder / (f"predictions-{split}.jsonl" if other else "predictions.jsonl")
    if other and not answers.is_file():
        raise RunError(f"{folder}: no predictions of {split}; run talik evaluate {folder} --split {split} first")
    predictions = _read_predictions(answers)
    data = RunFolder(folder).data() if (folder / "data.json").is_file() else None
    scores = _scores(predictions, answers, data)
    if not other:
        _check_result(outcome, result, scores)
    return Run(
        path=folder,
        experiment=identity.experiment,
        variant=f"{prefix}/{identity.variant}" if prefix else identity.variant,
        seed=identity.seed,
        config=config,
        epochs=epochs,
        predictions=predictions,
        scores=scores,
        split=result.split if split is None else split,
        best_epoch=done.best_epoch,
        train_seconds=done.seconds,
        trainable_params=result.trainable_params,
        device=result.device,
        live=bool(result.live),
        together=result.together,
        data=data,
        flops=result.flops,
        flops_trained=result.flops_trained,
        **_read_insertions(folder / "adapter.json"),
    )


def _scores(predictions: Sequence[Prediction], path: Path, data: RunData | None) -> Scores:
    types = [p.type for p in predictions]
    if predictions[0].labels is None:
        return score(types, [p.value for p in predictions])
    return score_labels(types, labels_of(predictions, data, path))


def _natural_order(path: Path) -> tuple[Path, str, int]:
    stem = path.name.rstrip("0123456789")
    return (path.parent, stem, int(path.name[len(stem) :] or -1))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path}: missing, though the run has a result.json; train it again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def _parse_object(text: str, where: Path | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(value, dict):
        raise RunError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _parse_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place ("file:line") and the object of each line that is not blank."""
    for number, text in enumerate(_read_text(path).split("\n"), 1):
        if text.strip():
            yield f"{path}:{number}", _parse_object(text, f"{path}:{number}")


def _build(cls: type[T], values: Mapping[str, Any], where: Path | str) -> T:
    """Check `values` against the fields of `cls`, unknown keys ignored."""
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "missing":
            raise RunError(f"{where}: no {name!r}; found {', '.join(sorted(values)) or 'nothing'}") from None
        raise RunError(f"{where}: {name}: {problem['msg']}, found {problem['input']!r}") from None


def _read_metrics(path: Path) -> tuple[tuple[Epoch, ...], _Done]:
    """Read the epochs (of an epoch trained again after a resumption, the last) and the line "done"."""
    epochs: dict[int, Epoch] = {}
    done: _Done | None = None
    for where, line in _parse_lines(path):
        if line.get("event") == "done":
            done = _build(_Done, line, where)
        elif line.get("event") == "epoch":
            epoch = _build(Epoch, line, where)
            epochs[epoch.epoch] = epoch
    if done is None:
        raise RunError(f"{path}: no line with the event 'done'; the run did not end as it should, train it again")
    return tuple(epochs[number] for number in sorted(epochs)), done


def _read_insertions(path: Path) -> dict[str, Any]:
    """Read `depth` (1 without insertions), `insertions` and `num_units` from adapter.json, if the run has one."""
    if not path.is_file():
        return {}
    description = _parse_object(_read_text(path), path)
    try:
        first: dict[str, int] = {}
        for insertion in description["insertions"]:
            for modality, boundary in insertion.items():
                first[modality] = min(int(boundary), first.get(modality, int(boundary)))
        units = {modality: int(description["encoders"][modality]["num_units"]) for modality in first}
        depths = [boundary / units[modality] for modality, boundary in first.items()]
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise RunError(f"{path}: not as training writes it ({error!r}); train the variant again") from None
    depth = sum(depths) / len(depths) if depths else 1.0
    return {"depth": depth, "insertions": len(description["insertions"]), "num_units": max(units.values(), default=0)}


def _read_predictions(path: Path) -> tuple[Prediction, ...]:
    predictions: dict[str, Prediction] = {}
    for where, line in _parse_lines(path):
        if isinstance(line.get("probabilities"), list):
            line["probabilities"] = np.array(line["probabilities"], dtype=np.float64)
        found = _build(Prediction, line, where)
        own = None if found.labels is None else (label_text(found.labels), label_text(found.given or ()))
        if own is not None and (found.answer, found.prediction) != own:
            raise RunError(f"{where}: 'answer' and 'prediction' contradict 'labels' and 'given'")
        if found.correct != (found.prediction in found.right):
            raise RunError(f"{where}: 'correct' contradicts 'prediction' and 'answer'")
        if found.score is not None and found.score != found.value_of(found.prediction):
            raise RunError(f"{where}: 'score' contradicts 'prediction' and 'answers'")
        if found.question_id in predictions:
            raise RunError(f"{where}: question {found.question_id!r} is there twice")
        predictions[found.question_id] = found
    if not predictions:
        raise RunError(f"{path}: no prediction in it; expected one line per question")
    return tuple(predictions.values())


def _check_result(path: Path, result: _Result, scores: Scores) -> None:
    metric = scores.metric.name
    said = result.map if metric == "map" else result.accuracy
    if said is None or abs(said - scores.overall.accuracy) > 1e-6:
        raise RunError(f"{path}: {metric} {said} but predictions.jsonl counts {scores.overall.accuracy:.6f}")
    expected = scores.to_json()["by_type"]
    if result.by_type not in (None, expected):
        raise RunError(f"{path}: by_type differs from what predictions.jsonl counts, {expected}")
