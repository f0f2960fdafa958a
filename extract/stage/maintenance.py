"""The store commands that know an experiment: why it would compute, what no experiment needs, repair of bad shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ...cache.feature_store import FeatureStore
from ...cache.maintenance.explain import Why, why
from ...cache.maintenance.gc import Garbage, Needed, collect_garbage, find_garbage
from ...cache.maintenance.repair import repair
from ...cache.maintenance.verify import verify
from ...cache.open import open_store
from ...errors import SettingsError, StoreError
from ..executors.device import chosen_device, say_device
from .experiment_file import ExperimentSource
from .extract import extract
from .extract_report import ExtractReport
from .plan import requested_boundaries
from .settings import ExtractSettings, RunOptions, read_all_settings

Wanted: TypeAlias = "ExperimentSource | ExtractSettings | Sequence[ExtractSettings]"


@dataclass(frozen=True, kw_only=True)
class WhyReport:
    """How an experiment's request differs from what a store holds.

    Args:
        answers: one for each boundary that the experiment caches.
        unrequested: paths of the stored boundaries that it does not request.
    """

    answers: tuple[Why, ...]
    unrequested: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report as a person reads it."""
        lines = [line for answer in self.answers for line in answer.lines()]
        return lines + [f"{path}: is stored; this experiment does not ask for it" for path in self.unrequested]


def why_store(
    store: Path | str, experiment: Wanted, *, deep: bool = False, device: str = "auto", progress: bool = True
) -> WhyReport:
    """Compare what an experiment requests with what a store holds; nothing is written.

    Args:
        store: its folder; the experiment's own [store] path does not matter.
        experiment: an experiment's TOML, its tables as a dict, or its settings.
        deep: digest every media file, also those whose size and time are as they were.
        device: where the encoders are opened.
        progress: show a tqdm bar over the digests.

    Raises:
        StoreError: no store, or a damaged one.
        SettingsError, ManifestError, MissingMediaError, EncoderError: as `extract` does.
    """
    opened = open_store(store)
    options = _options(device, progress=progress, deep=deep)
    answers: dict[str, Why] = {}
    needed: set[str] = set()
    for settings in _settings(experiment):
        requests, imported = requested_boundaries(settings, opened, options)
        answers |= {request.spec.path: why(opened, request.spec, request.items) for request in requests}
        needed.update(answers, imported)
    return WhyReport(
        answers=tuple(answers.values()), unrequested=tuple(s.path for s in opened.boundaries() if s.path not in needed)
    )


@dataclass(frozen=True, kw_only=True)
class GarbageReport:
    """What none of some experiments needs of a store; `collect` deletes it.

    Args:
        store: open for reading.
        needed: what the experiments need, by boundary.
        garbage: all else.
    """

    store: FeatureStore
    needed: Needed
    garbage: tuple[Garbage, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that become free."""
        return sum(one.size_bytes for one in self.garbage)

    def lines(self) -> list[str]:
        """Return the report as a person reads it."""
        if not self.garbage:
            return ["nothing to delete: the experiments given need all that is stored"]
        return [*(str(one) for one in self.garbage), f"{self.size_bytes / 1e6:.1f} MB in all"]

    def collect(self) -> int:
        """Delete what is listed, and nothing else; return the bytes that became free.

        Raises:
            StoreMismatchError: the store has changed since; nothing was deleted.
            StoreError: a writer is at work, no room to write shards anew, or damage.
        """
        return collect_garbage(open_store(self.store.path, "a"), self.needed, self.garbage)


def find_store_garbage(
    store: Path | str,
    experiments: Sequence[ExperimentSource | ExtractSettings],
    *,
    device: str = "auto",
    progress: bool = True,
) -> GarbageReport:
    """List what none of `experiments` needs of a store; nothing is deleted.

    Args:
        store: its folder; the experiments' own [store] paths do not matter.
        experiments: TOML files, their tables as dicts, or their settings; at least one.
        device: where the encoders are opened.
        progress: show a tqdm bar over the digests.

    Raises:
        SettingsError: no experiment given; or a key or value of one.
        StoreError: no store, or a damaged one.
        ManifestError, MissingMediaError, EncoderError: as `extract` does.
    """
    if not experiments:
        raise SettingsError("gc: no experiment given; name every one whose states are to stay")
    opened = open_store(store)
    opened.garbage_folder()  # refuses a store that is not in a folder before anything is computed
    wanted = [one for experiment in experiments for one in _settings(experiment)]
    options = _options(device, progress=progress)
    needed: dict[str, set[str] | None] = {}
    for settings in wanted:
        requests, imported = requested_boundaries(settings, opened, options)
        for request in requests:
            keys = needed.setdefault(request.spec.path, set())
            if keys is not None:
                keys.update(item.key for item in request.items)
        needed.update(dict.fromkeys(imported))
    return GarbageReport(store=opened, needed=needed, garbage=find_garbage(opened, needed))


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair found and did.

    Args:
        findings: what `verify` found, a line each.
        forgotten: (boundary, shard) that are to be computed again.
        extraction: of what was computed again; None without an experiment.
    """

    findings: tuple[str, ...]
    forgotten: tuple[tuple[str, int], ...]
    extraction: ExtractReport | None = None

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        if not self.findings:
            return ["every checksum holds; nothing to repair"]
        lines = [*self.findings, *(f"to be computed again: {name}, shard {shard}" for name, shard in self.forgotten)]
        if self.extraction is None:
            return [*lines, "run `talik extract` with the experiment that made the store to compute them again"]
        return lines + self.extraction.lines()


def repair_store(
    store: Path | str, experiment: Wanted | None = None, *, device: str = "auto", progress: bool = True
) -> RepairReport:
    """Forget the shards that fail their checksums; with an experiment, compute them again at once.

    Raises:
        StoreError: damage that only a new store mends; a shard computed again that is still bad.
    """
    findings = verify(open_store(store, check=False))
    forgotten, beyond = repair(open_store(store, "a", check=False), findings) if findings else ([], [])
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise StoreError(f"{store}: {beyond[0]}{more}: cannot be derived again; remove that boundary's folder, extract")
    said = tuple(str(finding) for finding in findings)
    if experiment is None or not findings:
        return RepairReport(findings=said, forgotten=tuple(forgotten))
    extraction = extract(experiment, device=device, progress=progress)
    left = verify(open_store(store))
    if left:
        raise StoreError(
            f"{store}: still bad after computing it again: {left[0]}; does the experiment fill this store?"
        )
    return RepairReport(findings=said, forgotten=tuple(forgotten), extraction=extraction)


def _settings(experiment: Wanted) -> Sequence[ExtractSettings]:
    """Return stage 1's settings of an experiment, those of its variants too."""
    if isinstance(experiment, ExtractSettings):
        return (experiment,)
    return read_all_settings(experiment) if isinstance(experiment, Path | str | Mapping) else experiment


def _options(device: str, *, progress: bool, deep: bool = False) -> RunOptions:
    device = chosen_device(device)
    if progress:
        say_device(device)
    return RunOptions(device=device, progress=progress, deep=deep)
