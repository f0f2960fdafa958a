"""`evaluate`: a finished run's accuracy on a split, with states from the store or from the media files."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ...extract.executors.threads import torch_threads
from ...extract.trunk.exact_float32 import exact_float32
from ..config.experiment import Experiment, VariantSettings
from ..data.batch import stored_questions
from ..scoring.metrics import Scores, macro_f1, read_scores
from ..scoring.predictions import answer, prediction_records, score_records
from ..training.adapter_files import load_adapter
from ..training.experiment_context import ExperimentContext
from ..training.failures import raised_in_one_line
from ..training.run_folder import RunFolder
from .gates import gate_records
from .own_data import check_answers, check_places, differences_since, own_answers

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """A run's scores on one split.

    Args:
        run: the run's folder.
        split: which questions.
        scores: correct and total by question type, by group and in all.
        seconds: wall time.
        macro_f1: mean over the true answers (of multi-label answers, over the labels) of the F1 of each, 0 to 1.
        micro_f1: of multi-label answers, F1 of all decisions together, 0 to 1; None of others.
        notes: how the questions and clips differ from those that the run knew; one line each.
    """

    run: Path
    split: str
    scores: Scores
    seconds: float
    macro_f1: float
    notes: tuple[str, ...] = ()
    micro_f1: float | None = None

    @property
    def variant(self) -> str:
        """The run's variant, by the name of its folder."""
        return self.run.parent.name

    @property
    def seed(self) -> int:
        """The run's seed, by the name of its folder."""
        return int(self.run.name.removeprefix("seed"))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the scores as a table (see `Scores.to_pandas`)."""
        return self.scores.to_pandas()

    def __repr__(self) -> str:
        value = self.scores.headline.removeprefix("accuracy ")
        asked = f"{self.scores.overall.total} {self.split} questions"
        return f"Evaluation({self.run.parent.name}/{self.run.name}: {value} of {asked})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.scores._repr_html_()}"


def evaluate(
    run: Path | str,
    *,
    split: str = "test",
    live: bool = False,
    device: str = "auto",
    save: bool = True,
    gates: bool = False,
    experiment: Path | str | None = None,
) -> Evaluation:
    """Answer a split's questions with a finished run's weights.

    The classes are the run's own, whatever order the data set has its answers in by now.

    Args:
        run: the run's folder, runs/<experiment>/<variant>/seed<k>.
        split: a split of the experiment's data set.
        live: compute the states from the media files; the store is not opened.
        device: where it runs; "auto" is a GPU where there is one.
        save: write predictions-<split>.jsonl and result-<split>.json into the run's folder.
        gates: write gates-<split>.jsonl, what the adapter's selection kept for each question (see `gates`).
        experiment: a file that says where data set, encoders and store lie, if not where the run's settings say.

    Raises:
        SettingsError: gates of an adapter that has none.
        RunError: not a finished run's folder, or trained on other encoders; a data set or store that was moved; answers
            that are none of the run's classes; or the variant raised any other error, whose traceback is then in the
            folder's error.txt.
        RunLockedError: another process is training this run or evaluating it; not where nothing is written.

    Example:
        >>> import talik
        >>> talik.evaluate("runs/exp/trimodal/seed0", split="val").scores.overall.total
        2
    """
    folder = RunFolder(Path(run))
    folder.config()
    folder.check_done()
    own, variant = folder.experiment(places=experiment)
    check_places(folder, own, live=live)
    with folder.locked() if save or gates else nullcontext(), raised_in_one_line(folder):
        return _evaluate(folder, own, variant, split=split, live=live, device=device, save=save, gates=gates)


def _evaluate(
    folder: RunFolder,
    own: Experiment,
    variant: VariantSettings,
    *,
    split: str,
    live: bool,
    device: str,
    save: bool,
    gates: bool,
) -> Evaluation:
    started = time.perf_counter()
    context = ExperimentContext(own, device=device)
    answers = own_answers(folder)
    model = context.build(variant, seed=int(folder.config()["seed"]), num_classes=len(answers))
    load_adapter(folder, model)
    settings = own.train_settings(variant)
    with torch_threads(settings.num_threads), exact_float32():
        source = context.live(model) if live else context.cached(model)
        questions = stored_questions(source, context.questions(split), allow_missing=context.allow_missing)
        check_answers(folder, questions, answers)
        notes = differences_since(folder, context, source, questions, split=split)
        if gates:
            size = settings.eval_batch_size
            found = gate_records(model, source, questions, batch_size=size)
            folder.write_lines(f"gates-{split}.jsonl", found)
        predictions = answer(
            model,
            source,
            questions,
            answers=answers,
            batch_size=settings.eval_batch_size,
            task=own.task,
        )
    records = prediction_records(predictions)
    seconds = time.perf_counter() - started
    scored = score_records(records, kind=own.task.kind, classes=answers)
    if save:
        folder.write_lines(f"predictions-{split}.jsonl", records)
        folder.write_json(f"result-{split}.json", {"split": split, **scored, "seconds": seconds})
    f1 = scored.get("macro_f1")
    if f1 is None:
        # of several right answers the one that was given
        true = [r["prediction"] if r["correct"] else r["answer"] for r in records]
        f1 = macro_f1(true, [r["prediction"] for r in records])
    return Evaluation(
        run=folder.path,
        split=split,
        scores=read_scores(scored),
        seconds=seconds,
        macro_f1=f1,
        micro_f1=scored.get("micro_f1"),
        notes=notes,
    )
