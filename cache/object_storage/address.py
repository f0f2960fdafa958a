"""Address of a store in object storage: URL, options, and its folders in this machine's cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import SettingsError

SCHEMES = ("s3", "az")
_CACHE_GB = 50.0
_SECRET = re.compile(r"secret|token|password|account_key|sas_|credential", re.IGNORECASE)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a store's path is a URL."""
    return isinstance(path, str) and "://" in path


def is_object_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a store's path is a URL of object storage."""
    return isinstance(path, str) and path.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


@dataclass(frozen=True, kw_only=True)
class ObjectAddress:
    """A store in object storage; pickles, so that workers on other machines find it.

    Args:
        url: `s3://bucket/…/name` or `az://…`.
        options: of the storage (`endpoint_url`, `region`, …), and `retry_seconds`; never secrets.
        cache_dir: on this machine's own disk; by default talik/stores in the user's cache folder.
        cache_gb: most that shards read through may take in `cache_dir`, those of all stores together; 50 by default.

    Raises:
        SettingsError: any of these malformed.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None
    cache_gb: float | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+://[^/]+(/[^/]+)+/?", self.url):
            raise SettingsError(f"{self.url}: expected a bucket and a name, for instance s3://bucket/features.zarr")
        object.__setattr__(self, "url", self.url.rstrip("/"))
        for name in filter(_SECRET.search, self.options):
            raise SettingsError(
                f"storage.{name}: secrets are not read from settings, which are written into every run; set them in "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …)"
            )
        if self.cache_gb is not None and self.cache_gb <= 0:
            raise SettingsError(f"cache_gb: found {self.cache_gb}, expected more than 0")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def cache_root(self) -> Path:
        """The folder that `cache_gb` bounds."""
        if self.cache_dir:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talik" / "stores"

    @property
    def cache_bytes(self) -> int:
        """The bound in bytes."""
        return int((_CACHE_GB if self.cache_gb is None else self.cache_gb) * 1e9)

    @property
    def place(self) -> Path:
        """The folder of this store under `cache_root`."""
        known = f"{self.options.get('endpoint_url') or self.options.get('endpoint') or ''} {self.url}"
        digest = hashlib.sha256(known.encode()).hexdigest()[:12]
        return self.cache_root / f"{self.url.partition('://')[2].replace('/', '-')[-80:]}-{digest}"

    @property
    def read_folder(self) -> Path:
        """The readers' copy of the store's small files, and the shards that were read."""
        return self.place / "read" / self.name

    @property
    def write_folder(self) -> Path:
        """The writer's copy of the store's small files, and the shard being made."""
        return self.place / self.name

    def worker_folder(self, worker: str) -> Path:
        """Return the same for a process that writes shards for a writer elsewhere."""
        return self.place / "workers" / worker / self.name
