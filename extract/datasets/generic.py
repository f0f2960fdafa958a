"""Any data set as one table: JSON lines or CSV with `clip`, `question`, `answer`, `type` and `split`.

    {"clip": "videos/a.mp4", "question": "Is there a drum?", "answer": "yes", "type": "audio", "split": "train"}

`clip` is a path relative to the root, or an absolute one below it, of a file or of a folder of frames, or a name that
is looked up in the folders of the root. `question` may be left out of all records (classification without text);
`type` ("all"), `split` ("train"), `id` (the line's number) and `template` (the question itself) of any. Several right
answers are a list, as `answer` or as `answers`. In place of `answer`, or beside it, `labels` gives the class of each
segment; segments in which nothing happens are "background". `start` and `end` are the seconds between which a long film
is looked at: each such stretch is a clip of its own, named "films/a.mp4#t=60,70". In CSV lists have `|` between their
parts, and the fields may have commas, semicolons or tabs between them.
"""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...config import settings_class
from ...errors import ManifestError, unknown_name
from ..media.stretch import bounds_error, fragment
from .json_records import Record, inside, read_table
from .media_index import find_clips
from .settings import DataSettings
from .types import SPLITS, Clip, Manifest, Question

#: Names of splits that other programs use for ours.
_OTHER_SPLITS = {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("testing",), "test"),
}


@settings_class
class ManifestColumns:
    """The columns of a manifest: keys of a JSONL record, or columns of a CSV file.

    Args:
        clip: the media file: a path relative to the root, or an absolute one below it, of a film, a sound, a picture or
            a folder of frames; or a name that is looked up in the folders of the root.
        start: where in the film the clip begins, in seconds from its first frame; by default its beginning. Several
            lines may name different stretches of one film: each is a clip with segments and states of its own.
        end: where it ends; by default the film's end.
        question: what is asked. In all records or in none: without it the task is "classes", "multi-label" or
            "events", and no text encoder is needed.
        answer: the right answer, which is a class. All answers of the file together are the vocabulary, unless
            `answers` of [data] gives it. Several right answers may stand here as a list (not in CSV).
        answers: the right answers, where there are several: a list, in CSV with "|" between. One that several people
            gave may stand as often as they did. In place of `answer`, which is then the most frequent of them, or
            beside it. For the task "multi-label" all that are true of the clip; [] for none.
        labels: the class of each segment, as many as `segments` of [data], for the task "events": a list, in CSV with
            "|" between; "background" where nothing happens. In place of `answer` or beside it.
        type: the group that the question is counted in: reports have a column for each. With labels "event".
        split: "train", "val" or "test"; others may be named in `talik evaluate --split`.
        id: names the question in predictions; the line's number by default.
        template: groups questions for the blind baseline, which gives each group its most frequent answer; the question
            itself by default.
    """

    clip: str
    start: float | None = None
    end: float | None = None
    question: str = ""
    answer: str = ""
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    type: str = "all"
    split: str = "train"
    id: str = ""
    template: str = ""


_COLUMNS = tuple(field.name for field in dataclasses.fields(ManifestColumns))


