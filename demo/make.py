"""Make a set of clips in a folder: scenes and questions first, then the missing clips, on all cores."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..cache.atomic_io import write_file
from ..cache.cores import available_cores
from ..errors import ManifestError, MediaError, SettingsError
from ..extract.datasets.music_avqa import fill_template
from ..progress import progress_bar
from .questions import Record, SetKind, blind_accuracy, make_records, make_scenes, row_of, set_kind, short_type
from .scene import SPLITS, Scene, scene_to_json
from .video_file import write_video

SET_VERSIONS = {"demo": 1, "taste": 1, "evaluation": 1}
"""Of each kind of set; raised whenever the same seed would give other questions, pixels or samples."""
_FEW = 4


@dataclass(frozen=True, kw_only=True)
class DemoSet:
    """What `make_demo` made or found.

    Attributes:
        folder: the set's folder: videos/, annotations/ and scenes.json.
        num_clips: clips in the set.
        num_made: clips rendered by this call; the others were there.
        num_bytes: the size of all clips' files.
        counts: questions by split and short type; in the evaluation set also by family, as "AV-temp, long".
        clips: clips by split.
        blind: right answers of the blind baseline on test, by the same and "all", as fractions: it gives each
            template's most frequent training answer.
    """

    folder: Path
    num_clips: int
    num_made: int
    num_bytes: int
    counts: dict[str, dict[str, int]]
    clips: dict[str, int]
    blind: dict[str, float]

    @property
    def blind_accuracy(self) -> float:
        """The blind baseline's share of right answers on the test split."""
        return self.blind.get("all", 0.0)

    @property
    def num_questions(self) -> int:
        """Questions in all splits."""
        return sum(sum(types.values()) for types in self.counts.values())

    def summary(self) -> str:
        """Return the lines that the command prints."""
        lines = [
            f"{self.folder}: {self.num_clips} clips ({self.num_made} made now, {self.num_clips - self.num_made} "
            f"already there), {self.num_bytes / 1e6:.1f} MB, {self.num_questions} questions"
        ]
        lines += [f"  {s:<5} {self.clips[s]:>5} clips  {sum(self.counts[s].values()):>6} questions" for s in SPLITS]
        by_type = "  ".join(f"{name} {100 * right:.1f}" for name, right in self.blind.items() if name != "all")
        share = 100 * self.blind_accuracy
        lines.append(f"  blind baseline on test (most frequent answer of each template): {share:.1f} %")
        lines.append(f"    {by_type}")
        return "\n".join(lines)


def make_demo(
    folder: Path,
    *,
    num_clips: int = 240,
    seed: int = 0,
    kind: SetKind = "demo",
    workers: int | None = None,
    progress: bool = True,
) -> DemoSet:
    """Make the made set of `kind` and `seed` in `folder`, or what is missing of it.

    Clip i and its questions depend on the seed and on the clips before it alone, so a larger set of the same seed
    extends a smaller one. Every file appears whole or not at all.

    Args:
        folder: made when absent; holds videos/<video_id>.mp4, annotations/avqa-{train,val,test}.json, scenes.json; and
            manifest.jsonl, for `[data] dataset = "manifest"`, where `kind` is "evaluation".
        num_clips: 4 or more, so that every split has a clip.
        seed: 0 or more.
        kind: "demo", clips of 8 s; "taste", the same scenes with questions of eight templates, and more of the clips in
            test; or "evaluation", clips of 24 s whose questions of the families "long" and "short" ask for the whole
            clip, or for sight and sound of one segment (docs/evaluation.md).
        workers: processes that render; all cores when None, none beside this one when 1.
        progress: whether to show a bar on the error stream.

    Raises:
        SettingsError: a number out of range, an unknown kind, or a set of another kind, seed or version in the folder.
        ManifestError: scenes.json is there and is not a demo set's.
        MediaError: a file cannot be written.
        BackendError: a package of the demo extra is missing.
    """
    folder = Path(folder)
    _check_numbers(num_clips, seed, workers)
    set_kind(kind)
    _check_folder(folder, kind, seed)
    scenes = make_scenes(seed, num_clips, kind)
    records = make_records(scenes, kind)
    try:
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
    except OSError as error:
        raise MediaError(f"{folder}: cannot be made ({error}); choose another folder") from None
    _write_scenes(folder, scenes, kind, seed)
    missing = [scene for scene in scenes if not _video(folder, scene).is_file()]
    _render(partial(_film_into, folder, kind != "demo"), missing, workers, progress)
    for split in SPLITS:
        _write_json(folder / "annotations" / f"avqa-{split}.json", records[split])
    if kind == "evaluation":
        _write_manifest(folder / "manifest.jsonl", records)
    return DemoSet(
        folder=folder,
        num_clips=num_clips,
        num_made=len(missing),
        num_bytes=sum(_video(folder, scene).stat().st_size for scene in scenes),
        counts={split: dict(sorted(Counter(map(row_of, records[split])).items())) for split in SPLITS},
        clips={split: sum(scene.split == split for scene in scenes) for split in SPLITS},
        blind=blind_accuracy(records),
    )


