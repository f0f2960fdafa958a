"""Fills the store while a training runs: another process computes what is missing in the order in which it is needed.

The run reads each shard when it is finished, and equals one on the store as it then is. Where the two cannot go on at
once, the store is filled before the training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Literal, get_args

from ...cache.feature_store import FeatureStore
from ...cache.format.catalog import Catalog, read_receipt
from ...cache.object_storage.address import is_object_url
from ...errors import MissingItemError, SettingsError, StoreError, StoreFormatError, counted
from ...extract.datasets.load import load_manifest
from ...extract.datasets.types import Manifest
from ...extract.executors.device import chosen_device
from ...extract.stage.background import BackgroundExtraction
from ...extract.stage.extract import extract
from ...extract.stage.settings import ExtractSettings, RunOptions
from ...extract.stage.up_to_date import up_to_date
from ..config.experiment import Experiment
from ..data.filling_store import FillingStore
from .data_order import order_of_need
from .experiment_context import ExperimentContext
from .stop_signals import StopRequested, StopSignals

OnMissing = Literal["error", "compute"]
"""What is done about states that the store lacks."""

_SECONDS_BETWEEN_LOOKS = 0.02

_log = logging.getLogger(__name__)


class Filling:
    """An extraction beside a training; a context manager, at whose end the store is full, or the extraction is ended.

    Args:
        extraction: that was begun.
        settings: of stage 1.

    Attributes:
        stop: signals that end the training, and with it whatever waits for states.
    """

    def __init__(self, extraction: BackgroundExtraction, settings: ExtractSettings) -> None:
        self.stop: StopSignals | None = None
        self._extraction = extraction
        self._settings = settings

    @cached_property
    def store(self) -> FeatureStore:
        """The store, whose readers wait for what is not computed yet; itself waited for until all items have rows.

        Raises:
            TalikError: what the extraction has failed with before.
        """
        planned = self._extraction.wait_until_planned()
        if num_shards := sum(map(len, planned.values())):
            _log.info("the store is filled while the first epoch trains: %s missing", counted(num_shards, "shard"))
        return FillingStore(self._settings.store_path, planned, self._wait)

    def give_store(self, context: ExperimentContext) -> None:
        """Have a context read this store; it opens its encoders first, while the extraction opens its own."""
        _ = context.encoders
        context.store = self.store

    def __enter__(self) -> Filling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the extraction where the training has ended; else end it, and raise what it has failed with.

        Raises:
            TalikError: what the extraction has failed with, in place of the training's error that follows from it.
        """
        try:
            self.stop = None
            if error is None or isinstance(error, StoreError):  # which may be about an item that has no states
                self._wait_for_end()
            failed = self._extraction.error
            if failed is not None and (error is None or isinstance(error, Exception)):
                raise failed from error
        finally:
            self._extraction.close()

    def _wait(self, catalog: Catalog, shard: int) -> None:
        """Wait until a shard is stored; see `WaitForShard`.

        Raises:
            StopRequested: a signal has come meanwhile.
            TalikError: what the extraction has failed with; or it has ended without the shard.
        """
        while True:
            ended = self._extraction.outcome is not None
            receipt = read_receipt(catalog.layout, shard)
            if receipt[0] and int(receipt[1]) == len(catalog.rows_of_shard(shard)):
                return
            if receipt[0]:  # some of its items have no states: the extraction ends with their names
                self._wait_for_end()
                ended = True
            if ended:
                missing = MissingItemError(f"{catalog.layout.where}: the extraction has ended without shard {shard}")
                raise self._extraction.error or missing
            self._look()

    def _wait_for_end(self) -> None:
        while self._extraction.outcome is None:
            self._look()

    def _look(self) -> None:
        if self.stop is not None and self.stop.signum:
            raise StopRequested
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def begin_filling(
    experiment: Experiment,
    variants: Sequence[str],
    seed: int,
    on_missing: OnMissing,
    *,
    device: str,
    progress: bool,
    first: str = "",
) -> Filling | None:
    """Have what the store lacks computed, if that is wanted: beside the training, or before it.

    Args:
        experiment: whose states are wanted.
        variants: the names of those that will be trained, the first one first.
        seed: of the run that is trained first.
        on_missing: "compute", or "error" to leave the store as it is.
        device: where encoders run.
        progress: show tqdm bars of an extraction before the training.
        first: why the store has to be full before the training; "" where it has not.

    Returns:
        The extraction beside the training; None where there is none.

    Raises:
        SettingsError: another value.
        MediaError, NumericsError, StoreError: as `extract` does.
    """
    if on_missing not in get_args(OnMissing):
        raise SettingsError(f'on_missing: found {on_missing!r}, expected "error" or "compute"')
    if on_missing == "error":
        return None
    extractions = experiment.extractions(variants)
    manifests = [load_manifest(one.lenient_manifest_settings, base=one.base) for one in extractions]
    if all(map(_is_full, extractions, manifests)):
        return None
    settings = extractions[0]
    first = first or _why_first(extractions)
    if first:
        _log.info("the store is filled before the training: %s", first)
        extract(extractions, device=device, progress=progress)
        return None
    chosen = experiment.train_settings(experiment.variant(variants[0]))
    options = RunOptions(
        device=chosen_device(device, engine=settings.engine),
        progress=False,
        workers=settings.extract.workers,
        order=order_of_need(manifests[0], chosen, seed),
    )
    return Filling(BackgroundExtraction(settings, options), settings)


def _is_full(settings: ExtractSettings, manifest: Manifest) -> bool:
    """Return whether the store is known to hold all that the settings name."""
    try:
        store = settings.open_store()
    except StoreFormatError:  # none yet; or another folder, which the extraction refuses
        return False
    return up_to_date(settings, manifest, store) is not None


def _why_first(extractions: Sequence[ExtractSettings]) -> str:
    """Return why a store cannot be filled beside a training, "" where it can."""
    if len(extractions) > 1:
        return "variants have encoders, data or stores of their own"
    (settings,) = extractions
    if is_object_url(settings.store.path):
        return "it is in object storage"
    if not settings.engine.is_local:
        return f"[engine] kind is {settings.engine.kind!r}"
    if settings.data.allow_missing:
        return "with allow_missing, which questions are trained on is known when every clip has been decoded"
    return ""
