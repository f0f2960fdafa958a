"""Gathers what an experiment trains from into one folder or tar, to be carried to a machine without the media.

In it lie the states of the boundaries that the experiment names, its annotations, local models and weights, code of
one's own, and the experiment itself with its paths changed to these; `SHA256SUMS` lists every file's digest in the form
that `sha256sum --check` reads.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import tomli_w

from ...cache.atomic_io import disk_errors, is_temporary, new_folder, temporary_beside
from ...cache.object_storage.address import is_object_url
from ...cache.write.locks import LOCK_NAME
from ...errors import CorruptItemError, SettingsError, StoreMismatchError, counted
from ...progress import progress_bar
from ..executors.device import chosen_device
from .experiment_file import ExperimentFile, read_experiment
from .pack_contents import PackContents
from .plan import requested_boundaries
from .run_records import costs_path, failed_clips_path
from .settings import ExtractSettings, RunOptions, plan_path, read_all_settings

SUMS = "SHA256SUMS"
_BLOCK = 1 << 22
#: Endings of the files that annotations are made of; media and features beside them stay where they are.
_ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".txt", "_order.h5")
_README = b"""The media of this data set are not in the pack. Training, evaluation and reports take the states of
their clips from the store beside this folder; put the media here for what needs them (--live, new items, --deep).
"""

Add = Callable[[str, IO[bytes], int], str]
"""Writes a file of a pack: its place, its content, its size; returns the content's digest."""


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was packed, or checked.

    Attributes:
        path: the folder or tar.
        files: how many there are in it.
        size_bytes: of all of them.
        boundaries: paths of the packed boundaries in their stores; () of a pack that was checked.
        missing: items that the experiment names and the store does not hold.
    """

    path: Path
    files: int
    size_bytes: int
    boundaries: tuple[str, ...] = ()
    missing: int = 0

    def lines(self) -> Iterator[str]:
        """Yield the lines that the command prints."""
        held = f", {counted(len(self.boundaries), 'boundary')}" if self.boundaries else ", every checksum holds"
        yield f"{self.path}: {counted(self.files, 'file')}, {self.size_bytes / 1e6:.1f} MB{held}"
        if self.missing:
            yield f"{counted(self.missing, 'item')} of the experiment are not in the store, and not in the pack either"


def pack_experiment(
    experiment: Path | str, out: Path | str, *, device: str = "auto", progress: bool = True
) -> PackReport:
    """Gather what an experiment trains from into one folder or tar.

    Media stay where they are: from the unpacked experiment everything works but `--live`, new items and `--deep`.
    Encoders that a name stands for ("timm:…", "pip:…", of a hub) have to be on the other machine too.

    Args:
        experiment: its TOML file.
        out: a folder that is not there yet, or a file ending in `.tar`; states do not compress, so a tar is not
            compressed either.
        device: where the encoders are opened, to know the keys of their boundaries.
        progress: show a tqdm bar over the bytes.

    Returns:
        What was packed.

    Raises:
        SettingsError: an experiment that cannot be read, a store in object storage, or `out` is there already.
        StoreMismatchError: a boundary of the experiment is not in the store.
        StoreFullError: no room.

    Example:
        >>> pack_experiment("exp.toml", "exp.tar", progress=False).boundaries[0]
        'visual/b01-ff32f86db714'
    """
    out = Path(out)
    if out.exists():
        raise SettingsError(f"{out}: is there already; name a folder or .tar that is not, or remove it")
    file = read_experiment(experiment)
    contents = PackContents()
    tables = _moved(file, contents)
    options = RunOptions(device=chosen_device(device), progress=progress)
    boundaries: list[str] = []
    missing: set[str] = set()
    for settings in read_all_settings(experiment, allow_missing=True):
        found, lacking = _add_store(settings, contents, options)
        boundaries += [path for path in found if path not in boundaries]
        missing |= lacking
    plan = plan_path(file.path.parent, file.path.stem)
    if plan.is_file():
        contents.files[plan.name] = plan
    contents.files[f"{file.path.stem}.toml"] = tomli_w.dumps(tables).encode()
    size = sum(_size(content) for content in contents.files.values())
    with (
        disk_errors(out),
        progress_bar(total=size, desc="pack", unit="B", unit_scale=True, disable=not progress) as bar,
        _opened(out, bar.update) as add,
    ):
        sums = {}
        for place, source in sorted(contents.files.items()):
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
                sums[place] = add(place, content, _size(source))
        listed = "".join(f"{digest}  {place}\n" for place, digest in sums.items()).encode()
        bar.total += len(listed)
        add(SUMS, io.BytesIO(listed), len(listed))
    return PackReport(path=out, files=len(sums), size_bytes=size, boundaries=tuple(boundaries), missing=len(missing))


def unpack(pack: Path | str, folder: Path | str | None = None, *, progress: bool = True) -> PackReport:
    """Unpack a tar that `pack_experiment` wrote, and check every file; of a folder, check it.

    Args:
        pack: the tar or the folder.
        folder: where a tar is unpacked, a folder that is not there yet; by default beside it, named as it is.
        progress: show a tqdm bar over the bytes.

    Raises:
        SettingsError: no such pack, or `folder` is there already.
        CorruptItemError: files that differ from their checksum, are missing, or were added.
        StoreFullError: no room.

    Example:
        >>> packed = pack_experiment("exp.toml", "carry.tar", progress=False)
        >>> unpack("carry.tar", "carried", progress=False).files == packed.files
        True
    """
    pack = Path(pack)
    if pack.is_dir():
        if folder is not None:
            raise SettingsError(f"{pack}: is a folder, which is checked where it is; leave out {folder}")
        return _checked(pack, {}, progress=progress)
    if not pack.is_file():
        raise SettingsError(f"{pack}: no such file; expected what talik store pack wrote")
    target = pack.with_suffix("") if folder is None else Path(folder)
    with new_folder(target) as partial:
        try:
            with tarfile.open(pack) as archive:
                found = _extracted(archive, partial, pack, progress=progress)
        except tarfile.TarError as error:
            raise CorruptItemError(f"{pack}: not a whole tar ({error}); copy it again") from None
        report = _checked(partial, found, progress=progress)
    return replace(report, path=target)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


class _Digested(io.RawIOBase):
    """Reads a file, digests what is read, and tells how many bytes."""

    def __init__(self, content: IO[bytes], tell: Callable[[int], object]) -> None:
        self._content, self._tell = content, tell
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._content.read(size)
        self._digest.update(block)
        self._tell(len(block))
        return block

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


def _digest(content: IO[bytes], file: IO[bytes] | None, tell: Callable[[int], object]) -> str:
    """Return the digest of a content, and copy it into a file if there is one."""
    read = _Digested(content, tell)
    while block := read.read(_BLOCK):
        if file is not None:
            file.write(block)
    return read.digest


@contextmanager
def _opened(out: Path, tell: Callable[[int], object]) -> Iterator[Add]:
    """Give what writes files of a pack, which is at `out` when all of them are written, and not before."""
    if out.suffix != ".tar":
        with new_folder(out) as folder:

            def into_folder(place: str, content: IO[bytes], _: int) -> str:
                path = folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    return _digest(content, file, tell)

            yield into_folder
        return
    partial = temporary_beside(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(partial, "w") as archive:

            def into_tar(place: str, content: IO[bytes], size: int) -> str:
                entry = tarfile.TarInfo(f"{out.stem}/{place}")
                entry.size, entry.mtime = size, int(time.time())
                read = _Digested(content, tell)
                archive.addfile(entry, read)
                return read.digest

            yield into_tar
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)


def _extracted(archive: tarfile.TarFile, folder: Path, pack: Path, *, progress: bool) -> dict[str, str]:
    """Write the files of a tar into a folder; return their digests by place."""
    found = {}
    size = pack.stat().st_size
    with progress_bar(total=size, desc="unpack", unit="B", unit_scale=True, disable=not progress) as bar:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            place = member.name.partition("/")[2]
            path = (folder / place).resolve()
            if content is None or not place or not path.is_relative_to(folder.resolve()):
                raise CorruptItemError(f"{pack}: {member.name!r} is no file of a pack")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                found[place] = _digest(content, file, bar.update)
    return found


def _checked(folder: Path, known: Mapping[str, str], *, progress: bool) -> PackReport:
    """Compare the files of a folder with its list; `known` are digests that were just taken."""
    sums = folder / SUMS
    if not sums.is_file():
        raise CorruptItemError(f"{folder}: no {SUMS} in it; it is no pack, or not a whole one")
    lines = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in sums.read_text(encoding="utf-8").splitlines()]
    listed = {match[2]: match[1] for match in lines if match is not None}
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    here = {path.relative_to(folder).as_posix(): path for path in files}
    here.pop(SUMS)
    size = sum(path.stat().st_size for path in here.values())
    bad = [f"{place}: is missing" for place in listed if place not in here]
    bad += [f"{place}: is not in {SUMS}" for place in here if place not in listed]
    with progress_bar(total=size, desc="check", unit="B", unit_scale=True, disable=not progress) as bar:
        for place in listed.keys() & here.keys():
            digest = known.get(place)
            if digest is None:
                with here[place].open("rb") as content:
                    digest = _digest(content, None, bar.update)
            if digest != listed[place]:
                bad.append(f"{place}: differs from its checksum")
    if bad:
        more = f", and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CorruptItemError(f"{folder}: {'; '.join(sorted(bad)[:3])}{more}; copy the pack again")
    return PackReport(path=folder, files=len(here), size_bytes=size)


def _moved(file: ExperimentFile, contents: PackContents) -> dict[str, Any]:
    """Return the experiment's tables with places in the pack for paths; add annotations, models and code."""
    base, tables = file.path.parent, copy.deepcopy(file.tables)
    for part in (tables, *tables.get("variants", ())):
        if isinstance(part.get("data"), dict):
            _move_data(part["data"], tables.get("data", {}), base, contents)
        for encoder in (part.get("encoders") or {}).values():
            contents.add_encoder(encoder, base)
        store = part.setdefault("store", {}) if part is tables else part.get("store")
        if isinstance(store, dict) and (part is tables or "path" in store):
            where = store.get("path", "features.zarr")
            if is_object_url(where):
                raise SettingsError(
                    f"store.path: {where} is object storage, which every machine reaches; nothing to pack"
                )
            store["path"] = contents.place(base / Path(where).expanduser(), "features.zarr")
    code = [contents.add_code(name, base) for name in file.imports]
    return {**({"import": code} if code else {}), **tables}


