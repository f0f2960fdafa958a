"""Opens a feature store, whichever backend its path or URL calls for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from .feature_store import FeatureStore, Mode
from .folder_store import FolderStore
from .object_storage.address import SCHEMES, ObjectAddress, is_object_url, is_url


def open_store(
    where: str | Path,
    mode: Mode = "r",
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    cache_gb: float | None = None,
    check: bool = True,
) -> FeatureStore:
    """Open a feature store; with mode `a`, create it where none is.

    Args:
        where: a folder; or a URL of object storage (`s3://…`, `az://…`); or another URL (`https://…`, `file://…` for a
            copy with other codecs), which zarr-python reads.
        mode: `r` reads; `a` reads and writes, a folder or object storage.
        storage_options: of object storage (`endpoint_url`, `region`, …, `retry_seconds`); for another URL, the
            arguments of its fsspec file system.
        cache_dir: of object storage: the folder to which shards are copied when they are read.
        cache_gb: of object storage: the most that shards may take there, in gigabytes.
        check: refuse a folder or URL whose root document is missing or damaged. False opens a damaged store for
            `verify` and `repair`, and creates none.

    Returns:
        The store: `boundaries()` lists what it holds, `reader(modality, boundary)` and `writer(spec, items)` open one.

    Raises:
        StoreFormatError: no store there, another folder or file there, or another format version.
        SettingsError: another mode; writing to a URL that is only read.
        BackendError: the package for this kind of URL is not installed.

    Examples:
        >>> import tempfile, talik
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     talik.open_store(f"{folder}/features.zarr", "a").boundaries()
        ()
    """
    if is_object_url(where):
        from .object_storage.object_store import ObjectStore  # imports obstore, which other stores do without

        options = dict(storage_options or {})
        address = ObjectAddress(url=str(where), options=options, cache_dir=cache_dir, cache_gb=cache_gb)
        return ObjectStore(address, mode, check=check)
    if is_url(where):
        if mode != "r":
            raise SettingsError(
                f"{where}: is only read; a store is written into a folder or object storage ({', '.join(SCHEMES)})"
            )
        from .zarr_store import ZarrStore  # imports zarr, which other stores do without

        return ZarrStore(where, dict(storage_options) if storage_options else None)
    return FolderStore(Path(where), mode, check=check)
