"""The `[data]` table of an experiment: which data set, where it lies, how it is split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...errors import SettingsError, unknown_name

#: Data sets that `load_manifest` opens.
DATASETS = ("ave", "avqa", "demo", "manifest", "music-avqa")

#: Releases of MUSIC-AVQA.
MUSIC_RELEASES = ("original", "updated", "real", "synthetic", "v2.0-balanced", "v2.0-biased", "r")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where a data set lies and how it is read. Paths are relative to the experiment file's folder.

    Attributes:
        dataset: `music-avqa`, `ave`, `avqa`, `demo` (the made set, in MUSIC-AVQA's format) or `manifest` (a JSONL or
            CSV file).
        root: the folder that holds the media; no annotation may point outside it.
        segments: the number T of time steps that a clip is cut into.
        stride_seconds: length of a segment, for segments of that length from the clip's beginning on, whatever its
            length (1.0: one frame a second); by default the T segments fill the clip.
        annotations: the folder of the annotation files, or for `manifest` the file; by default `annotations` in the
            root if there is one, else the root (`manifest.jsonl` or `manifest.csv` in the root for `manifest`).
        files: annotation file of each split where the names differ from `avqa-<split>.json`, for instance
            `{train = "avqa-train_real.json", test = "avqa-test.json"}`; splits not named are left out. A list of
            files is one split.
        release: the release of MUSIC-AVQA whose files are taken, from the annotations' folder or from where they lie
            in the repository that it is distributed in: `original`, `updated`, `real`, `synthetic`, `v2.0-balanced`,
            `v2.0-biased` or `r` (MUSIC-AVQA-R). By default `avqa-<split>.json` in the annotations' folder.
        videos: the folders in the root to look for clips, in order; by default the root and the folders in it.
        frames_fps: frames a second at which clips that are folders of frames were extracted.
        answers: the vocabulary of a `manifest`, in the order of its classes; by default the answers of train by first
            appearance, then those of the other splits.
        allow_missing: go on where media files are not there, and record which.
        missing_sound: what a file without sound is: an error, or silence.
        missing_picture: what a file without picture is: an error, or black.
        split: `official` as the files say, or `by-video`, which deals the same questions anew so that no clip is in
            two splits.
        seed: of the `by-video` split.
    """

    dataset: str
    root: str
    segments: int = 10
    stride_seconds: float | None = None
    annotations: str | None = None
    files: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    release: str | None = None
    videos: tuple[str, ...] = ()
    frames_fps: float | None = None
    answers: tuple[str, ...] = ()
    allow_missing: bool = False
    missing_sound: Literal["error", "silence"] = "error"
    missing_picture: Literal["error", "black"] = "error"
    split: Literal["official", "by-video"] = "official"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise SettingsError(f"dataset: {unknown_name('data set', self.dataset, DATASETS)}")
        if not self.root:
            raise SettingsError("root: found an empty string, expected the folder that holds the media")
        if self.segments < 1:
            raise SettingsError(f"segments: found {self.segments}, expected 1 or more")
        if self.split not in ("official", "by-video"):
            raise SettingsError(f"split: {unknown_name('kind of split', self.split, ('official', 'by-video'))}")
        for name in ("stride_seconds", "frames_fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SettingsError(f"{name}: found {value}, expected more than 0")
        if self.answers and self.dataset != "manifest":
            own = {"ave": "own classes", "avqa": "own choices"}.get(self.dataset, "own 42 answers")
            raise SettingsError(f"answers: {self.dataset} has its {own}; leave this out")
        if self.files and self.dataset == "manifest":
            raise SettingsError("files: a manifest is one file with a split column; name it in annotations")
        if self.release is not None and (self.dataset != "music-avqa" or self.release not in MUSIC_RELEASES):
            raise SettingsError(f"release: {unknown_name('release of MUSIC-AVQA', self.release, MUSIC_RELEASES)}")
        if self.release is not None and self.files:
            raise SettingsError("release: names the files itself; leave this or files out")
        if len(set(self.answers)) != len(self.answers):
            raise SettingsError("answers: an answer is listed twice")
