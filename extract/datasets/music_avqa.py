"""MUSIC-AVQA's annotations (Li et al., CVPR 2022, https://github.com/GeWu-Lab/MUSIC-AVQA), in every release.

Records as distributed: `video_id`, `question_id`, `type` and `templ_values` (JSON strings; lists in some releases),
`question_content` with placeholders such as <Object>, `question_deleted`, and the answer under `anser`. MUSIC-AVQA v2.0
(Liu et al., WACV 2024) leaves `question_id` and `question_deleted` out of its new records. MUSIC-AVQA-R (Ma et al.,
NeurIPS 2024) rephrases the test questions, many under one id, in a file of frequent and one of rare answers.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

from ...errors import ManifestError, unknown_name
from .json_records import Record, inside, read_json_list
from .media_index import annotation_folder, find_clips
from .settings import DataSettings, Release
from .types import SPLITS, Manifest, Question

#: The 42 answers in the order of their classes: first appearance in the original training file, as upstream counts.
ANSWERS_42 = tuple(
    "two cello congas zero no pipa six yes one four three seven five ukulele right piano left accordion clarinet "
    "guzheng more-than-ten nine indoor saxophone drum violin middle outdoor bagpipe bassoon acoustic_guitar banjo "
    "electric_bass ten eight flute simultaneously trumpet erhu xylophone tuba suona".replace(" ", ",")
    .replace("-", " ")
    .split(",")
)

SHORT_TYPES: Mapping[tuple[str, ...], str] = {
    ("Audio", "Counting"): "A-count",
    ("Audio", "Comparative"): "A-comp",
    ("Visual", "Counting"): "V-count",
    ("Visual", "Location"): "V-loc",
    ("Audio-Visual", "Existential"): "AV-exist",
    ("Audio-Visual", "Counting"): "AV-count",
    ("Audio-Visual", "Location"): "AV-loc",
    ("Audio-Visual", "Comparative"): "AV-comp",
    ("Audio-Visual", "Temporal"): "AV-temp",
}

#: What the number of questions in a test file says about its release.
TEST_RELEASES: Mapping[int, str] = {9185: "the original release", 9129: "the updated release"}

_PLACEHOLDER = re.compile(r"<[^<>]*>")
_QUESTION_MARKS = "?？"  # the second is full-width, as in "How many sounding <Object> in the video？"


_OURS = {s: f"avqa-{s}.json" for s in SPLITS}

#: Names of each split's files. A split of several files is their questions one after another.
RELEASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "original": {s: (name,) for s, name in _OURS.items()},
    "updated": {s: (name,) for s, name in _OURS.items()},
    "real": {s: (f"avqa-{s}_real.json",) for s in SPLITS},
    "synthetic": {s: (f"avqa-{s}_fake.json",) for s in SPLITS},
    "v2.0-balanced": {s: (f"{s}_balance.json",) for s in SPLITS},
    "v2.0-biased": {s: (f"{s}_bias.json",) for s in SPLITS},
    "r": {
        "train": ("avqa-train.json",),
        "val": ("avqa-val.json",),
        "test": ("avqa-test-head.json", "avqa-test-tail.json"),
    },
}

#: Folders below that of the annotations, in the order in which a release's files are looked for.
_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "original": ("data/json", "json", ""),
    "updated": ("data/json_update", "json_update", ""),
    "real": ("data/json", "json", ""),
    "synthetic": ("data/json", "json", ""),
    "v2.0-balanced": ("data/balance_full_set", "balance_full_set", ""),
    "v2.0-biased": ("data/bias_set", "bias_set", ""),
    "r": ("dataset/MUSIC-AVQA-R", "MUSIC-AVQA-R", "data/json_update", "json_update", ""),
}

#: The two archives of clips, unpacked; the second is distributed under a misspelt name.
_ARCHIVES = ("MUSIC-AVQA-videos-Real", "MUCIS-AVQA-videos-Synthetic", "MUSIC-AVQA-videos-Synthetic")

#: Folders of a clone of the repository in which clips lie, beside its root and the folders in it: its README puts clips
#: into `data/video`, the frames and the sound that its scripts extract into `data/frames` and `data/audio`.
_MEDIA = (
    *(f"data/{name}" for name in ("video", "videos", "frames", "audio")),
    *(f"{place}/{name}" for place in ("data", "data/video", "data/videos", "video", "videos") for name in _ARCHIVES),
)

#: Parts of a split that a file holds, by the end of its name: answers that are frequent, and that are rare, for their
#: type of question (Ma et al., Look, Listen, and Answer, NeurIPS 2024: more, and less, than 1.2 times the mean).
_SUBSETS = ("head", "tail")


def load_music_avqa(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
    """Load MUSIC-AVQA in any release, or a set in its format.

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
    times_seen: Counter[str] = Counter()
    notes: list[str] = []
    for split, path in annotation_files(folder, settings):
        records = read_json_list(path)
        kept = [record for record in records if not record.flag("question_deleted")]
        repeated = _add(kept, split, subset_of(path), questions, named, times_seen)
        notes += _notes(split, path, num_records=len(records), num_kept=len(kept), num_repeated=repeated)
    clips = find_clips(named, settings, root=root, also=_MEDIA)
    return Manifest(
        name=settings.dataset,
        root=root,
        clips=clips,
        questions=tuple(questions),
        answers=ANSWERS_42,
        notes=tuple(notes),
    )


