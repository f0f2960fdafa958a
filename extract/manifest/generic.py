"""Any data set as one table: JSON lines or CSV with `clip`, `question`, `answer`, `type` and `split`.

    {"clip": "videos/a.mp4", "question": "Is there a drum?", "answer": "yes", "type": "audio", "split": "train"}

`clip` is a path relative to the root, or a name without ending that is looked up in the folders of the root. `question`
may be left out (classification without text), as may `type` ("all"), `split` ("train"), `id` (the line's number) and
`template` (the question itself).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...cache.errors import ManifestError, unknown_name
from .files import index_media, make_clips, media_folders
from .records import Record, inside, read_table
from .settings import DataSettings
from .types import SPLITS, Manifest, Question

_COLUMNS = ("clip", "question", "answer", "type", "split", "id", "template")


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
        question = _question(record)
        if question.id in seen:
            raise record.error(f"id {question.id!r} is also that of {seen[question.id]}; ids are to be unique")
        if settings.answers and question.answer not in settings.answers:
            raise record.error(f"'answer': {unknown_name('answer', question.answer, settings.answers)}")
        seen[question.id] = record.where
        named.setdefault(question.clip_id, record)
        questions.append(question)
    if not questions:
        raise ManifestError(f"{path}: no record; a manifest has one line for each question")
    clips = make_clips(named, _find(named, root, settings), root=root, allow=settings.allow_missing)
    rank = {split: i for i, split in enumerate(SPLITS)}
    ordered = sorted(questions, key=lambda q: rank.get(q.split, len(SPLITS)))
    return Manifest(
        name=settings.dataset,
        root=root,
        clips=clips,
        questions=tuple(ordered),
        answers=settings.answers or tuple(dict.fromkeys(q.answer for q in ordered)),
    )


def _manifest_file(settings: DataSettings, *, root: Path, base: Path) -> Path:
    if settings.annotations is not None:
        return base / settings.annotations
    for name in ("manifest.jsonl", "manifest.csv"):
        if (root / name).is_file():
            return root / name
    raise ManifestError(f"{root}: no manifest.jsonl or manifest.csv; put one there, or name it in data.annotations")


def _question(record: Record) -> Question:
    for key in record.values:
        if key not in _COLUMNS:
            raise record.error(unknown_name("column", str(key), _COLUMNS))
    text = record.text("question", default="")
    identifier = record.identifier("id")
    return Question(
        id=record.where.rsplit(":", 1)[1] if identifier is None else identifier,
        clip_id=inside(record, "clip", record.text("clip"), single=False),
        text=text,
        answer=record.text("answer"),
        type=record.text("type", default="all"),
        template=record.text("template", default=text),
        split=record.text("split", default="train"),
    )


def _find(named: Iterable[str], root: Path, settings: DataSettings) -> dict[str, Path]:
    """Return the file of each clip: a path relative to the root, or else a name in one of its folders."""
    found: dict[str, Path] = {}
    by_name: dict[str, Path] | None = None
    for clip_id in named:
        if (root / clip_id).is_file():
            found[clip_id] = root / clip_id
            continue
        if by_name is None:
            by_name = index_media(media_folders(root, settings.videos))
        if clip_id in by_name:
            found[clip_id] = by_name[clip_id]
    return found
