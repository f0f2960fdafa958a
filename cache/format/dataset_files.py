"""What a store knows of the files of data sets: which content each clip's file had when it was last digested.

It is one group, `datasets`, whose attributes hold a table for each place of a data set. States are known by content
alone; the tables serve for two things. A file of the same place, inode, size and time as when it was digested is not
digested again. And where the files are not (the store was copied to another machine) a clip's name still leads to its
states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import StoreFormatError
from .zarr_metadata import METADATA_NAME, group_document, read_document, write_document

GROUP = "datasets"
UNKNOWN_INODE = -1  # of a file that was not looked at in this place


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFile:
    """The file of a clip as it was digested.

    Attributes:
        source: its path relative to the data set's root, with forward slashes; absolute where it lies outside.
        key: the digest of its content, 64 hex digits.
        size_bytes: its size.
        mtime_ns: its modification time in nanoseconds.
        inode: its number in the file system; `UNKNOWN_INODE` where it was not looked at.
    """

    source: str
    key: str
    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """The files of the data set at one place.

    Attributes:
        root: the folder that holds its media, absolute.
        relative_root: the same, relative to the folder that the store lies in; "" where that says nothing, as for a
            store in object storage.
        choice: what else decides which file a clip's name means, such as the folders of the root that are looked in.
        digest_version: of how the files were digested; by another one a file may have another digest.
        clips: by clip id.
    """

    root: str
    relative_root: str = ""
    choice: str = ""
    digest_version: int = 1
    clips: dict[str, ClipFile] = field(default_factory=dict)

    def is_at(self, root: str, choice: str) -> bool:
        """Return whether this is the table of the data set at `root`."""
        return self.root == root and self.choice == choice

    def file_name(self, source: str) -> str:
        """Return the absolute name of one of its sources."""
        return source if source.startswith("/") else f"{self.root}/{source}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, a list a column."""
        files = self.clips.values()
        return {
            "root": self.root,
            "relative_root": self.relative_root,
            "choice": self.choice,
            "digest_version": self.digest_version,
            "clip": list(self.clips),
            "source": [file.source for file in files],
            "key": "".join(file.key for file in files),
            "size_bytes": [file.size_bytes for file in files],
            "mtime_ns": [file.mtime_ns for file in files],
            "inode": [file.inode for file in files],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DatasetFiles:
        """Return the table that `to_json` described."""
        keys = (fields["key"][at : at + 64] for at in range(0, len(fields["key"]), 64))
        columns = (fields["clip"], fields["source"], keys, fields["size_bytes"], fields["mtime_ns"], fields["inode"])
        clips = {
            clip: ClipFile(source=source, key=key, size_bytes=size, mtime_ns=mtime, inode=inode)
            for clip, source, key, size, mtime, inode in zip(*columns, strict=True)
        }
        place = {name: fields[name] for name in ("root", "relative_root", "choice", "digest_version")}
        return cls(**place, clips=clips)


def parse(attributes: dict[str, Any], where: str) -> tuple[DatasetFiles, ...]:
    """Return the tables in the attributes of the group.

    Raises:
        StoreFormatError: other attributes.
    """
    try:
        return tuple(DatasetFiles.from_json(fields) for fields in attributes["tables"])
    except (KeyError, TypeError, ValueError):
        raise StoreFormatError(
            f"{where}: not the tables of data sets' files; remove that folder, and extract"
        ) from None


def load(store: Path) -> tuple[DatasetFiles, ...]:
    """Return the tables of a store's folder, () where it has none.

    Raises:
        StoreFormatError: a damaged document.
    """
    folder = store / GROUP
    if not (folder / METADATA_NAME).is_file():
        return ()
    return parse(read_document(folder)["attributes"]["talik"], str(folder))


def write(store: Path, tables: Sequence[DatasetFiles]) -> None:
    """Replace the tables of a store's folder; the caller holds the store's lock."""
    (store / GROUP).mkdir(exist_ok=True)
    write_document(store / GROUP, group_document({"tables": [table.to_json() for table in tables]}))


def with_table(tables: Sequence[DatasetFiles], new: DatasetFiles) -> tuple[DatasetFiles, ...]:
    """Return the tables with `new` among them.

    It takes the place of the one with its root, whose other clips it keeps. A table of another root that had its
    relative place keeps its absolute one only: what lies beside the store now is the new one.
    """
    found = []
    for table in tables:
        if table.is_at(new.root, new.choice):
            kept = table.clips
            if table.digest_version != new.digest_version:
                kept = {name: replace(file, inode=UNKNOWN_INODE) for name, file in kept.items()}
            new = replace(new, clips={**kept, **new.clips})
            found.append(new)
        elif table.relative_root == new.relative_root and table.choice == new.choice:
            found.append(replace(table, relative_root=""))
        else:
            found.append(table)
    return tuple(found) if new in found else (*found, new)