def _move_data(data: dict[str, Any], whole: Mapping[str, Any], base: Path, contents: PackContents) -> None:
    """Add annotations; the root becomes a folder without media, from which states are known by the clips' names."""
    if "root" in data or data is whole:
        root = (base / Path(data["root"]).expanduser()).resolve()
        place = contents.place(root, "data")
        data.setdefault("extracted_from", os.path.realpath(root))
        data["root"] = place
        if "annotations" not in {**whole, **data}:
            inner = root / "annotations"
            _add_annotations(
                inner if inner.is_dir() else root, f"{place}/annotations" if inner.is_dir() else place, contents
            )
        contents.files.setdefault(f"{place}/README", _README)
    if "annotations" in data:
        source = base / Path(data["annotations"]).expanduser()
        place = contents.place(source, f"annotations/{source.name}" if source.is_file() else "annotations")
        _add_annotations(source, place, contents)
        data["annotations"] = place


def _add_annotations(source: Path, place: str, contents: PackContents) -> None:
    if source.is_file():
        contents.files[place] = source
        return
    for path in source.rglob("*") if source.name == "annotations" else source.iterdir():
        if path.is_file() and path.name.endswith(_ANNOTATIONS):
            contents.files[f"{place}/{path.relative_to(source).as_posix()}"] = path


