"""Files of features, opened as a list of clips with an array each: rows or keys of an .h5 file, or a folder of .npy."""

from __future__ import annotations

import fnmatch
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...cache.format.digests import digest_file, digest_json
from ...errors import ManifestError, StoreFormatError
from .column_mapping import FeatureMapping

Array = NDArray[np.generic]
"""One clip's features, of any numeric type, with the file's own axes."""


@dataclass(frozen=True)
class Entry:
    """One clip's features: the clip's id, the item's key, and where its array is (a row, a key, a file's name)."""

    id: str
    key: str
    place: int | str


class FeatureFiles(ABC):
    """An opened source; a context manager.

    Attributes:
        entries: the clips in the source's order, each id once.
        identity: what of the files the values depend on, as JSON.
        notes: what is odd about the source.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.identity: dict[str, Any] = {}
        self.notes: list[str] = []

    @abstractmethod
    def load(self, entry: Entry) -> Array:
        """Return one clip's array as the file has it."""

    def __enter__(self) -> FeatureFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - a folder holds nothing open
        """Close the file."""


def open_features(source: Path, mapping: FeatureMapping, base: Path) -> FeatureFiles:
    """Open a folder of .npy files or one .h5 file; the mapping's paths count from `base`.

    Raises:
        StoreFormatError: not what the mapping says.
        ManifestError: ids that cannot be read, or not one a row.
    """
    if source.is_dir():
        return NpyFolder(source, mapping)
    if not source.is_file():
        raise StoreFormatError(f"{source}: no such file or folder; expected an .h5 file or a folder of .npy files")
    return H5File(source, mapping, base)


class NpyFolder(FeatureFiles):
    """A folder with one .npy file a clip; its items are known by their own content, so that files can be added."""

    def __init__(self, folder: Path, mapping: FeatureMapping) -> None:
        super().__init__()
        found = sorted(p for p in folder.iterdir() if p.name.endswith(mapping.suffix) and p.is_file())
        if not found:
            raise StoreFormatError(f"{folder}: no file ends in {mapping.suffix}; expected one .npy file a clip")
        self._folder = folder
        self.identity = {"format": "npy", "suffix": mapping.suffix}
        for path in found:
            clip = path.name.removesuffix(mapping.suffix)
            self.entries.append(Entry(clip, digest_json({"id": clip, "content": digest_file(path)}), path.name))

    def load(self, entry: Entry) -> Array:
        """Return one clip's array as the file has it."""
        path = self._folder / str(entry.place)
        try:
            loaded: Array = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded
        except (ValueError, OSError, EOFError) as error:
            raise StoreFormatError(f"{path}: not an array in .npy ({' '.join(str(error).split())})") from None


