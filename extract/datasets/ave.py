"""AVE, audio-visual event localisation (Tian et al., ECCV 2018, https://github.com/YapengTian/AVE-ECCV18).

Lines as distributed, `Category&VideoID&Quality&StartTime&EndTime` with whole seconds of a clip of 10 s, in
`trainSet.txt`, `valSet.txt` and `testSet.txt`; or in `Annotations.txt`, whose line numbers `train_order.h5` and its kin
deal to the splits. A segment whose centre lies in [StartTime, EndTime) is of the category, any other of the background.
Centres count from the clip's beginning in steps of `stride_seconds`. Without it the segments of a clip are labelled as
if it lasted 10 s but show it from end to end, so that the two part in a clip of another length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...errors import ManifestError, unknown_name
from .json_records import Record, inside, read_lines
from .media_index import annotation_folder, find_clips
from .settings import DataSettings
from .types import BACKGROUND, SPLITS, Manifest, Question

#: The 28 categories in the order of their classes, of first appearance in Annotations.txt; the background comes last.
CATEGORIES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)
CLIP_SECONDS = 10.0
_FIELDS = ("Category", "VideoID", "Quality", "StartTime", "EndTime")


def load_ave(settings: DataSettings, *, root: Path, base: Path) -> Manifest:
    """Load AVE.

    Args:
        settings: `annotations`, `files`, `videos`, `segments` and `allow_missing` are used here.
        root: the folder with the media.
        base: the folder that `annotations` counts from.

    Raises:
        ManifestError: a file or a line that is not as described above, in one line that names it.
        MissingMediaError: clips that are not there.
    """
    folder = annotation_folder(settings, root=root, base=base)
    step = settings.stride_seconds or CLIP_SECONDS / settings.segments
    centres = [(k + 0.5) * step for k in range(settings.segments)]
    questions: list[Question] = []
    named: dict[str, Record] = {}
    times_seen: Counter[str] = Counter()
    for split, record in _split_records(folder, settings):
        question = _question(record, split, centres, times_seen)
        named.setdefault(question.clip_id, record)
        questions.append(question)
    clips = find_clips(named, settings, root=root)
    repeated = sum(n - 1 for n in times_seen.values() if n > 1)
    notes = [f"{repeated} lines are about a clip of an earlier line (kept, with a suffix)"] if repeated else []
    if settings.stride_seconds is None:
        notes.append(
            f"segments are labelled as of clips of {CLIP_SECONDS:g} s; those of another length are labelled wrongly: "
            f"set stride_seconds = {step:g} in [data]"
        )
    return Manifest(
        name=settings.dataset,
        root=root,
        clips=clips,
        questions=tuple(questions),
        answers=(*CATEGORIES, BACKGROUND),
        notes=tuple(notes),
    )


def _split_records(folder: Path, settings: DataSettings) -> Iterator[tuple[str, Record]]:
    names = settings.files or {split: f"{split}Set.txt" for split in SPLITS}
    listed = {s: n for s, given in names.items() for n in ([given] if isinstance(given, str) else given)}
    if not settings.files and not (folder / "trainSet.txt").is_file() and (folder / "train_order.h5").is_file():
        yield from _ordered_records(folder)
        return
    for split, name in listed.items():
        if not (folder / name).is_file():
            raise ManifestError(
                f"{folder}: no {name}; expected trainSet.txt, valSet.txt and testSet.txt, or Annotations.txt with "
                "train_order.h5, val_order.h5 and test_order.h5; or name each split's file in data.files"
            )
        for record in _records(folder / name):
            yield split, record


def _ordered_records(folder: Path) -> Iterator[tuple[str, Record]]:
    """Yield the lines of Annotations.txt that each split's order file counts, from 0."""
    import h5py

    records = _records(folder / "Annotations.txt")
    for split in SPLITS:
        path = folder / f"{split}_order.h5"
        try:
            with h5py.File(path, "r") as file:
                order = [int(i) for i in file["order"][:]]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise ManifestError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
        for place, number in enumerate(order):
            if not 0 <= number < len(records):
                raise ManifestError(f"{path}: entry {place} is {number}, Annotations.txt has {len(records)} lines")
            yield split, records[number]


def _records(path: Path) -> list[Record]:
    found = []
    for where, line in read_lines(path):
        values = [v.strip() for v in line.split("&")]
        if values == list(_FIELDS):
            continue
        if len(values) != len(_FIELDS):
            raise ManifestError(f"{where}: found {len(values)} fields, expected {'&'.join(_FIELDS)}")
        found.append(Record(where, dict(zip(_FIELDS, values, strict=True))))
    if not found:
        raise ManifestError(f"{path}: no line; expected {'&'.join(_FIELDS)}")
    return found


def _question(record: Record, split: str, centres: list[float], times_seen: Counter[str]) -> Question:
    category = record.text("Category")
    if category not in CATEGORIES:
        raise record.error(f"'Category': {unknown_name('category', category, CATEGORIES)}")
    clip_id = inside(record, "VideoID", record.text("VideoID"), single=True)
    begin, end = (_seconds(record, key) for key in ("StartTime", "EndTime"))
    times_seen[clip_id] += 1
    return Question(
        id=clip_id if times_seen[clip_id] == 1 else f"{clip_id}#{times_seen[clip_id]}",
        clip_id=clip_id,
        text="",
        answer=category,
        type="event",
        template="",
        split=split,
        labels=tuple(category if begin <= centre < end else BACKGROUND for centre in centres),
    )


def _seconds(record: Record, key: str) -> float:
    text = record.text(key)
    if not text.isascii() or not text.isdigit() or int(text[:9]) > CLIP_SECONDS:
        raise record.error(f"{key!r} is {ascii(text)[:60]}, expected whole seconds from 0 to {CLIP_SECONDS:g}")
    return float(text)
