"""Garbage of a store: what none of some experiments needs. Listed first, deleted only on a second call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cache.feature_store import FeatureStore
from ...cache.maintenance.gc import Garbage, Needed, collect_garbage, find_garbage
from ...cache.open import open_store
from ...errors import SettingsError
from .requested import asked_of, imported_boundaries
from .settings import extract_settings, read_toml


@dataclass(frozen=True, kw_only=True)
class GarbageReport:
    """What would go from a store, and `collect` to make it go.

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
        """The report as a person reads it."""
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
    store: Path | str, experiments: Sequence[Path | str], *, device: str = "cpu", progress: bool = True
) -> GarbageReport:
    """List what none of `experiments` needs of a store; nothing is deleted.

    Args:
        store: its folder; the experiments' own [store] paths do not matter.
        experiments: TOML files, at least one.
        device: where the encoders are opened.
        progress: show a tqdm bar over the digests.

    Raises:
        SettingsError: no experiment given; or a key or value of one.
        StoreError: no store there, or a damaged one.
        ManifestError, MissingMediaError, EncoderError: as `extract` does.
    """
    if not experiments:
        raise SettingsError("gc: no experiment given; name every one whose states are to stay")
    opened = open_store(store)
    opened.garbage_folder()  # refuses a store that is not in a folder before anything is computed
    needed: dict[str, set[str] | None] = {}
    for experiment in experiments:
        path = Path(experiment)
        settings = extract_settings(read_toml(path), path=path)
        for asked in asked_of(settings, opened, device=device, progress=progress):
            keys = needed.setdefault(asked.spec.path, set())
            if keys is not None:
                keys.update(item.key for item in asked.items)
        needed.update(dict.fromkeys(imported_boundaries(settings, opened)))
    return GarbageReport(store=opened, needed=needed, garbage=find_garbage(opened, needed))
