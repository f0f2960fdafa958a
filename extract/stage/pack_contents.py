"""Files that are carried together, each at a place of its own, and settings that name them by these places."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...cache.atomic_io import is_temporary
from ...cache.write.locks import LOCK_NAME


@dataclass
class PackContents:
    """What is to be carried: files by their place.

    Attributes:
        files: what lies at a place: a file of this machine, or its content.
        places: where each file or folder of this machine lies.
    """

    files: dict[str, Path | bytes] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, source: Path, wanted: str) -> str:
        """Return where a folder or file of this machine lies in the pack; one that came before keeps its place."""
        source = source.resolve()
        if source not in self.places:
            stem, suffix = os.path.splitext(wanted)
            taken, number = set(self.places.values()), 2
            name = wanted
            while name in taken:
                name, number = f"{stem}-{number}{suffix}", number + 1
            self.places[source] = name
        return self.places[source]

    def add(self, source: Path, place: str) -> None:
        """Put a file, or all files of a folder, at a place."""
        if source.is_file():
            self.files[place] = source
            return
        for folder, folders, names in os.walk(source):
            folders[:] = [name for name in folders if not is_temporary(name)]
            for name in names:
                if not is_temporary(name) and name != LOCK_NAME:
                    path = Path(folder) / name
                    self.files[str(PurePosixPath(place) / path.relative_to(source).as_posix())] = path

    def add_encoder(self, encoder: dict[str, Any], base: Path) -> None:
        """Put the folder of a local model, and weights, at places, and write these into the encoder's table.

        Args:
            encoder: a table of [encoders]; changed.
            base: the folder that its relative paths count from.
        """
        kind, _, name = str(encoder.get("model", "")).partition(":")
        where, hash_, inner = name.partition("#")
        path = base / Path(where).expanduser()
        if where and kind != "features" and path.exists():
            place = self.place(path, f"models/{path.resolve().name}")
            self.add(path, place)
            encoder["model"] = f"{kind}:{place}{hash_}{inner}"
        weights = encoder.get("weights")
        if isinstance(weights, str) and weights != "random":
            path = base / Path(weights).expanduser()
            encoder["weights"] = self.place(path, f"models/{path.name}")
            self.add(path, encoder["weights"])

    def add_code(self, name: str, base: Path) -> str:
        """Put a file of one's own code at a place, and return that; a module that is installed keeps its name."""
        path = base / Path(name if name.endswith(".py") else f"{name}.py").expanduser()
        if not path.is_file():
            return name
        place = self.place(path, path.name)
        self.add(path, place)
        return place

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        for place, source in self.files.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                path.write_bytes(source)
            else:
                shutil.copyfile(source, path)