class H5File(FeatureFiles):
    """An .h5 file: the rows of one dataset, or one dataset a clip; identified by the digest of the whole file."""

    def __init__(self, path: Path, mapping: FeatureMapping, base: Path) -> None:
        super().__init__()
        self._path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise StoreFormatError(f"{path}: cannot be opened as HDF5 ({error})") from None
        try:
            digest = digest_file(path)
            self.identity = {"format": "hdf5", "digest": digest}
            named = self._keys(mapping) if mapping.ids is None and mapping.rows is None else self._rows(mapping, base)
            self.entries = [Entry(i, digest_json({"id": i, "file": digest, "place": p}), p) for i, p in named.items()]
            if not self.entries:
                raise StoreFormatError(f"{path}: no clip in it")
        except BaseException:
            self._file.close()
            raise

    def load(self, entry: Entry) -> Array:
        """Return one clip's array as the file has it."""
        return np.asarray(self._data[entry.place])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _keys(self, mapping: FeatureMapping) -> dict[str, str]:
        group = self._file if mapping.dataset is None else self._file.get(mapping.dataset)
        if not isinstance(group, h5py.Group):
            raise StoreFormatError(
                f"{self._path}: {mapping.dataset!r} is no group of one dataset a clip (there is: {self._held()}); name "
                "its rows by ids or rows"
            )
        self._data: Any = group
        self.identity |= {"dataset": group.name, "ids": "keys"}
        return {name: name for name, value in group.items() if isinstance(value, h5py.Dataset)}

    def _rows(self, mapping: FeatureMapping, base: Path) -> dict[str, int]:
        """Return the row of each id; of an id that stands several times, its first row."""
        self._data = self._dataset(mapping.dataset or "*", but=mapping.ids)
        count = len(self._data)
        names = self._ids(mapping, base) if mapping.ids is not None else _row_names(base / str(mapping.rows), mapping)
        if len(names) != count:
            where = mapping.ids if mapping.ids is not None else base / str(mapping.rows)
            raise ManifestError(f"{where}: names {len(names)} rows, but {self._data.name} of {self._path} has {count}")
        rows = _ordered(mapping, base, count)
        self.identity |= {"dataset": self._data.name, "ids": digest_json([names[r] for r in rows])}
        found: dict[str, int] = {}
        repeated = 0
        for row in rows:
            if names[row] in found:
                repeated += not np.array_equal(self._data[row], self._data[found[names[row]]])
            else:
                found[names[row]] = row
        if len(found) < len(rows):
            self.notes.append(
                f"{len(rows) - len(found)} rows repeat an id, {repeated} of them with other values; the first row of "
                "each id is taken"
            )
        return found

    def _ids(self, mapping: FeatureMapping, base: Path) -> list[str]:
        if mapping.ids not in self._file:
            raise StoreFormatError(f"{self._path}: no dataset {mapping.ids!r} (there is: {self._held()})")
        raw = self._file[mapping.ids][()].ravel().tolist()
        names = [v.decode() if isinstance(v, bytes) else str(v) for v in raw]
        if not mapping.id_map:
            return names
        by_number = {k: v for name in mapping.id_map for k, v in _id_map(base / name).items()}
        missing = [n for n in names if n not in by_number]
        if missing:
            raise ManifestError(f"{', '.join(mapping.id_map)}: {len(missing)} ids have no name, the first {missing[0]}")
        return [by_number[n] for n in names]

    def _dataset(self, pattern: str, *, but: str | None) -> h5py.Dataset:
        held = [n for n, v in self._file.items() if isinstance(v, h5py.Dataset) and n != but]
        fitting = [n for n in held if fnmatch.fnmatchcase(n, pattern)]
        if len(fitting) != 1:
            raise StoreFormatError(
                f"{self._path}: {len(fitting)} datasets fit {pattern!r}, expected one (there is: {self._held()})"
            )
        return self._file[fitting[0]]

    def _held(self) -> str:
        return ", ".join(list(self._file)[:10]) or "nothing"


def _row_names(path: Path, mapping: FeatureMapping) -> list[str]:
    """Return the id on each line of the text file that names the rows; empty lines at the end do not count."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); it is to name the rows of the features") from None
    names = []
    for number, line in enumerate(lines, start=1):
        fields = line.split(mapping.delimiter) if mapping.delimiter else [line]
        if mapping.column >= len(fields):
            raise ManifestError(
                f"{path.name}:{number}: {len(fields)} fields, the id is to be in number {mapping.column}"
            )
        name = fields[mapping.column].strip()
        if not (number == 1 and mapping.header is not None and name == mapping.header):
            names.append(name)
    return names


def _id_map(path: Path) -> dict[str, str]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(table, list):
            return {str(int(record["video_id"])): str(record["video_name"]) for record in table}
        return {str(int(number)): str(name) for name, number in table.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ManifestError(
            f'{path}: expected {{"name": number, …}}, or a list of records with video_name and video_id ({error!r})'
        ) from None


def _ordered(mapping: FeatureMapping, base: Path, count: int) -> Sequence[int]:
    if not mapping.order:
        return range(count)
    rows: list[int] = []
    for name in mapping.order:
        path = base / name
        try:
            with h5py.File(path, "r") as file:
                rows += [int(row) for row in file["order"][()].ravel()]
        except (OSError, KeyError) as error:
            raise ManifestError(f"{path}: expected an .h5 file with an array `order` ({error})") from None
        outside = [row for row in rows if not 0 <= row < count]
        if outside:
            raise ManifestError(f"{path}: names row {outside[0]}, the features have rows 0 to {count - 1}")
    return sorted(set(rows))
