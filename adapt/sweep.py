"""`sweep`: variants times seeds, one run folder each; what is done stays, what fails is recorded, the rest goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..cache.errors import RunError, TalikError
from .experiment import Experiment, load_experiment
from .train import RunResult, adapt
from .workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The runs of a sweep in the order of variants, then seeds; a failed run's error stands in place of its result."""

    runs: tuple[RunResult, ...]
    failures: tuple[tuple[str, str], ...]


def sweep(
    experiment: Experiment | Path | str,
    *,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> SweepResult:
    """Train every variant with every seed; unfinished runs go on, finished ones are left alone.

    Args:
        experiment: an experiment's TOML, or the experiment itself.
        variants: names, in the order to train; all of the experiment's by default.
        seeds: the experiment's by default.
        device: where it runs.
        progress: show tqdm bars.

    Raises:
        SettingsError: an unknown variant.
        RunError: every run failed; a single failure is recorded in the result and the rest goes on.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    names = [v.name for v in experiment.variants] if variants is None else list(variants)
    pairs = [
        (experiment.variant(n).name, s) for s in (experiment.sweep.seeds if seeds is None else seeds) for n in names
    ]
    bench = Workbench(experiment, device=device)
    runs: list[RunResult] = []
    failures: list[tuple[str, str]] = []
    for name, seed in tqdm(pairs, desc="runs", unit="run", disable=not progress):
        try:
            runs.append(
                adapt(
                    experiment, variant=name, seed=seed, resume=True, device=device, progress=progress, workbench=bench
                )
            )
        except TalikError as error:
            failures.append((f"{name}/seed{seed}", str(error)))
    if failures and not runs:
        raise RunError(f"all {len(failures)} runs failed; the first: {failures[0][0]}: {failures[0][1]}")
    return SweepResult(runs=tuple(runs), failures=tuple(failures))
