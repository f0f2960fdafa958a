"""Any data set as one table: JSON lines or CSV with `clip`, `question`, `answer`, `type` and `split`.

    {"clip": "videos/a.mp4", "question": "Is there a drum?", "answer": "yes", "type": "audio", "split": "train"}

`clip` is a path relative to the root, or a name without ending that is looked up in the folders of the root. `question`
may be left out (classification without text), as may `type` ("all"), `split` ("train"), `id` (the line's number) and
`template` (the question itself). In place of `answer`, or beside it, `labels` gives the class of each segment: a list,
in CSV with `|` between; segments in which nothing happens are "background".
"""

from __future__ import annotations

from pathlib import Path

from ...errors import ManifestError, unknown_name
from .json_records import Record, inside, read_table
from .media_index import find_clips
from .settings import DataSettings
from .types import SPLITS, Manifest, Question

_COLUMNS = ("clip", "question", "answer", "labels", "type", "split", "id", "template")


def load_generic(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
    """Load a JSONL or CSV manifest.

    Raises:
        ManifestError: a line that is not as described above, an unknown column, an id twice, an answer that is not in
            `settings.answers`.
        MissingMediaError: clips that are not there.
    """
    path = _manifest_file(settings, root=root, base=base)
    named: dict[str, Record] = {}
    seen: dict[str, str] = {}
    questions = []
    for record in read_table(path):
        question = _question(record, settings.segments)
        if question.id in seen:
            raise record.error(f"id {question.id!r} is also that of {seen[question.id]}; ids are to be unique")
        for word in _words(question) if settings.answers else ():
            if word not in settings.answers:
                raise record.error(f"'answer': {unknown_name('answer', word, settings.answers)}")
        seen[question.id] = record.where
        named.setdefault(question.clip_id, record)
        questions.append(question)
    if not questions:
        raise ManifestError(f"{path}: no record; a manifest has one line for each question")
    clips = find_clips(named, settings, root=root, by_path=True)
    rank = {split: i for i, split in enumerate(SPLITS)}
    ordered = sorted(questions, key=lambda q: rank.get(q.split, len(SPLITS)))
    return Manifest(
        name=settings.dataset,
        root=root,
        clips=clips,
        questions=tuple(ordered),
        answers=settings.answers or tuple(dict.fromkeys(word for q in ordered for word in _words(q))),
    )


def _manifest_file(settings: DataSettings, *, root: Path, base: Path) -> Path:
    if settings.annotations is not None:
        return base / settings.annotations
    for name in ("manifest.jsonl", "manifest.csv"):
        if (root / name).is_file():
            return root / name
    raise ManifestError(f"{root}: no manifest.jsonl or manifest.csv; put one there, or name it in data.annotations")


def _words(question: Question) -> tuple[str, ...]:
    """Return the answers and classes that a question names."""
    return (*question.labels, question.answer) if question.answer else question.labels


def _question(record: Record, segments: int) -> Question:
    for key in record.values:
        if key not in _COLUMNS:
            raise record.error(unknown_name("column", str(key), _COLUMNS))
    text = record.text("question", default="")
    labels = _labels(record, segments)
    identifier = record.identifier("id")
    return Question(
        id=record.where.rsplit(":", 1)[1] if identifier is None else identifier,
        clip_id=inside(record, "clip", record.text("clip"), single=False),
        text=text,
        answer=record.text("answer", default="" if labels else None),
        type=record.text("type", default="event" if labels else "all"),
        template=record.text("template", default=text),
        split=record.text("split", default="train"),
        labels=labels,
    )


def _labels(record: Record, segments: int) -> tuple[str, ...]:
    """Return the classes of the segments, () where the record gives none."""
    given = record.values.get("labels")
    if given is None:
        return ()
    in_bars = isinstance(given, str) and not given.lstrip().startswith("[")
    labels = [part.strip() for part in record.text("labels").split("|")] if in_bars else record.strings("labels")
    if len(labels) != segments or "" in labels:
        raise record.error(f"'labels' has {len(labels)} classes, expected {segments}, one for each of data.segments")
    return tuple(labels)
