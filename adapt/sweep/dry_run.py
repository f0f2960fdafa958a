"""`talik sweep --dry-run`: the runs of a sweep, their groups, rungs and planned time, without training any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import counted
from ...extract.executors.settings import EngineSettings
from ...extract.stage.settings import plan_path
from ...formats import readable_seconds
from ..config.experiment import Experiment, load_experiment
from ..training.stopped_runs import read_stopped
from .halving import longest_training, num_kept, trained_folder
from .sweep import chosen_pairs, run_groups


@dataclass(frozen=True, kw_only=True)
class OutlinedGroup:
    """Runs that one worker trains together.

    Attributes:
        seed: of all of them.
        runs: what there is of each, by its variant: "new", "epoch 2 of 8", "finished" or who stopped it.
        batches: the settings that the members share; "" of one that is trained alone.
        seconds: of training all of them from the beginning, by the plan; None where it does not know one of them.
    """

    seed: int
    runs: Mapping[str, str]
    batches: str
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class SweepOutline:
    """What a sweep would train.

    Attributes:
        searches: a line for each grid or random search: where it starts, keys and numbers of their values.
        groups: in the order of training.
        rungs: by epoch after which variants are stopped, how many go on.
        planned: whether there is a plan.
        seconds: of the whole sweep by the plan, what is finished left out; None where a group's is not known.
        seconds_halved: the same with early stopping, as if all variants took the same time; None without it.
        notes: on points that stand there twice, and variants of equal settings.
    """

    searches: tuple[str, ...]
    groups: tuple[OutlinedGroup, ...]
    rungs: Mapping[int, int]
    planned: bool
    seconds: float | None
    seconds_halved: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def lines(self) -> list[str]:
        """Say all of it in lines of text."""
        states = Counter(state.partition(" ")[0] for group in self.groups for state in group.runs.values())
        words = {"new": "new", "epoch": "begun", "finished": "finished", "stopped": "stopped"}
        found = ", ".join(f"{states[key]} {word}" for key, word in words.items() if states[key])
        lines = [f"{counted(sum(states.values()), 'run')} ({found})", *self.searches, *self.notes]
        width = max(len(name) for group in self.groups for name in group.runs)
        for group in self.groups:
            how = f"{counted(len(group.runs), 'variant')} in lockstep, {group.batches}" if group.batches else "alone"
            time = "" if group.seconds is None else f": {readable_seconds(group.seconds)} by the plan"
            lines.append(f"seed {group.seed}, {how}{time}")
            lines += [f"  {name:{width}}  {state}" for name, state in group.runs.items()]
        if self.rungs:
            going = ", ".join(f"{kept} after epoch {rung}" for rung, kept in self.rungs.items())
            lines.append(f"stopped early: of the variants go on {going}")
        if not self.planned:
            lines.append("no time is known: talik plan EXPERIMENT.toml measures this machine")
        elif self.seconds is None:
            lines.append("the plan does not know all of these variants: talik plan EXPERIMENT.toml measures them")
        else:
            halved = ""
            if self.seconds_halved is not None:
                halved = f", about {readable_seconds(self.seconds_halved)} with early stopping"
            lines.append(f"what is not finished, by the plan: {readable_seconds(self.seconds)}{halved}")
        return lines


def outline(
    experiment: Experiment | Path | str,
    *,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    fuse: bool = True,
    engine: EngineSettings | None = None,
) -> SweepOutline:
    """Return what `sweep` would train with the same arguments; nothing is opened, computed or written.

    Groups are those of one data order; where questions or precisions of their members differ, they are divided further
    when they are trained.

    Args:
        experiment: an experiment's TOML, or the experiment itself.
        variants: names, in the order to train; all of the experiment's by default.
        seeds: the experiment's by default.
        fuse: train variants that see the same batches in lockstep.
        engine: which workers train, in place of the experiment's `[engine]`.

    Raises:
        SettingsError: an unknown variant, or none.

    Example:
        >>> from talik.adapt.sweep.dry_run import outline
        >>> [list(group.runs) for group in outline("exp.toml", variants=["probe", "trimodal"], seeds=[0]).groups]
        [['probe', 'trimodal']]
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    pairs = chosen_pairs(experiment, variants, seeds)
    jobs = (engine or experiment.extraction.engine).jobs or 1
    plan = _Planned.of(experiment)
    groups = []
    for group in run_groups(experiment, pairs, fuse=fuse, num_workers=jobs):
        order = experiment.train_settings(experiment.variant(group.names[0])).data_order
        runs = {name: _state(experiment, name, group.seed) for name in group.names}
        groups.append(
            OutlinedGroup(
                seed=group.seed,
                runs=runs,
                batches=order if len(runs) > 1 else "",
                seconds=plan.seconds(group.names),
            )
        )
    names = list(dict.fromkeys(name for name, _ in pairs))
    rungs = _rungs(experiment, names)
    left = [
        None if g.seconds is None else g.seconds * sum(s != "finished" for s in g.runs.values()) / len(g.runs)
        for g in groups
    ]
    known = [seconds for seconds in left if seconds is not None]
    seconds = sum(known) if len(known) == len(left) else None
    halved = None if seconds is None or not rungs else seconds * _share(experiment, names, rungs)
    return SweepOutline(
        searches=tuple(_searches(experiment)),
        groups=tuple(groups),
        rungs=rungs,
        planned=plan.there,
        seconds=seconds,
        seconds_halved=halved,
        notes=experiment.notes,
    )


