"""Features that a store holds, read by the name of a clip or text: of an experiment, or of a store alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...cache.feature_store import BoundarySpec, FeatureStore
from ...cache.open import open_store
from ...errors import SettingsError, StoreMismatchError, unknown_name
from ..datasets.load import load_manifest
from .experiment_file import ExperimentSource
from .feature_file import Pool
from .features import Features
from .items import ClipDigests
from .plan import requested_boundaries
from .prefix import open_encoder
from .settings import Cut, ExtractSettings, RunOptions, read_settings


def stored_features(
    where: ExperimentSource | ExtractSettings | FeatureStore,
    modality: str,
    layer: Cut | None = None,
    *,
    key: str | None = None,
    pool: Pool = "none",
) -> Features:
    """Open the features of one boundary of a store; nothing is computed.

    Args:
        where: an experiment (its TOML file, a dict, or its settings): features are named by clip, those of texts by the
            text. Or a store (its folder or URL, or an open one): they are named as `talik store why` names them, by
            the clip's file. Of a clip that was extracted more than once, from other files, the newest counts.
        modality: "visual", "audio" or "text".
        layer: the boundary; negative numbers count from the number of units, "end" is after the last unit; by default
            the highest that is stored.
        key: the 12 hex digits of the boundary's name; needed where a store alone holds several of this place.
        pool: "mean" averages the tokens of each segment; "none" keeps them.

    Returns:
        A mapping from names to arrays (T, N, D) float32, of texts (L, D), without N or L where pooled; with `to_numpy`,
        `to_pandas`, `batches` and `save`. Close it, or use it in a `with` statement.

    Raises:
        SettingsError: an experiment that cannot be read, or another modality than those it has.
        StoreError: no store; or nothing, or several things, stored at this place.

    Example:
        >>> import talik
        >>> with talik.stored_features("exp.toml", "visual", layer=2, pool="mean") as features:
        ...     features["clip0"].shape, features.to_pandas().shape
        ((3, 16), (27, 16))
    """
    pool = _pool(pool)
    settings = _experiment(where)
    if settings is not None:
        store = settings.open_store()
    else:
        store = where if isinstance(where, FeatureStore) else open_store(str(where))
    spec = _found(store, settings, modality, layer, key)
    newest = {item.source: item.key for item in store.sources(spec)}
    if settings is not None and modality != "text":
        manifest = load_manifest(settings.lenient_manifest_settings, base=settings.base)
        sources = ClipDigests(store, manifest).sources
        newest = {clip: newest[source] for clip, source in sources.items() if source in newest}
    with ExitStack() as stack:
        reader = stack.enter_context(store.reader(modality, spec.boundary, key=spec.key))
        stored = {item.key for item in reader.items}
        keys = {name: item for name, item in newest.items() if item in stored}
        if not keys:
            raise StoreMismatchError(f"{store.where}: {spec.path} holds no clip of the experiment; run talik extract")
        return Features(reader, keys, pool=pool, skipped=(), resources=stack.pop_all())


def export_features(
    store: str, file: Path, *, boundary: str, pool: str = "none", experiment: ExperimentSource | None = None
) -> int:
    """Write the features of one boundary to a file, by the name of each clip or text.

    Args:
        store: its folder or URL.
        file: ends in `.npz`, `.h5` or `.parquet`.
        boundary: as `talik store ls` prints it, "visual/b11-1f2e3d4c5b6a".
        pool: "mean" averages the tokens of each segment; "none" keeps them.
        experiment: whose clip names are used; the clips' files by default.

    Returns:
        How many items were written.

    Raises:
        SettingsError: another ending, or an experiment that cannot be read.
        StoreError: no such boundary, or the disk refuses.
    """
    opened = open_store(store)
    spec = opened.boundary(boundary)
    where: ExtractSettings | FeatureStore = opened
    if experiment is not None:
        settings = read_settings(experiment)
        where = replace(settings, store=replace(settings.store, path=str(Path(store).resolve())))
    with stored_features(where, spec.modality, spec.boundary, key=spec.key, pool=_pool(pool)) as features:
        features.save(file)
        return len(features)


def _pool(pool: str) -> Pool:
    if pool not in ("none", "mean"):
        raise SettingsError(f'pool: found {pool!r}, expected "none" or "mean"')
    return "mean" if pool == "mean" else "none"


def _experiment(where: Any) -> ExtractSettings | None:
    """Return the settings of an experiment; None of a store."""
    if isinstance(where, ExtractSettings):
        return where
    if isinstance(where, Mapping) or (isinstance(where, str | Path) and str(where).endswith(".toml")):
        return read_settings(where)
    return None


def _found(
    store: FeatureStore, settings: ExtractSettings | None, modality: str, layer: Cut | None, key: str | None
) -> BoundarySpec:
    """Return the one boundary that is meant, or say what there is."""
    specs = [s for s in store.boundaries() if s.modality == modality and (key is None or s.key == key)]
    if not specs:
        held = ", ".join(s.path for s in store.boundaries()) or "nothing"
        raise StoreMismatchError(f"{store.where}: no features of {modality}{f' {key}' if key else ''} (held: {held})")
    preferred = specs
    if settings is not None and key is None:
        if modality not in dict(settings.encoders.items()):
            raise SettingsError(unknown_name("modality", modality, dict(settings.encoders.items())))
        if len({s.boundary for s in specs}) < len(specs) or (layer is not None and not _is_number(layer)):
            options = RunOptions(progress=False)
            asked, imported = requested_boundaries(settings, store, options)
            wanted = {request.spec.path for request in asked} | {*imported}
            preferred = [s for s in specs if s.path in wanted] or specs
    if layer is not None and not _is_number(layer):
        layer = _resolved(settings, specs, modality, layer)
    boundary = max(s.boundary for s in preferred) if layer is None else layer
    found = [s for s in preferred if s.boundary == boundary] or [s for s in specs if s.boundary == boundary]
    if len(found) != 1:
        held = ", ".join(s.path for s in found or specs)
        what = "several are stored; name one by its key" if found else "it is not stored"
        raise StoreMismatchError(f"{store.where}: {modality} boundary {boundary}: {what} (held: {held})")
    return found[0]


def _is_number(layer: Cut) -> bool:
    return layer != "end" and layer >= 0


def _resolved(settings: ExtractSettings | None, specs: list[BoundarySpec], modality: str, layer: Cut) -> int:
    if settings is None:
        places = ", ".join(str(s.boundary) for s in specs)
        raise SettingsError(f"layer: found {layer!r}; of a store alone, count from 0 (stored: {places})")
    chosen = dict(settings.encoders.items())[modality]
    segments = settings.data.segments
    encoder = open_encoder(chosen, modality=modality, device="cpu", num_segments=segments, base=settings.base)
    return encoder.boundary(layer)
