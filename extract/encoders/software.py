"""The software that decides what a model read from given files is: versions of libraries, and talik's own code."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from ...cache.format.digests import digest_json

_LIBRARIES = (
    "torch", "torchvision", "torchaudio", "timm", "transformers", "tokenizers", "safetensors", "peft", "numpy",
    "pillow",
)  # fmt: skip

version = cache(metadata.version)  # it parses a package's metadata anew at each call, and each encoder asks for dozens


def software() -> dict[str, str]:
    """Return the versions of Python and of the libraries that open models, and a digest of talik's code.

    The code counts by names, sizes and times of its files, so that it need not be read. No library is imported.

    Example:
        >>> software() == software()
        True
    """
    found = {"python": platform.python_version(), "talik": _code_digest()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _code_digest() -> str:
    root = Path(__file__).resolve().parents[2]
    rooms = [root, *(room for room in sorted(root.iterdir()) if (room / "__init__.py").is_file())]
    files: list[list[str | int]] = []
    for room in rooms:
        for folder, below, names in os.walk(room):
            below[:] = [] if room == root else sorted(below)
            for name in sorted(names):
                if name.endswith(".py"):
                    status = os.stat(os.path.join(folder, name))
                    files.append([os.path.join(folder, name), status.st_size, status.st_mtime_ns])
    return digest_json(files)