def _check_numbers(num_clips: int, seed: int, workers: int | None) -> None:
    if num_clips < _FEW:
        raise SettingsError(f"clips: found {num_clips}, expected {_FEW} or more (every split needs a clip)")
    if seed < 0:
        raise SettingsError(f"seed: found {seed}, expected 0 or more")
    if workers is not None and workers < 1:
        raise SettingsError(f"workers: found {workers}, expected 1 or more")


def _check_folder(folder: Path, kind: SetKind, seed: int) -> None:
    path = folder / "scenes.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, found_seed, found_kind = found["version"], found["seed"], found.get("set", "demo")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ManifestError(f"{path}: not the scenes of a demo set; choose an empty folder") from None
    if (found_kind, version, found_seed) != (kind, SET_VERSIONS[kind], seed):
        wanted = f"seed {seed}, version {SET_VERSIONS[kind]}"
        wanted = wanted if found_kind == kind else f"the {kind} set of {wanted}"
        raise SettingsError(
            f"{folder}: holds the {found_kind} set of seed {found_seed}, version {version}; expected {wanted}; choose "
            "another folder"
        )


def _render(job: Callable[[Scene], int], scenes: Sequence[Scene], workers: int | None, progress: bool) -> None:
    with progress_bar(total=len(scenes), desc="clips", unit="clip", disable=not progress or not scenes) as bar:
        for _ in _films(job, scenes, workers):
            bar.update()


def _films(job: Callable[[Scene], int], scenes: Sequence[Scene], workers: int | None) -> Iterator[int]:
    num_workers = min(workers or available_cores(), max(1, len(scenes) // _FEW))
    if num_workers == 1:
        yield from map(job, scenes)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        try:
            yield from pool.map(job, scenes, chunksize=_FEW)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _film_into(folder: Path, fast_sound: bool, scene: Scene) -> int:
    return write_video(scene, _video(folder, scene), fast_sound=fast_sound)


def _video(folder: Path, scene: Scene) -> Path:
    return folder / "videos" / f"{scene.video_id}.mp4"


def _write_scenes(folder: Path, scenes: Sequence[Scene], kind: SetKind, seed: int) -> None:
    clips = {scene.video_id: scene_to_json(scene) for scene in scenes}
    named = {} if kind == "demo" else {"set": kind}
    _write_json(folder / "scenes.json", {"version": SET_VERSIONS[kind], **named, "seed": seed, "clips": clips})


def _write_manifest(path: Path, records: Mapping[str, Sequence[Record]]) -> None:
    """Write the questions as one table, with the columns that MUSIC-AVQA's files do not have."""
    lines = [
        {
            "clip": f"videos/{record['video_id']}.mp4",
            "question": fill_template(record["question_content"], json.loads(record["templ_values"])),
            "answer": record["anser"],
            "type": short_type(record),
            "split": split,
            "id": str(record["question_id"]),
            "template": record["question_content"],
            "family": record["family"],
            "type_and_family": row_of(record),
            "deciding_segments": record["deciding_segments"],
        }
        for split in SPLITS
        for record in records[split]
    ]
    _write(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))


def _write_json(path: Path, content: list[Record] | dict[str, Any]) -> None:
    """Write JSON whole or not at all, laid out as MUSIC-AVQA's files are."""
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise MediaError(f"{path}: cannot be written ({error}); free disk space or choose another folder") from None
