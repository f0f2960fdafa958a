"""Files without annotations as a data set: a folder of videos, sounds, pictures or texts becomes a manifest.

A tar file stands for a folder with the files in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...errors import MissingMediaError, SettingsError
from ..datasets.media_index import SOUND_SUFFIXES, VIDEO_SUFFIXES
from ..datasets.types import Clip, Manifest, Question
from ..encoders.options import Modality
from ..media.frame_folder import IMAGE_SUFFIXES
from ..media.tar_member import TAR_SUFFIX, FilePath, TarMember, media_file, tar_members

_SOUNDS = (*SOUND_SUFFIXES, ".aac", ".oga", ".wma", ".aif", ".aiff", ".au")
TEXT_SUFFIXES = (".txt", ".md")

#: Endings of the files that are looked for in a folder, by modality; a file that is named itself may have any.
SUFFIXES: dict[Modality, tuple[str, ...]] = {
    "visual": (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".gif"),
    "audio": (*_SOUNDS, *VIDEO_SUFFIXES),
    "text": TEXT_SUFFIXES,
}


def named_files(paths: Iterable[Path | str], suffixes: Sequence[str]) -> dict[str, FilePath]:
    """Return the files by name, in the order given and within a folder in the order of their names.

    A file that is named itself is called by its file name; one that is found in a folder, or in a tar file, by its path
    there.

    Args:
        paths: files ("shard.tar/key.mp4" is one inside a tar file), folders and uncompressed tar files; folders are
            searched with all folders in them, hidden ones left out, and their tar files where no such file is outside.
        suffixes: lower-case endings of the files that count in a folder.

    Raises:
        MissingMediaError: a path that does not exist, or a folder or tar file without such a file.
        MediaError: a tar file that is compressed, damaged or cut off.
        SettingsError: two files of one name, or no path at all.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "b.txt").write_text("two"), (folder / "a.txt").write_text("one")
        >>> list(named_files([folder], (".txt",)))
        ['a.txt', 'b.txt']
    """
    found: dict[str, FilePath] = {}
    for given in map(Path, paths):
        for name, path in _files_of(given, suffixes):
            if name in found and _real(found[name]) != _real(path):
                raise SettingsError(f"{found[name]} and {path}: two files of one name; give the folder that holds both")
            found[name] = path
    if not found:
        raise SettingsError("paths: none given; expected files or folders")
    return found


def _real(path: FilePath) -> tuple[Path, str]:
    return (path.tar.resolve(), path.member) if isinstance(path, TarMember) else (path.resolve(), "")


def _files_of(given: Path, suffixes: Sequence[str]) -> list[tuple[str, FilePath]]:
    if not given.is_dir():
        file = media_file(given)
        if not file.is_file():
            raise MissingMediaError(f"{given}: no such file or folder")
        if isinstance(file, Path) and file.suffix.lower() == TAR_SUFFIX:
            return _files_in([("", given)], given, suffixes)
        return [(file.name, file)]
    inside = {path.relative_to(given): path for path in sorted(given.rglob("*"))}
    shown = {n.as_posix(): p for n, p in inside.items() if not any(part.startswith(".") for part in n.parts)}
    found: list[tuple[str, FilePath]] = [
        (name, path) for name, path in shown.items() if path.suffix.lower() in suffixes and path.is_file()
    ]
    if found:
        return found
    tars = [(f"{n}/", p) for n, p in shown.items() if p.suffix.lower() == TAR_SUFFIX and p.is_file()]
    return _files_in(tars, given, suffixes)


def _files_in(tars: Sequence[tuple[str, Path]], given: Path, suffixes: Sequence[str]) -> list[tuple[str, FilePath]]:
    """Return the files in tar files, each by its name there after the name that the tar file itself is given."""
    found: list[tuple[str, FilePath]] = [
        (before + name, member)
        for before, tar in tars
        for name, member in tar_members(tar).items()
        if member.suffix.lower() in suffixes and not member.name.startswith(".")
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
    every = (*SUFFIXES["visual"], *SUFFIXES["audio"], *SUFFIXES["text"])
    kinds: dict[Modality, FilePath] = {}
    for path in _all_files(map(Path, paths), every):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES["visual"]:
            kinds.setdefault("visual", path)
        elif suffix in _SOUNDS:
            kinds.setdefault("audio", path)
        elif suffix in TEXT_SUFFIXES and not isinstance(path, TarMember):  # in a shard, captions beside the films
            kinds.setdefault("text", path)
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise SettingsError(f"modality: {one} looks {first}, {other} looks {second}; name the one that is meant")
    return next(iter(kinds), "visual")


def _all_files(paths: Iterable[Path], suffixes: Sequence[str]) -> Iterator[FilePath]:
    for given in paths:
        try:
            yield from (path for _, path in _files_of(given, suffixes))
        except MissingMediaError:
            if not given.is_dir():
                raise


def files_manifest(files: dict[str, FilePath], modality: Modality) -> Manifest:
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
    first = next(iter(files.values()))
    root = first.tar.parent if isinstance(first, TarMember) else first.parent
    questions = tuple(
        Question(id=n, clip_id=n, text=read_text(p), answer="", type="", template="", split="train")
        for n, p in files.items()
    )
    return Manifest(name="files", root=root, clips={}, questions=questions, answers=())


def read_text(path: FilePath) -> str:
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
