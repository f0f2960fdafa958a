"""What a data set is once it is loaded: clips, questions about them, and the words that answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...errors import ManifestError
from ..media.frame_folder import FrameFolder, MediaSource
from ..media.stretch import fragment, stretch_of
from ..media.tar_member import FilePath, TarMember

#: The splits in the order in which they are told; a manifest may name others, which come after these.
SPLITS = ("train", "val", "test")

#: The class of a segment in which no event happens.
BACKGROUND = "background"

#: The nine question types of MUSIC-AVQA in the order of its papers' tables.
MUSIC_AVQA_TYPES = (
    "A-count",
    "A-comp",
    "V-count",
    "V-loc",
    "AV-exist",
    "AV-count",
    "AV-loc",
    "AV-comp",
    "AV-temp",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One video with its sound, or a stretch of one.

    Attributes:
        id: the name that annotations use, of a stretch with its ends ("film.mp4#t=60,70"); unique in a manifest.
        path: the video or sound file, also inside a tar file, or the folder of its extracted frames; None where it is
            missing and missing files were allowed.
        sound: the sound file that belongs to a folder of frames.
        frames_fps: the rate at which a folder's frames were extracted.
        start_seconds, end_seconds: where in the film it begins and ends; None for the film's beginning and end.
        where: the first record that names a stretch, for messages.
    """

    id: str
    path: FilePath | None
    sound: FilePath | None = None
    frames_fps: float | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    where: str = field(default="", compare=False)

    @property
    def fragment(self) -> str:
        """The stretch as the end of a name or a link, "#t=60,70"; "" of a whole film."""
        return fragment(self.start_seconds, self.end_seconds)

    @property
    def media(self) -> MediaSource | None:
        """What is decoded: the file, or the folder of frames with its sound, or a part of it; None where it is missing.

        Raises:
            SettingsError: the part's end is not after its beginning.
        """
        if self.path is None:
            return None
        film: FilePath | FrameFolder = self.path
        if self.frames_fps is not None and not isinstance(self.path, TarMember):
            film = FrameFolder(path=self.path, fps=self.frames_fps, sound=self.sound)
        return stretch_of(film, self.start_seconds, self.end_seconds, self.where)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one clip.

    Attributes:
        id: unique in a manifest (annotations that repeat an id get a suffix, `1234#2`).
        clip_id: the clip that it asks about.
        text: the words that an encoder reads, templates filled; "" where a data set has no questions, only classes.
        answer: one of the manifest's answers; "" where there are only labels. Of several right ones the one that was
            given most often.
        type: the short form (`AV-count`) for MUSIC-AVQA, free text elsewhere.
        template: the wording before it is filled, as distributed.
        split: `train`, `val`, `test` or a name of the manifest's own.
        subset: the part of its split that it belongs to, where a release has such (`head`, `tail`).
        labels: the class of each segment, each one of the manifest's answers; () where there are none.
        choices: the answers to choose from, all of them among the manifest's; () for the whole vocabulary.
        answers: all right answers, each as often as people gave it, `answer` among them; () where there is only
            `answer`.
    """

    id: str
    clip_id: str
    text: str
    answer: str
    type: str
    template: str
    split: str
    subset: str = ""
    labels: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def right(self) -> tuple[str, ...]:
        """The right answers, each once; () where there are only labels."""
        return tuple(dict.fromkeys(self.answers)) or ((self.answer,) if self.answer else ())


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaPlace:
    """Where a data set's clips are looked for: with a clip's name it decides which file is meant.

    Attributes:
        root: the folder that holds the media, absolute, symbolic links resolved.
        choice: what else decides, as JSON: the kind of the data set, the folders in the root, the rate of frames.
        extracted_from: the root from which a store's states were extracted, where the settings name it.
    """

    root: str
    choice: str = ""
    extracted_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set: its clips, its questions in the order of its files, and its answers in the order of their classes.

    Attributes:
        name: the data set's name in the settings.
        root: the folder that holds the media.
        clips: by id, in the order in which questions first name them.
        questions: of all splits; train first, then val, then test.
        answers: the vocabulary; a question's class is its answer's position here.
        notes: one line each on what was found while loading (version, duplicates, deleted records).
        place: where its clips are looked for; `load_manifest` sets it.
    """

    name: str
    root: Path
    clips: dict[str, Clip]
    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    place: MediaPlace | None = None

    @cached_property
    def _by_split(self) -> dict[str, tuple[Question, ...]]:
        found: dict[str, list[Question]] = {}
        for question in self.questions:
            found.setdefault(question.split, []).append(question)
        ordered = [s for s in SPLITS if s in found] + [s for s in found if s not in SPLITS]
        return {split: tuple(found[split]) for split in ordered}

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that hold questions."""
        return tuple(self._by_split)

    @property
    def missing(self) -> tuple[str, ...]:
        """The ids of the clips whose file is not there."""
        return tuple(clip.id for clip in self.clips.values() if clip.path is None)

    def split(self, name: str) -> tuple[Question, ...]:
        """Return the questions of one split, in the order of its file.

        Raises:
            ManifestError: no question belongs to that split.
        """
        try:
            return self._by_split[name]
        except KeyError:
            known = ", ".join(self._by_split) or "none"
            raise ManifestError(f"{self.name} has no split {name!r} (it has: {known})") from None

    def present(self) -> Manifest:
        """Return the manifest without its missing clips and without the questions about them."""
        gone = set(self.missing)
        if not gone:
            return self
        clips = {i: clip for i, clip in self.clips.items() if i not in gone}
        return dataclasses.replace(
            self, clips=clips, questions=tuple(q for q in self.questions if q.clip_id not in gone)
        )
