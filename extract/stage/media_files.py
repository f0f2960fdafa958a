"""Files without annotations as a data set: a folder of videos, sounds, pictures or texts becomes a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import MissingMediaError, SettingsError
from ..datasets.media_index import SOUND_SUFFIXES, VIDEO_SUFFIXES
from ..datasets.types import Clip, Manifest, Question
from ..encoders.options import Modality
from ..media.frame_folder import IMAGE_SUFFIXES

_SOUNDS = (*SOUND_SUFFIXES, ".aac", ".oga", ".wma", ".aif", ".aiff", ".au")
TEXT_SUFFIXES = (".txt", ".md")

#: Endings of the files that are looked for in a folder, by modality; a file that is named itself may have any.
SUFFIXES: dict[Modality, tuple[str, ...]] = {
    "visual": (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".gif"),
    "audio": (*_SOUNDS, *VIDEO_SUFFIXES),
    "text": TEXT_SUFFIXES,
}


def named_files(paths: Iterable[Path | str], suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files by name, in the order given and within a folder in the order of their names.

    A file that is named itself is called by its file name; one that is found in a folder, by its path in that folder.

    Args:
        paths: files and folders; folders are searched with all folders in them, hidden ones left out.
        suffixes: lower-case endings of the files that count in a folder.

    Raises:
        MissingMediaError: a path that does not exist, or a folder without such a file.
        SettingsError: two files of one name, or no path at all.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "b.txt").write_text("two"), (folder / "a.txt").write_text("one")
        >>> list(named_files([folder], (".txt",)))
        ['a.txt', 'b.txt']
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        for name, path in _files_of(given, suffixes):
            if name in found and found[name].resolve() != path.resolve():
                raise SettingsError(f"{found[name]} and {path}: two files of one name; give the folder that holds both")
            found[name] = path
    if not found:
        raise SettingsError("paths: none given; expected files or folders")
    return found


def _files_of(given: Path, suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    if given.is_file():
        return [(given.name, given)]
    if not given.is_dir():
        raise MissingMediaError(f"{given}: no such file or folder")
    inside = {path.relative_to(given): path for path in sorted(given.rglob("*"))}
    found = [
        (name.as_posix(), path)
        for name, path in inside.items()
        if path.suffix.lower() in suffixes and not any(p.startswith(".") for p in name.parts) and path.is_file()
    ]
    if not found:
        raise MissingMediaError(f"{given}: holds no file that ends in {', '.join(suffixes)}")
    return found


def guess_modality(paths: Iterable[Path | str]) -> Modality:
    """Return the modality that the files are of, by their endings: sounds, texts, or else pictures.

    Raises:
        SettingsError: files of several kinds.
        MissingMediaError: a path that does not exist.
    """
    files = [p for given in map(Path, paths) for p in ([given] if given.is_file() else sorted(given.rglob("*")))]
    kinds: dict[Modality, Path] = {}
    for path in files:
        suffix = path.suffix.lower()
        if suffix in SUFFIXES["visual"]:
            kinds.setdefault("visual", path)
        elif suffix in _SOUNDS:
            kinds.setdefault("audio", path)
        elif suffix in TEXT_SUFFIXES:
            kinds.setdefault("text", path)
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise SettingsError(f"modality: {one} looks {first}, {other} looks {second}; name the one that is meant")
    return next(iter(kinds), "visual")


def files_manifest(files: dict[str, Path], modality: Modality) -> Manifest:
    """Return a manifest of these files: a clip each, or for the modality text a question each.

    Args:
        files: by name.
        modality: of the encoder that is to read them.

    Raises:
        SettingsError: a text file that is empty or is not UTF-8.
    """
    if modality != "text":
        clips = {name: Clip(id=name, path=path) for name, path in files.items()}
        return Manifest(name="files", root=Path(), clips=clips, questions=(), answers=())
    root = next(iter(files.values())).parent
    questions = tuple(
        Question(id=n, clip_id=n, text=read_text(p), answer="", type="", template="", split="train")
        for n, p in files.items()
    )
    return Manifest(name="files", root=root, clips={}, questions=questions, answers=())


def read_text(path: Path) -> str:
    """Return the text of a file, without the white space around it.

    Raises:
        SettingsError: a file that is empty or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if not text:
        raise SettingsError(f"{path}: an empty text; expected words")
    return text