def load_demo(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
    """Load a set that `talik demo make` wrote.

    Raises:
        ManifestError: the folder does not look like one, or a record is malformed.
        MissingMediaError: clips that are not there.
    """
    if settings.annotations is None and not (root / "annotations").is_dir():
        raise ManifestError(f"{root}: no folder 'annotations'; make the set with: talik demo make {root}")
    if not settings.videos:
        settings = dataclasses.replace(settings, videos=("videos",))
    return load_music_avqa(settings, root=root, base=base)


def fill_template(content: str, values: list[str]) -> str:
    """Return a question with its placeholders replaced, in order, by `values`, ending in one `?`.

    Without its last character the result is, word for word, what upstream feeds its models (`dataloader_avst.py`:
    trailing spaces dropped, the question mark of either width cut off, values in place of the words with `<`).

    Raises:
        ValueError: there are fewer values than placeholders.
    """
    left = iter(values)
    try:
        filled = _PLACEHOLDER.sub(lambda _: next(left), content)
    except StopIteration:
        raise ValueError(f"{len(values)} values for {len(_PLACEHOLDER.findall(content))} placeholders") from None
    return filled.strip().rstrip(_QUESTION_MARKS) + "?"


def _add(
    records: list[Record],
    split: str,
    subset: str,
    questions: list[Question],
    named: dict[str, Record],
    times_seen: Counter[str],
) -> int:
    """Append the questions of one split's records; return how many repeated an id that was already there."""
    repeated = 0
    for position, record in enumerate(records):
        question_id = record.identifier("question_id")
        question_id = "-".join(filter(None, (split, subset, str(position)))) if question_id is None else question_id
        given = question_id
        times_seen[given] += 1
        if times_seen[given] > 1:
            repeated += 1
            question_id = f"{given}#{times_seen[given]}"
            times_seen[question_id] += 1
        question = _question(record, split, subset, question_id)
        named.setdefault(question.clip_id, record)
        questions.append(question)
    return repeated


def _question(record: Record, split: str, subset: str, question_id: str) -> Question:
    clip_id = record.identifier("video_id")
    if clip_id is None:
        raise record.error("no 'video_id'")
    template = record.text("question_content")
    try:
        text = fill_template(template, record.strings("templ_values"))
    except ValueError as error:
        raise record.error(f"'templ_values' do not fill {template!r}: {error}") from None
    kind = tuple(record.strings("type"))
    if kind not in SHORT_TYPES:
        known = "; ".join(", ".join(k) for k in SHORT_TYPES)
        raise record.error(f"'type' is {list(kind)}, expected one of: {known}")
    answer = record.text("answer" if "anser" not in record.values and "answer" in record.values else "anser")
    if answer not in ANSWERS_42:
        raise record.error(f"'anser': {unknown_name('answer', answer, ANSWERS_42)}")
    return Question(
        id=question_id,
        clip_id=inside(record, "video_id", clip_id, single=True),
        text=text,
        answer=answer,
        type=SHORT_TYPES[kind],
        template=template,
        split=split,
        subset=subset,
    )


def _notes(split: str, path: Path, *, num_records: int, num_kept: int, num_repeated: int) -> list[str]:
    notes = []
    if split == "test" and num_kept in TEST_RELEASES:
        notes.append(f"{path.name}: {num_kept} test questions, {TEST_RELEASES[num_kept]}")
    if num_repeated:
        notes.append(f"{path.name}: {num_repeated} records repeat a question id (kept, with a suffix)")
    if num_kept < num_records:
        notes.append(f"{path.name}: {num_records - num_kept} records are marked deleted (left out)")
    return notes


def annotation_files(folder: Path, settings: DataSettings) -> Iterator[tuple[str, Path]]:
    """Yield the split and the path of each annotation file, in the order of the splits.

    They are those that `settings.files` names; else those of `settings.release`; else `avqa-<split>.json`.

    Raises:
        ManifestError: a file is not there; the message lists the JSON files that are.
    """
    if settings.files:
        names = {s: settings.files[s] for s in (*SPLITS, *settings.files) if s in settings.files}
        wanted: Mapping[str, tuple[str, ...]] = {s: (n,) if isinstance(n, str) else tuple(n) for s, n in names.items()}
        folders: tuple[str, ...] = ("",)
    elif settings.release is not None:
        wanted, folders = RELEASES[settings.release], _FOLDERS[settings.release]
    else:
        wanted, folders = {s: (name,) for s, name in _OURS.items()}, ("",)
    for split, files in wanted.items():
        for name in files:
            yield split, _find(folder, folders, name, split)


def subset_of(path: Path) -> str:
    """Return "head" or "tail" for a file that holds that part of its split (`avqa-test-tail.json`), else ""."""
    end = path.stem.replace("_", "-").rpartition("-")[2]
    return end if end in _SUBSETS else ""


def _find(folder: Path, folders: tuple[str, ...], name: str, split: str) -> Path:
    for below in folders:
        if (folder / below / name).is_file():
            return folder / below / name
    there = ", ".join(sorted(p.name for below in folders for p in (folder / below).glob("*.json"))) or "no JSON file"
    places = " or ".join(str(folder / below) for below in folders)
    raise ManifestError(
        f"{places}: no {name} for split {split!r} (there is: {there}); put it there, name data.release "
        f"({', '.join(get_args(Release))}), or name each split's file in data.files, for instance "
        '{train = "avqa-train_real.json", test = "avqa-test.json"}'
    )
