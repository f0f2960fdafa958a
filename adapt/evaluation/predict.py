"""`predict`: a finished run answers a question about a video file, from the file itself; no store, no data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import MissingMediaError, SettingsError
from ...extract.datasets.types import Clip, Manifest, Question
from ...extract.executors.threads import torch_threads
from ...extract.trunk.exact_float32 import exact_float32
from ..training.adapter_files import load_adapter
from ..training.experiment_context import ExperimentContext
from ..training.run_folder import RunFolder
from .gates import gate_records
from .own_data import own_answers


@dataclass(frozen=True, kw_only=True)
class PredictedAnswer:
    """One answer with its probability, 0 to 1."""

    answer: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a run says about a video.

    Args:
        answers: the most probable ones, best first; for a task by segments, their mean over segments. Of multi-label
            answers each has a probability of its own, and all that are true of the video may be near 1.
        by_segment: the best answer of each segment; () for a task that has one answer.
        gates: one line an insertion, as gates-<split>.jsonl has them; () where the adapter has no selection.
    """

    answers: tuple[PredictedAnswer, ...]
    by_segment: tuple[PredictedAnswer, ...] = ()
    gates: tuple[Mapping[str, Any], ...] = ()

    def lines(self) -> list[str]:
        """Return the prediction as lines for a terminal."""
        shown = [f"segment {i}: {a.answer} ({100 * a.probability:.1f} %)" for i, a in enumerate(self.by_segment)]
        shown += [f"{100 * a.probability:5.1f} %  {a.answer}" for a in self.answers]
        for gate in self.gates:
            for modality in ("visual", "audio", "text"):
                if modality in gate:
                    named = gate.get("tokens") or [] if modality == "text" else []
                    kept = [
                        f"{named[i]}={v:.2f}" if i < len(named) else f"{v:.2f}" for i, v in enumerate(gate[modality])
                    ]
                    shown.append(f"gates, insertion {gate['insertion']}, {modality}: {' '.join(kept)}")
        return shown


def predict(
    run: Path | str,
    *,
    video: Path | str,
    question: str = "",
    top: int = 5,
    experiment: Path | str | None = None,
    device: str = "auto",
) -> Predicted:
    """Answer a question about a video file with a finished run's weights.

    Args:
        run: the run's folder, runs/<experiment>/<variant>/seed<k>.
        video: any file with the picture and sound that the run's encoders read.
        question: in words; "" for a task without questions.
        top: how many answers to give.
        experiment: a file that says where the encoders lie, if not where the run's settings say.
        device: where it runs; "auto" is a GPU where there is one.

    Raises:
        RunError: not a finished run's folder, or trained on other encoders.
        MissingMediaError, MediaError: the file does not exist, or cannot be decoded.
        SettingsError: a question missing, or given to a run that reads none; imported features.

    Example:
        >>> import talik
        >>> run, video = "runs/exp/trimodal/seed0", "data/clips/video.mp4"
        >>> talik.predict(run, video=video, question="is the square blue ?").answers[0].answer
        'no'
    """
    folder, video = RunFolder(Path(run)), Path(video)
    if not video.is_file():
        raise MissingMediaError(f"{video}: no such file; expected a video")
    if top < 1:
        raise SettingsError(f"top: found {top}, expected at least 1")
    own, variant = folder.experiment(places=experiment)
    folder.check_done()
    answers = own_answers(folder)
    given = _question(question, answers, own.extraction.data.segments)
    context = ExperimentContext(own, device=device)
    context.manifest = Manifest(  # the data set itself is not needed
        name="predict",
        root=video.parent,
        clips={"video": Clip(id="video", path=video)},
        questions=(given,),
        answers=answers,
    )
    reads_text = "text" in context.used(variant)
    if reads_text != bool(question):
        raise SettingsError(
            "question: missing, this run reads one" if reads_text else "question: this run reads none; leave it out"
        )
    model = context.build(variant, seed=int(folder.config()["seed"]))
    load_adapter(folder, model)
    model.eval()
    source = context.live(model)
    settings = own.train_settings(variant)
    has_gates = model.adapter is not None and model.adapter.has_gates and variant.adapter.get("selection") != "none"
    gates: tuple[Mapping[str, Any], ...] = ()
    with torch.no_grad(), torch_threads(settings.num_threads), exact_float32():
        (batch,) = source.batches([[given]])
        logits = model(batch)
        if has_gates:
            gates = tuple(gate_records(model, source, [given], batch_size=1))
    found = logits[0].float()
    probabilities = (found.sigmoid() if own.task.kind == "multi-label" else found.softmax(-1)).cpu()
    best = tuple(_best(row, answers, 1)[0] for row in probabilities) if probabilities.ndim == 2 else ()
    overall = probabilities.mean(0) if probabilities.ndim == 2 else probabilities
    return Predicted(answers=_best(overall, answers, top), by_segment=best, gates=gates)


def _question(text: str, answers: Sequence[str], num_segments: int) -> Question:
    """Return the question as a manifest has it; its answer is a placeholder that nothing reads."""
    return Question(
        id="0",
        clip_id="video",
        text=text,
        answer=answers[0],
        type="",
        template=text,
        split="predict",
        labels=(answers[0],) * num_segments,
    )


def _best(probabilities: torch.Tensor, answers: Sequence[str], count: int) -> tuple[PredictedAnswer, ...]:
    values, places = probabilities.topk(min(count, len(answers)))
    return tuple(
        PredictedAnswer(answer=answers[i], probability=float(v))
        for v, i in zip(values.tolist(), places.tolist(), strict=True)
    )
