"""Stage 1: computes the states of every clip and text at the named boundaries, once, and writes them to the store.

    manifest → items that lack states → shards to compute → decode → preprocess → prefix → convert → shard → receipt

`extract` reads settings and data set, and is done if `up_to_date` knows that nothing is missing; `extraction` takes the
other steps in this order, with `shard_worker` and `clip_worker` shard by shard. A run that has nothing to do imports no
network library.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from ..datasets.describe import describe
from ..datasets.load import load_manifest
from ..datasets.types import Manifest
from ..executors.settings import EngineSettings
from .experiment_file import ExperimentSource
from .extract_report import ExtractReport, joined
from .settings import ExtractSettings, RunOptions, wanted_settings
from .up_to_date import up_to_date


def extract(
    experiment: ExperimentSource | ExtractSettings | Sequence[ExtractSettings],
    *,
    device: str = "auto",
    progress: bool = True,
    deep: bool = False,
    engine: EngineSettings | None = None,
    workers: int | None = None,
    manifest: Manifest | None = None,
) -> ExtractReport:
    r"""Compute every state that the experiment names and the store does not hold.

    Args:
        experiment: an experiment's TOML, its tables as a dict, or its settings for stage 1. Of an experiment whose
            variants change [data], [encoders] or [store], what all variants need.
        device: where the encoders run: "cpu", "cuda" (of several GPUs all, a process each, unless `[engine] jobs` says
            otherwise), "cuda:1", "mps"; "auto" is a GPU where there is one.
        progress: show tqdm bars with rates.
        deep: digest every media file, also those whose size and time are as they were.
        engine: who computes, in place of the experiment's [engine].
        workers: processes that decode, in place of those of the experiment's [extract]; 0 for threads.
        manifest: the data set, in place of the one that [data] names.

    Returns:
        What was computed and written.

    Raises:
        SettingsError: a key or value of the file.
        ManifestError, MissingMediaError: annotations, or media that they name, are not found.
        MediaError: files that could not be decoded; all others are finished and kept. With `allow_missing` they are
            in the report instead. Either way they are listed beside the store (`run_records.failed_clips_path`).
        NumericsError: states that are NaN, or beyond the storage type; likewise.
        StoreError: a folder that is no store, a full disk, another writer.
        BackendError: the engine cannot run; or workers were lost on a unit again and again, all others are kept.

    Example:
        >>> import talik
        >>> talik.extract("exp.toml", progress=False).lines()[-1]
        'nothing to do: every state is in the store'
    """
    options = RunOptions(device=device, progress=progress, deep=deep, workers=workers)
    wanted = wanted_settings(experiment)
    return joined([_extract(settings, options, engine=engine, manifest=manifest) for settings in wanted])


def _extract(
    settings: ExtractSettings, options: RunOptions, *, engine: EngineSettings | None, manifest: Manifest | None
) -> ExtractReport:
    settings = settings if engine is None else replace(settings, engine=engine)
    started = time.perf_counter()
    store = settings.open_store("a")
    told = []
    if manifest is None:
        manifest = load_manifest(settings.lenient_manifest_settings, base=settings.base)
        told = describe(manifest, brief=True) if options.progress else []
    known = None if options.deep else up_to_date(settings, manifest, store)
    if known is not None:
        for line in told:
            tqdm.write(line, file=sys.stderr)
        return replace(known, seconds=time.perf_counter() - started)
    from ..executors.device import chosen_device, device_line, with_all_gpus
    from .extraction import compute_missing

    device = chosen_device(options.device, engine=settings.engine)
    settings = replace(settings, engine=with_all_gpus(settings.engine, device))
    for line in (device_line(device, settings.engine), *told) if options.progress else ():
        tqdm.write(line, file=sys.stderr)
    workers = settings.extract.workers if options.workers is None else options.workers
    options = replace(options, device=device, workers=workers)
    return compute_missing(settings, manifest, store, options, started=started)