def _add_store(settings: ExtractSettings, contents: PackContents, options: RunOptions) -> tuple[list[str], set[str]]:
    """Add the boundaries of a store that the experiment names; return them, and the keys of items that they lack."""
    store = settings.open_store()
    requests, imported = requested_boundaries(settings, store, options)
    held = {spec.path: spec for spec in store.boundaries()}
    wanted = [request.spec.path for request in requests]
    lacking = [path for path in wanted if path not in held]
    if lacking:
        raise StoreMismatchError(f"{store.where}: {lacking[0]} is not in it; run talik extract first")
    missing: set[str] = set()
    for request in requests:
        with store.reader(request.spec.modality, request.spec.boundary, key=request.spec.key) as reader:
            known = {item.key for item in reader.items}
        missing |= {item.key for item in request.items} - known
    place = contents.place(store.path, "features.zarr")
    keep = {*wanted, *imported}
    for path in sorted(store.path.iterdir()):
        if path.is_file():
            if not is_temporary(path.name) and path.name != LOCK_NAME:
                contents.files[f"{place}/{path.name}"] = path
        elif path.name not in {spec.modality for spec in held.values()}:
            contents.add(path, f"{place}/{path.name}")
        else:
            for inner in path.iterdir():
                if inner.is_file() or f"{path.name}/{inner.name}" in keep:
                    contents.add(inner, f"{place}/{path.name}/{inner.name}")
    for record in (failed_clips_path(store.path), costs_path(store.path)):
        if record.is_file():
            contents.files[record.name.replace(store.path.name, place, 1)] = record
    return [*wanted, *imported], missing
