"""Why an experiment would compute what it would: fields and items that differ from what a store holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...cache.maintenance.explain import Why, why
from ...cache.open import open_store
from .requested import asked_of, imported_boundaries
from .settings import extract_settings, read_toml


@dataclass(frozen=True, kw_only=True)
class WhyReport:
    """What stands between an experiment and a store.

    Args:
        answers: one for each boundary that the experiment caches.
        unasked: paths of the stored boundaries that it does not ask for.
    """

    answers: tuple[Why, ...]
    unasked: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        lines = [line for answer in self.answers for line in answer.lines()]
        return lines + [f"{path}: is stored; this experiment does not ask for it" for path in self.unasked]


def why_store(
    store: Path | str, experiment: Path | str, *, deep: bool = False, device: str = "cpu", progress: bool = True
) -> WhyReport:
    """Compare what an experiment asks for with what a store holds; nothing is written.

    Args:
        store: its folder; the experiment's own [store] path does not matter.
        experiment: an experiment's TOML.
        deep: digest every media file, also those whose size and time are as they were.
        device: where the encoders are opened.
        progress: show a tqdm bar over the digests.

    Raises:
        StoreError: no store there, or a damaged one.
        SettingsError, ManifestError, MissingMediaError, EncoderError: as `extract` does.
    """
    opened, path = open_store(store), Path(experiment)
    settings = extract_settings(read_toml(path), path=path)
    asked = asked_of(settings, opened, deep=deep, device=device, progress=progress)
    answers = tuple(why(opened, one.spec, one.items) for one in asked)
    needed = {*(one.spec.path for one in asked), *imported_boundaries(settings, opened)}
    return WhyReport(answers=answers, unasked=tuple(s.path for s in opened.boundaries() if s.path not in needed))
