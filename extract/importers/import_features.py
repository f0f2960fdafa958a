"""Imports features that other programs computed into a store, as boundaries whose identity is no encoder's.

T segments, N tokens, D channels; an item is (T, N, D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...cache.feature_store import BoundarySpec, FeatureStore, Item, Shard
from ...cache.maintenance.hdf5 import import_hdf5
from ...errors import NumericsError, SettingsError, StoreMismatchError, counted
from .column_mapping import PRESETS, FeatureMapping, preset_mapping, read_mapping
from .feature_files import Array, Entry, FeatureFiles, open_features


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import found and wrote.

    Args:
        source: the file or folder.
        spec: the boundary that holds the features now.
        num_items: clips in the source.
        num_imported: of these, those that the store did not hold yet.
        notes: what is odd about the source.
    """

    source: Path
    spec: BoundarySpec
    num_items: int
    num_imported: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the report as a person reads it."""
        name = self.spec.identity["imported"]["name"]
        shape = " x ".join(map(str, self.spec.shape))
        what = f"{self.num_imported} of {self.num_items} items imported, each {shape} {self.spec.dtype}"
        use = f'[encoders.{self.spec.modality}] model = "features:{name}"'
        return [
            f"{self.spec.path}: {what}",
            *self.notes,
            f"an experiment with segments = {self.spec.shape[0]} uses them by {use}",
        ]


def import_features(
    source: Path | str,
    store: FeatureStore | Path | str,
    mapping: FeatureMapping,
    *,
    base: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Add a file or folder of features to a store; resumable, and nothing that is there is written again.

    Values are stored as `mapping.dtype`; clips are known by the ids that the source gives, since the media that they
    were computed from are not given. The boundary's identity begins with `imported` and holds the name, the digest of
    an .h5 file (each item's key holds that of its own .npy file) and the mapping, so it never equals an encoder's.

    Args:
        source: an .h5 file, or a folder of .npy files.
        store: a store open in mode `a`, or its path.
        mapping: what the source means.
        base: what the mapping's paths count from; the source's folder by default.
        progress: called with the number of items imported since the last call.

    Raises:
        StoreFormatError: a source that is not what the mapping says.
        ManifestError: ids that cannot be read, or not one a row.
        StoreMismatchError: an item of another shape than the first.
        NumericsError: NaN, Inf or overflow; names the clip.
    """
    source = Path(source)
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store, mode="a")
    with open_features(source, mapping, source.parent if base is None else base) as files:
        first = files.load(files.entries[0])
        axes = mapping.axes_for(first.ndim)
        steps = {"step": mapping.step} if mapping.segments is None else {"segments": mapping.segments}
        spec = BoundarySpec(
            modality=mapping.modality,
            boundary=0,
            identity={"imported": {"name": mapping.name, "axes": axes, **steps, **files.identity}},
            dtype=mapping.dtype,
            shape=as_segments(first, axes, mapping).shape,
        )
        entries = {entry.key: entry for entry in files.entries}
        items = [Item(key=entry.key, source=entry.id) for entry in files.entries]
        provenance = {"imported_from": source.name, "numpy": np.__version__, "h5py": version("h5py")}
        count = 0
        blank: list[str] = []
        with opened.writer(spec, items, provenance=provenance) as writer:
            for shard in writer.missing():
                writer.write(shard, _states(shard, entries, files, spec, axes, mapping, blank))
                count += len(shard.items)
                if progress:
                    progress(len(shard.items))
        notes = list(files.notes)
    if blank:
        shown = ", ".join(blank[:3]) + (", …" if len(blank) > 3 else "")
        why = "which often stands for a video that could not be decoded"
        notes.append(f"{counted(len(blank), 'item')} {'is' if len(blank) == 1 else 'are'} all zeros, {why}: {shown}")
    return ImportReport(source=source, spec=spec, num_items=len(items), num_imported=count, notes=tuple(notes))


def import_any(
    source: Path,
    store: Path | str,
    *,
    layout: str | None = None,
    mapping: Path | None = None,
    ids: Sequence[Path] = (),
    changes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Import features by a preset or a mapping's file, else a file of `export_hdf5`, as `talik store import` does.

    Args:
        source: an .h5 file or a folder.
        store: the store's folder; made where there is none.
        layout: a name of `mapping.PRESETS`.
        mapping: a mapping's TOML; its paths count from its own folder.
        ids: the file that names the rows (AVE), where it is not beside the source, or those that name the numbers
            (AVQA).
        changes: keys of the mapping, in place of the preset's or the file's.

    Returns:
        Lines for a person.

    Raises:
        SettingsError: both or none of `layout` and `mapping` where one is needed, or a bad key.
        StoreError, ManifestError, NumericsError: as `import_features` and `import_hdf5`.
    """
    given = dict(changes or {})
    if layout is not None and mapping is not None:
        raise SettingsError("--as and --mapping: both say what the features mean; expected one of them")
    if layout is None and mapping is None:
        if given or ids or source.is_dir():
            raise SettingsError(
                f"{source}: which features are these? add --as {'|'.join(PRESETS)} or --mapping FILE.toml; without, a "
                "file of `talik store export` is read"
            )
        return [f"{store}: {import_hdf5(source, FeatureStore.open(store, mode='a'))} items imported"]
    if mapping is not None:
        chosen, base = read_mapping(mapping, given), mapping.parent
    else:
        given.setdefault("name", source.stem)
        if ids and layout == "avqa":
            given["id_map"] = [str(path.resolve()) for path in ids]
        elif ids:
            given["rows"] = str(ids[0].resolve())
        chosen, base = preset_mapping(str(layout), given), source.parent
    return import_features(source, store, chosen, base=base).lines()


def as_segments(values: Array, axes: str, mapping: FeatureMapping) -> Array:
    """Return one item's array (T, N, D) from an array whose axes are the letters of `axes`, its time steps chosen."""
    order = [axes.index(letter) for letter in "TNHWD" if letter in axes]
    moved = np.transpose(values, order)
    if "T" not in axes:
        moved = moved[None]
    steps = np.arange(0, len(moved), mapping.step)
    if mapping.segments is not None:
        steps = ((np.arange(mapping.segments) + 0.5) * len(moved) / mapping.segments).astype(np.int64)
    return np.ascontiguousarray(moved[steps]).reshape(len(steps), -1, moved.shape[-1])


def _states(
    shard: Shard,
    entries: dict[str, Entry],
    files: FeatureFiles,
    spec: BoundarySpec,
    axes: str,
    mapping: FeatureMapping,
    blank: list[str],
) -> Iterator[tuple[Array, dict[str, Array]]]:
    for item in shard.items:
        raw = files.load(entries[item.key])
        if raw.dtype.kind not in "fiu":
            raise NumericsError(f"{item.source!r}: an array of {raw.dtype}, expected numbers")
        values = as_segments(raw, axes, mapping) if raw.ndim == len(axes) else raw
        if values.shape != spec.shape:
            raise StoreMismatchError(
                f"features of {item.source!r}: {tuple(raw.shape)} gives {values.shape}, the first clip's gave "
                f"{spec.shape}; where only the time steps differ, set segments"
            )
        if not values.any():
            blank.append(item.source)
        yield values.astype(np.float32) if values.dtype.kind in "iu" else values, {}
