"""AVQA, questions on VGGSound's clips with four answers each (Yang et al., ACM MM 2022).

Records as distributed, in `train_qa.json` and `val_qa.json`: `id`, `video_name`, `question_text`, four answers under
`multi_choice`, the right one's place from 0 under `answer`, `question_relation` and `question_type`. The vocabulary is
every answer of any choice, in order of first appearance; a model answers with the likeliest of a question's own four.
https://mn.cs.tsinghua.edu.cn/avqa
"""

from __future__ import annotations

from pathlib import Path

from ...errors import ManifestError
from .json_records import Record, inside, read_json_list
from .media_index import annotation_folder, find_clips
from .settings import DataSettings
from .types import SPLITS, Manifest, Question


def load_avqa(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
    """Load AVQA.

    Args:
        settings: `annotations`, `files`, `videos` and `allow_missing` are used here.
        root: the folder with the media.
        base: the folder that `annotations` counts from.

    Raises:
        ManifestError: a file or a record that is not as described above, in one line that names it.
        MissingMediaError: clips that are not there.
    """
    folder = annotation_folder(settings, root=root, base=base)
    questions: list[Question] = []
    named: dict[str, Record] = {}
    seen: dict[str, int] = {}
    for split, path in _files(folder, settings):
        for record in read_json_list(path):
            question = _question(record, split, seen)
            named.setdefault(question.clip_id, record)
            questions.append(question)
    repeated = sum(n - 1 for n in seen.values())
    return Manifest(
        name=settings.dataset,
        root=root,
        clips=find_clips(named, settings, root=root),
        questions=tuple(questions),
        answers=tuple(dict.fromkeys(choice for q in questions for choice in q.choices)),
        notes=(f"{repeated} records repeat a question id (kept, with a suffix)",) if repeated else (),
    )


def _files(folder: Path, settings: DataSettings) -> list[tuple[str, Path]]:
    names = settings.files or {s: f"{s}_qa.json" for s in SPLITS if s != "test" or (folder / "test_qa.json").is_file()}
    listed = [(s, n) for s, given in names.items() for n in ([given] if isinstance(given, str) else given)]
    for split, name in listed:
        if not (folder / name).is_file():
            there = ", ".join(sorted(p.name for p in folder.glob("*.json"))) or "no JSON file"
            raise ManifestError(
                f"{folder}: no {name} for split {split!r} (there is: {there}); put it there, or name each split's "
                "file in data.files"
            )
    return [(split, folder / name) for split, name in listed]


def _question(record: Record, split: str, seen: dict[str, int]) -> Question:
    clip_id = record.identifier("video_name")
    given = record.identifier("id")
    if clip_id is None or given is None:
        raise record.error(f"no {'video_name' if clip_id is None else 'id'!r}")
    choices = tuple(choice.strip() for choice in record.strings("multi_choice"))
    if len(set(choices)) < 2 or "" in choices:
        raise record.error("'multi_choice': expected at least two different answers, none of them empty")
    place = record.values.get("answer")
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(choices):
        raise record.error(f"'answer' is {ascii(place)[:60]}, expected a place from 0 to {len(choices) - 1}")
    seen[given] = seen.get(given, 0) + 1
    text = record.text("question_text").strip()
    return Question(
        id=given if seen[given] == 1 else f"{given}#{seen[given]}",
        clip_id=inside(record, "video_name", clip_id, single=True),
        text=text,
        answer=choices[place],
        type=record.text("question_type", default="all"),
        template=text,
        split=split,
        subset=record.text("question_relation", default=""),
        choices=tuple(dict.fromkeys(choices)),
    )
