"""The `[data]` table of an experiment: which data set, its folder, its split; and data sets of one's own by name."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ...config import Count, Positive, ShareBelowOne, settings_class
from ...errors import SettingsError, unknown_name
from ...registry import Registry
from ...user_code import ways_to_bring
from ..media.clip_media import check_instants

if TYPE_CHECKING:
    from .types import Manifest


class DatasetLoader(Protocol):
    """Loads the annotations of a data set; a function, or an instance of a class with `__call__`."""

    def __call__(self, settings: DataSettings, *, root: Path, base: Path) -> Manifest:
        """Return the manifest of the data set in `root`; other paths of `settings` are relative to `base`."""
        ...


#: Data sets that `load_manifest` opens.
DATASETS: Registry[DatasetLoader] = Registry(
    "data set",
    "talik.datasets",
    {
        "ave": f"{__package__}.ave:load_ave",
        "avqa": f"{__package__}.avqa:load_avqa",
        "demo": f"{__package__}.music_avqa:load_demo",
        "manifest": f"{__package__}.generic:load_generic",
        "music-avqa": f"{__package__}.music_avqa:load_music_avqa",
    },
)


def register_dataset(name: str, loader: DatasetLoader) -> None:
    """Make a data set known under `name`, for `[data] dataset = name`.

    Installed packages offer theirs by an entry point of the group `talik.datasets`.

    Args:
        name: the data set's name.
        loader: called as `loader(settings, root=root, base=base)` with the `[data]` table, the folder that holds the
            media, and the experiment file's folder; returns a `Manifest`.

    Example:
        >>> from talik.extract.datasets.types import Clip, Manifest, Question
        >>> def load_door(settings, *, root, base):
        ...     question = Question(
        ...         id="1", clip_id="a", text="Is it open?", answer="yes", type="all", template="", split="train"
        ...     )
        ...     clips = {"a": Clip(id="a", path=root / "a.mp4")}
        ...     return Manifest(name="door", root=root, clips=clips, questions=(question,), answers=("yes", "no"))
        >>> register_dataset("door", load_door)
        >>> "door" in DATASETS.names()
        True
    """
    DATASETS.register(name, loader)


#: Releases of MUSIC-AVQA.
Release = Literal["original", "updated", "real", "synthetic", "v2.0-balanced", "v2.0-biased", "r"]


_OWN_ANSWERS = {"ave": "classes", "avqa": "choices", "demo": "42 answers", "music-avqa": "42 answers"}


@settings_class
class DataSettings:
    """Where a data set lies and how it is read. Paths are relative to the experiment file's folder.

    Attributes:
        dataset: `music-avqa`, `ave`, `avqa`, `demo` (the made set, in MUSIC-AVQA's format), `manifest` (a JSONL or
            CSV file), a name that `register_dataset` made known, or `module:function`, a loader of one's own beside
            the experiment file.
        root: the folder that holds the media; no annotation may point outside it.
        segments: the number T of time steps that a clip is cut into.
        stride_seconds: length of a segment, for segments of that length from the clip's beginning on, whatever its
            length (1.0: one frame a second); by default the T segments fill the clip.
        instants: `centres` of the segments; or `first-to-last`: the first, the last and equally many frames between, of
            those that FFmpeg's filter `fps` takes out at `instants_fps` (of a folder of frames, of all of them), and
            windows of sound from the first sample to 0.1 s before the last; with `stride_seconds`, of the clip's first
            seconds that the segments make. It is what LAVISH's loader does.
        instants_fps: the frames a second among which `first-to-last` chooses.
        annotations: the folder of the annotation files, or for `manifest` the file; by default `annotations` in the
            root if there is one, else the root (`manifest.jsonl` or `manifest.csv` in the root for `manifest`).
        files: annotation file of each split where the names differ from `avqa-<split>.json`, for instance
            `{train = "avqa-train_real.json", test = "avqa-test.json"}`; splits not named are left out. A list of
            files is one split.
        release: the release of MUSIC-AVQA whose files are taken, from the annotations' folder or from where they lie
            in the repository that it is distributed in: `original`, `updated`, `real`, `synthetic`, `v2.0-balanced`,
            `v2.0-biased` or `r` (MUSIC-AVQA-R). By default `avqa-<split>.json` in the annotations' folder.
        videos: the folders in the root to look for clips, in order: of two files of one name the earlier folder's is
            taken; also tar files, uncompressed (`["shards/000000.tar"]`), or all of a pattern (`["shards/*.tar"]`). Tar
            files in the folders are looked in for clips that no file there has the name of. By default the root and the
            folders in it, for `music-avqa` also those of its distribution (`data/video`, and in it the two unpacked
            archives), where two files of one name are an error.
        frames_fps: frames a second at which clips that are folders of frames were extracted.
        answers: the vocabulary of a `manifest`, in the order of its classes; by default all answers of its splits, in
            the order in which train, then val, then test first name them.
        extracted_from: the root at which the store's states were extracted, where the media themselves are not here and
            the store lies elsewhere in relation to the root than it did then; a message says so, and names it.
        allow_missing: go on where media files are not there, and record which.
        missing_sound: what a file without sound is: an error, or silence.
        missing_picture: what a file without picture is: an error, or black.
        decoder: of pictures: `pyav`; `torchcodec`, where that package and FFmpeg's shared libraries are installed; or
            `nvdec`, torchcodec on the first GPU's own decoder. The states of another decoder are other states.
        deinterlace: FFmpeg's filter that makes interlaced frames whole, `yadif` or `bwdif`; `off` leaves them with both
            fields in each, as FFmpeg's command does.
        channels: of the sound: their `mean`, or the `first` alone, as Kaldi's filter banks in LAVISH's code hear it.
        split: `official` as the files say, or `by-video`, which deals the same questions anew so that no clip is in
            two splits.
        validation: share of train's clips that become the split `val`, with all their questions, where a data set has
            none; 0 for none.
        columns: further columns that the records of a `manifest` may have.
        type_column: the column of a `manifest` that gives a question's type, in place of `type`.
        seed: of the `by-video` split, and of `validation`.
    """

    dataset: str
    root: str
    segments: Count = 10
    stride_seconds: Positive | None = None
    instants: Literal["centres", "first-to-last"] = "centres"
    instants_fps: Positive | None = None
    annotations: str | None = None
    files: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    release: Release | None = None
    videos: tuple[str, ...] = ()
    frames_fps: Positive | None = None
    answers: tuple[str, ...] = ()
    extracted_from: str | None = None
    allow_missing: bool = False
    missing_sound: Literal["error", "silence"] = "error"
    missing_picture: Literal["error", "black"] = "error"
    decoder: Literal["pyav", "torchcodec", "nvdec"] = "pyav"
    deinterlace: Literal["off", "yadif", "bwdif"] = "off"
    channels: Literal["mean", "first"] = "mean"
    split: Literal["official", "by-video"] = "official"
    validation: ShareBelowOne = 0.0
    columns: tuple[str, ...] = ()
    type_column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            unknown = unknown_name("data set", self.dataset, DATASETS.names())
            raise SettingsError(f"dataset: {unknown}{ways_to_bring('dataset', DATASETS.group)}")
        if not self.root:
            raise SettingsError("root: found an empty string, expected the folder that holds the media")
        check_instants(self.instants, self.instants_fps)
        if self.answers and self.dataset in _OWN_ANSWERS:
            raise SettingsError(f"answers: {self.dataset} has its own {_OWN_ANSWERS[self.dataset]}; leave this out")
        if self.files and self.dataset == "manifest":
            raise SettingsError("files: a manifest is one file with a split column; name it in annotations")
        if self.release is not None and self.dataset != "music-avqa":
            raise SettingsError(f"release: found {self.release!r}, but {self.dataset} has no releases; remove the key")
        if self.release is not None and self.files:
            raise SettingsError("release: names the files itself; leave this or files out")
        if (self.columns or self.type_column) and self.dataset != "manifest":
            raise SettingsError(f"columns, type_column: are of a manifest; {self.dataset} has its own; remove the keys")
        if len(set(self.answers)) != len(self.answers):
            raise SettingsError("answers: an answer is listed twice")