@dataclass(frozen=True)
class _Planned:
    alone: Mapping[str, float]
    together: Mapping[frozenset[str], float]

    @property
    def there(self) -> bool:
        return bool(self.alone)

    @classmethod
    def of(cls, experiment: Experiment) -> _Planned:
        """Read the seconds of one seed from the experiment's plan."""
        try:
            found = json.loads(plan_path(experiment.base, experiment.name).read_text(encoding="utf-8"))
            seeds = {v["name"]: v["num_seeds"] for v in found["variants"]}
            alone = {v["name"]: (v["seconds"] or v["seconds_live"]) / v["num_seeds"] for v in found["variants"]}
            groups = zip(found["groups"], found["group_seconds"], strict=False)
            return cls(alone, {frozenset(names): seconds / seeds[names[0]] for names, seconds in groups})
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            return cls({}, {})

    def seconds(self, names: Sequence[str]) -> float | None:
        """Return a group's time; where it was not planned as it is, that of its members one after the other."""
        if frozenset(names) in self.together:
            return self.together[frozenset(names)]
        return sum(self.alone[name] for name in names) if set(names) <= self.alone.keys() else None


def _state(experiment: Experiment, name: str, seed: int) -> str:
    folder = trained_folder(experiment, name, seed)
    stopped = read_stopped(folder)
    if folder.done:
        return "finished"
    if stopped is not None:
        return f"stopped by {stopped.by} after epoch {stopped.epoch}"
    epochs = experiment.train_settings(experiment.variant(name)).epochs
    return f"epoch {folder.num_epochs} of {epochs}" if folder.status == "unfinished" else "new"


def _rungs(experiment: Experiment, names: Sequence[str]) -> dict[int, int]:
    halving = experiment.sweep.halving
    if halving is None:
        return {}
    found, alive = {}, len(names)
    for rung in halving.epochs(longest_training(experiment, names)):
        found[rung] = alive = num_kept(alive, halving.keep)
    return found


def _share(experiment: Experiment, names: Sequence[str], rungs: Mapping[int, int]) -> float:
    """Return the share of all epochs that is trained."""
    longest, done, alive, trained = longest_training(experiment, names), 0, len(names), 0
    for rung, kept in {**rungs, longest: 0}.items():
        trained += alive * (rung - done)
        done, alive = rung, kept
    return trained / (len(names) * longest)


def _searches(experiment: Experiment) -> list[str]:
    found: dict[tuple[str, str, int | None], dict[str, set[str]]] = {}
    counts: Counter[tuple[str, str, int | None]] = Counter()
    for point in experiment.points.values():
        key = (point.base, point.search, point.seed)
        counts[key] += 1
        for name, value in point.values.items():
            found.setdefault(key, {}).setdefault(name, set()).add(json.dumps(value, sort_keys=True))
    return [
        f"{base}: {counts[base, search, seed]} points of a {search} search"
        f"{'' if seed is None else f' (seed {seed})'}: "
        + ", ".join(f"{len(values)} values of {key}" for key, values in keys.items())
        for (base, search, seed), keys in found.items()
    ]
