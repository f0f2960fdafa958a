"""MUSIC-AVQA's releases: which annotation files each is made of, and where they lie in the folders as distributed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import ManifestError
from .settings import MUSIC_RELEASES, DataSettings
from .types import SPLITS

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

#: Parts of a split that a file holds, by the end of its name: answers that are frequent, and that are rare, for their
#: type of question (Ma et al., Look, Listen, and Answer, NeurIPS 2024: more, and less, than 1.2 times the mean).
_SUBSETS = ("head", "tail")


def annotation_folder(settings: DataSettings, *, root: Path, base: Path) -> Path:
    """Return the folder of the annotation files.

    Raises:
        ManifestError: it is not a folder.
    """
    if settings.annotations is None:
        return root / "annotations" if (root / "annotations").is_dir() else root
    folder = base / settings.annotations
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder; data.annotations is to be the folder of the annotation files")
    return folder


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
        f"({', '.join(MUSIC_RELEASES)}), or name each split's file in data.files, for instance "
        '{train = "avqa-train_real.json", test = "avqa-test.json"}'
    )