def load_generic(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
    """Load a JSONL or CSV manifest.

    Raises:
        ManifestError: a line that is not as described above, an unknown column, an id or a whole record twice, a
            question in some records only, an answer that is not in `settings.answers`.
        MissingMediaError: clips that are not there.
    """
    path = _manifest_file(settings, root=root, base=base)
    questions, records = _questions(read_table(path, columns=_columns(settings)), settings, root)
    if not questions:
        raise ManifestError(f"{path}: no record; a manifest has one line for each question")
    _check_questions(records, questions)
    _check_splits(records, questions)
    clips = _clips(records, questions, settings, root)
    rank = {split: i for i, split in enumerate(SPLITS)}
    ordered = sorted(questions, key=lambda q: rank.get(q.split, len(SPLITS)))
    return Manifest(
        name=settings.dataset,
        root=root,
        clips=clips,
        questions=tuple(ordered),
        answers=_vocabulary(settings) or tuple(dict.fromkeys(word for q in ordered for word in _words(q))),
        notes=tuple(_notes(records, questions)),
    )


def _questions(records: Iterable[Record], settings: DataSettings, root: Path) -> tuple[list[Question], list[Record]]:
    """Return the questions, and of the record of each its place, and what of it is needed: a file may have millions."""
    seen: dict[str, str] = {}
    vocabulary = _vocabulary(settings)
    questions, kept = [], []
    shared: dict[tuple[object, ...], dict[str, object]] = {}
    for record in records:
        question = _question(record, settings, root)
        if question.id in seen:
            raise record.error(f"id {question.id!r} is also that of {seen[question.id]}; ids are to be unique")
        for word in _words(question) if vocabulary else ():
            if word not in vocabulary:
                key = "answers" if word in question.answers else "answer"
                raise record.error(f"'{key}': {unknown_name('answer', word, vocabulary)}")
        seen[question.id] = record.where
        questions.append(question)
        named = ("id" in record.values, *map(record.values.get, ("split", "start", "end")))
        values = shared.setdefault(named, dict(zip(("id", "split", "start", "end"), ("", *named[1:]), strict=True)))
        if not named[0]:
            values.pop("id", None)
        kept.append(Record(record.where, values))
    return questions, kept


def _clips(
    records: Sequence[Record], questions: Sequence[Question], settings: DataSettings, root: Path
) -> dict[str, Clip]:
    """Return the clips by id; each film is looked for once, whatever stretches of it are named."""
    named: dict[str, Record] = {}
    stretches: dict[str, tuple[str, Record]] = {}  # by clip id: the film
    for question, record in zip(questions, records, strict=True):
        film = question.clip_id.removesuffix(fragment(*_bounds(record, settings)))
        named.setdefault(film, record)
        if stretches.setdefault(question.clip_id, (film, record))[0] != film:
            raise record.error(f"'clip' {question.clip_id!r} is a file and a stretch of another; rename the file")
    films = find_clips(named, settings, root=root, by_path=True)
    clips = {}
    for clip_id, (film, record) in stretches.items():
        start, end = _bounds(record, settings)
        where = record.where if clip_id != film else ""
        clips[clip_id] = dataclasses.replace(films[film], id=clip_id, start_seconds=start, end_seconds=end, where=where)
    return clips


def _bounds(record: Record, settings: DataSettings) -> tuple[float | None, float | None]:
    """Return where a record's stretch begins and ends, (None, None) of a whole film.

    Columns of these names that `columns` of [data] allows are the user's own, and say nothing of the clip.
    """
    start, end = (None if key in settings.columns else record.seconds(key) for key in ("start", "end"))
    if reason := bounds_error(start or 0.0, end):
        raise record.error(reason)
    return (start or 0.0, end) if start or end is not None else (None, None)


def _vocabulary(settings: DataSettings) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", answer.strip()) for answer in settings.answers)


def _check_questions(records: Sequence[Record], questions: Sequence[Question]) -> None:
    """Refuse a question that only some records have, and records that say the same as an earlier one."""
    asking = [bool(question.text.strip()) for question in questions]
    if any(asking) and not all(asking):
        other = records[asking.index(True)].where
        raise records[asking.index(False)].error(
            f"no question, but {other} and {sum(asking) - 1} others have one; add it, or leave it out of all"
        )
    first: dict[tuple[object, ...], Record] = {}
    for record, q in zip(records, questions, strict=True):
        said = (q.clip_id, q.text, q.answer, q.answers, q.labels, q.split)
        earlier = first.setdefault(said, record)
        if earlier is not record and "id" not in record.values:
            raise record.error(
                f"says the same as {earlier.where} (clip, question, answer and split); remove it, or give both an id"
            )


def _check_splits(records: Sequence[Record], questions: Sequence[Question]) -> None:
    """Refuse a split that is meant to be train, val or test and is written otherwise."""
    splits = {question.split for question in questions}
    for record, question in zip(records, questions, strict=True):
        written = question.split.casefold()
        meant = written if written in SPLITS else _OTHER_SPLITS.get(written, "")
        if meant and question.split != meant and (written == meant or meant not in splits):
            raise record.error(f"'split' is {question.split!r}, expected {meant!r}")


def _notes(records: Sequence[Record], questions: Sequence[Question]) -> Iterator[str]:
    unsaid = [record for record in records if record.values.get("split") is None]
    if 0 < len(unsaid) < len(records):
        yield f"{len(unsaid)} records name no split and are of train, the first {unsaid[0].where}"
    answers: dict[tuple[str, str], str] = {}
    unlike = [
        record
        for record, q in zip(records, questions, strict=True)
        if answers.setdefault((q.clip_id, q.text), q.answer) != q.answer
    ]
    if unlike:
        yield (
            f"{len(unlike)} records give a question about a clip another answer than an earlier record does, the first "
            f"{unlike[0].where}; several right answers of one question are a list in 'answers'"
        )


def _manifest_file(settings: DataSettings, *, root: Path, base: Path) -> Path:
    if settings.annotations is not None:
        return base / settings.annotations
    found = [root / name for name in ("manifest.jsonl", "manifest.csv") if (root / name).is_file()]
    if len(found) > 1:
        raise ManifestError(f"{root}: found manifest.jsonl and manifest.csv; name the one to read in data.annotations")
    if found:
        return found[0]
    raise ManifestError(f"{root}: no manifest.jsonl or manifest.csv; put one there, or name it in data.annotations")


def _words(question: Question) -> tuple[str, ...]:
    """Return the answers and classes that a question names."""
    return (*question.labels, *question.right)


def _columns(settings: DataSettings) -> tuple[str, ...]:
    own = () if settings.type_column is None else (settings.type_column,)
    return tuple(dict.fromkeys((*_COLUMNS, *settings.columns, *own)))


def _below_root(record: Record, root: Path) -> str:
    """Return the clip that a record names; an absolute path as it counts from the root."""
    clip = record.text("clip")
    if not Path(clip.strip()).is_absolute():
        return clip
    for top in (root.absolute(), root.resolve()):
        if Path(clip.strip()).is_relative_to(top):
            return Path(clip.strip()).relative_to(top).as_posix()
    raise record.error(
        f"'clip' is {clip.strip()!r}, which points outside the data set's root {root.absolute()}; set data.root to a "
        "folder above all clips"
    )


def _question(record: Record, settings: DataSettings, root: Path) -> Question:
    for key in record.values if not record.values.keys() <= set(_COLUMNS) else ():
        if key not in (known := _columns(settings)):
            raise record.error(f"{unknown_name('column', str(key), known)}; others are allowed by data.columns")
    text = record.text("question", default="")
    labels, type_column = _labels(record, settings.segments), settings.type_column or "type"
    answer, answers = _answers(record, needed=not labels)
    identifier = record.identifier("id")
    clip_id = inside(record, "clip", _below_root(record, root), single=False) + fragment(*_bounds(record, settings))
    return Question(
        id=record.where.rsplit(":", 1)[1] if identifier is None else identifier,
        clip_id=sys.intern(clip_id),  # one string, not one a record
        text=text,
        answer=sys.intern(answer),
        type=sys.intern(record.name(type_column, default="event" if labels else "all")),
        template=record.text("template", default=text),
        split=sys.intern(record.name("split", default="train")),
        labels=labels,
        answers=answers,
    )


def _answers(record: Record, *, needed: bool) -> tuple[str, tuple[str, ...]]:
    """Return the answer, and the right answers where the record gives a list of them.

    Raises:
        ManifestError: the record has neither, though one is `needed`; or what it has is no answer.
    """
    in_answer = isinstance(record.values.get("answer"), list)
    if in_answer and record.values.get("answers") is not None:
        raise record.error("'answer' is a list, and there are 'answers' too; expected one list")
    key = "answer" if in_answer else "answers"
    if record.values.get(key) is None:
        return record.name("answer", default=None if needed else ""), ()
    answers = tuple(map(sys.intern, _listed(record, key)))
    if "" in answers:
        raise record.error(f"{key!r} holds an empty one, expected texts")
    most = max(answers, key=Counter(answers).__getitem__, default="")
    answer = most if in_answer else record.name("answer", default=most)
    if answer and answer not in answers:
        raise record.error(f"'answer' is {answer!r}, which is not among 'answers'; add it there, or leave 'answer' out")
    return answer, answers


def _listed(record: Record, key: str) -> list[str]:
    """Return a list of names, in CSV with bars between."""
    given = record.values[key]
    in_bars = isinstance(given, str) and not given.lstrip().startswith("[")
    names = record.text(key).split("|") if in_bars else record.strings(key)
    return [unicodedata.normalize("NFC", name.strip()) for name in names]


def _labels(record: Record, segments: int) -> tuple[str, ...]:
    """Return the classes of the segments, () where the record gives none."""
    if record.values.get("labels") is None:
        return ()
    labels = _listed(record, "labels")
    if len(labels) != segments or "" in labels:
        raise record.error(f"'labels' has {len(labels)} classes, expected {segments}, one for each of data.segments")
    return tuple(labels)
