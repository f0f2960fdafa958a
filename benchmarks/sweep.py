"""A grid of 24 adapter variants four ways: naive, states as .npy files, talik alone, talik in lockstep; and the bound.

    taskset -c 1 python benchmarks/sweep.py --grid atr [--rounds 3] [--work DIR] [--output benchmarks/sweep.md]

The grid: `bottleneck` (Houlsby et al.) at the last 1, 2, 3, 4 units of all three encoders x batches of 16 and 32 x
three learning rates; 5 epochs, one seed. `--at before` puts an adapter before each of these units (`insertion =
"last K"`), `--at behind` behind each of them, where Houlsby's and Pfeiffer's stand. `--group-by-clip` trains every way
on batches that hold the questions of a clip together.

The whole grid is not run. In every round each way trains on the same batches and answers the same questions, in rotated
order, in one process, one variant a depth and batch size (`sweep_ways.py`); learning rates cost the same. The sum over
the grid is arithmetic: extraction + variants x (epochs x (training questions x seconds a question + validation
questions x seconds an answer + end of epoch) + test questions x seconds an answer). Which boundaries are cached is
`talik plan`'s choice; what it took is not part of any way.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sweep_sample import ENCODERS, NOTHING, Taken, headline, quartiles, shown, surroundings, taken, write
from sweep_ways import WAYS, Round, Ways

from talik.adapt.config.experiment import load_experiment
from talik.adapt.plan.plan import plan
from talik.adapt.training.experiment_context import ExperimentContext
from talik.demo.make import make_demo
from talik.extract.stage.extract import extract

PUBLISHED = "3.18 with fusion, 2.32 with caching alone (TensorFlow; Nautilus, SIGMOD 2022)"
UNITS = {"visual": 12, "audio": 4, "text": 6}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The variants: depths x batch sizes x learning rates."""

    depths: tuple[int, ...] = (1, 2, 3, 4)
    batch_sizes: tuple[int, ...] = (16, 32)
    rates: tuple[float, ...] = (1e-4, 5e-4, 2e-3)
    epochs: int = 5
    at: str = "before"
    group_by_clip: bool = False

    @property
    def num_variants(self) -> int:
        """How many there are."""
        return len(self.depths) * len(self.batch_sizes) * len(self.rates)

    def name(self, depth: int, size: int, rate: int) -> str:
        """A variant's name."""
        return f"last{depth}-b{size}-r{rate}"

    def tables(self) -> str:
        """The [[variants]] of the experiment."""
        return "".join(
            f'\n[[variants]]\nname = "{self.name(k, size, r)}"\nadapter = {{ kind = "bottleneck" }}\n'
            f"insertion = {self.insertion(k)}\ntrain = {{ batch_size = {size}, lr = {rate} }}\n"
            for k in self.depths
            for size in self.batch_sizes
            for r, rate in enumerate(self.rates)
        )

    def insertion(self, depth: int) -> str:
        """The boundaries of an adapter at each of the last `depth` units."""
        if self.at == "before":
            return f'"last {depth}"'
        lists = (f"{m} = {list(range(n - depth + 1, n + 1))}" for m, n in UNITS.items())
        return f"{{ {', '.join(lists)} }}"


def totals(grid: Grid, measured: Round, extraction: dict[str, Taken], counts: dict[str, int]) -> dict[str, Taken]:
    """What the whole grid takes each way, by one round's samples; `counts` are questions of each split."""
    found = {}
    for way in WAYS:
        whole = extraction[way]
        for size in grid.batch_sizes:
            for depth in grid.depths:
                a_run = (
                    measured.train[way, size, depth].times(grid.epochs * counts["train"])
                    + measured.answer[way, depth].times(grid.epochs * counts["val"] + counts["test"])
                    + (NOTHING if way == "bound" else measured.end[depth].times(grid.epochs))
                )
                whole += a_run.times(len(grid.rates))
            if way == "fused":  # what is done once a batch for all variants of a batch size
                whole += measured.shared_train[size].times(grid.epochs * counts["train"])
                whole += measured.shared_answer.times(grid.epochs * counts["val"] + counts["test"])
        found[way] = whole
    return found


def run(
    experiment: Path, grid: Grid, *, rounds: int, answers: int, sample_clips: int, work: Path
) -> tuple[dict[str, Any], list[dict[str, Taken]]]:
    """Plan, extract, and measure; the facts and, of each round, what the grid would take each way."""
    made = plan(experiment, progress=False)
    loaded = load_experiment(experiment)
    shutil.rmtree(loaded.extraction.store_path, ignore_errors=True)
    once = taken(lambda: extract(loaded.extraction, progress=False))
    context = ExperimentContext(loaded)
    ways = Ways(context, grid, work=work)
    counts = {s: len(context.manifest.split(s)) for s in ("train", "val", "test")}
    per_round: list[dict[str, Taken]] = []
    samples: list[dict[str, Any]] = []
    for index in range(rounds):
        parts = ways.extraction_parts(sample_clips, index)
        extraction = {
            "naive": NOTHING,
            "npy": parts.computed + parts.saved,
            "solo": once,
            "fused": once,
            "bound": parts.computed,
        }
        measured = ways.round(index, answers)
        per_round.append(totals(grid, measured, extraction, counts))
        samples.append({"extraction": _plain(extraction), "steps": measured.to_json()})
        print(f"round {index + 1}: " + ", ".join(f"{w} {t.cpu:.0f} s" for w, t in per_round[-1].items()), flush=True)
    facts = {
        "environment": surroundings(),
        "cuts": {m: list(k) for m, k in made.cuts.items()},
        "store_bytes": sum(f.stat().st_size for f in loaded.extraction.store_path.rglob("*") if f.is_file()),
        "clips": len(context.manifest.clips),
        "questions": counts,
        "variants": grid.num_variants,
        "depths": list(grid.depths),
        "batch_sizes": list(grid.batch_sizes),
        "rates": list(grid.rates),
        "at": grid.at,
        "group_by_clip": grid.group_by_clip,
        "epochs": grid.epochs,
        "answers": answers,
        "planned_seconds": made.seconds,
        "planned_live_seconds": made.seconds_live,
        "samples": samples,
        "totals": [_plain(t) for t in per_round],
    }
    return facts, per_round


def _plain(found: dict[str, Taken]) -> dict[str, list[float]]:
    return {name: [t.wall, t.cpu] for name, t in found.items()}


def page(facts: dict[str, Any], per_round: Sequence[dict[str, Taken]], *, clock: str) -> str:
    """The result as Markdown."""

    def over(a: str, b: str) -> list[float]:
        return [r[a].on(clock) / r[b].on(clock) for r in per_round]

    rows = {
        "naive": "decode and whole encoders, every epoch",
        "npy": "a .npy file an item and boundary, each variant alone",
        "solo": "talik's store, each variant alone",
        "fused": "talik's store, variants of one data order in lockstep",
        "bound": "extraction once, then states in memory: live suffix, adapters, head, optimiser",
    }
    counts, cuts = facts["questions"], ", ".join(f"{m} {k}" for m, k in facts["cuts"].items())
    place = {
        "before": 'before each of the last K units (`insertion = "last K"`)',
        "behind": "behind each of the last K",
    }
    lines = [
        f"# A grid of {facts['variants']} adapter variants, four ways",
        "",
        headline(facts["environment"]),
        "",
        f"`bottleneck` adapters {place[facts['at']]}, K = {_list(facts['depths'])}; batches of "
        f"{_list(facts['batch_sizes'])}; learning rates {_list(facts['rates'])}; "
        f"{facts['epochs']} epochs, one seed; {'the questions of a clip together; ' if facts['group_by_clip'] else ''}"
        f"{facts['clips']} demo clips with {counts['train']} training, "
        f"{counts['val']} validation and {counts['test']} test questions. Cached, as `talik plan` chose: {cuts}, "
        f"{facts['store_bytes'] / 1e6:.0f} MB. Seconds of the {'processor' if clock == 'cpu' else 'clock'}, "
        f"{len(per_round)} interleaved rounds, medians and quartiles; the grid's sum is arithmetic over measured "
        "batches (see the script's first lines).",
        "",
        "| way | what is done | minutes for the grid | naive against it | against the bound |",
        "|---|---|---:|---:|---:|",
    ]
    for way, what in rows.items():
        minutes = shown([r[way].on(clock) / 60 for r in per_round], 1)
        lines.append(f"| {way} | {what} | {minutes} | {shown(over('naive', way))} | {shown(over(way, 'bound'), 3)} |")
    fused, solo, gain = (
        quartiles(over(*pair))[1] for pair in (("fused", "bound"), ("fused", "solo"), ("naive", "fused"))
    )
    lines += [
        "",
        f"- fused against the bound: {fused:.3f}; the bar is 1.10: {_met(fused <= 1.10)}",
        f"- fused against solo: {solo:.3f}; the bar is 1: {_met(solo <= 1)}",
        f"- naive against fused: {gain:.2f}; the bar is 3.5, the bound allows "
        f"{quartiles(over('naive', 'bound'))[1]:.2f}: {_met(gain >= 3.5)}",
        f"- published for such a grid: {PUBLISHED}",
        f"- `talik plan` said {facts['planned_seconds'] / 60:.1f} min fused, {facts['planned_live_seconds'] / 60:.1f} "
        "min without the cache, on the wall's clock, loading the encoders included",
        "",
    ]
    return "\n".join(lines)


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _met(yes: bool) -> str:
    return "met" if yes else "not met"


def write_experiment(path: Path, grid: Grid, *, precision: str) -> None:
    """Write the grid's experiment."""
    auto = dict.fromkeys(UNITS, '"auto"')
    text = ENCODERS.format(**auto, store="features.zarr", epochs=grid.epochs, precision=precision)
    text += f"group_by_clip = {str(grid.group_by_clip).lower()}\n"  # of [train]
    path.write_text(text + grid.tables(), encoding="utf-8")


def main() -> None:
    """Parse, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=["atr"], default="atr", help="which variants; atr: adapter training")
    parser.add_argument("--at", choices=["before", "behind"], default="before", help="the adapters' place at a unit")
    parser.add_argument("--group-by-clip", action="store_true", help="batches hold the questions of a clip together")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32], help="fewer for a quick look")
    parser.add_argument("--clips", type=int, default=100, help="of the demo set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=16, help="questions answered in each round and way")
    parser.add_argument("--sample-clips", type=int, default=8, help="clips whose extraction is measured in each round")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="which clock the page shows")
    parser.add_argument("--work", type=Path, default=None, help="folder for the clips, kept; a temporary one if absent")
    parser.add_argument(
        "--output", type=Path, default=None, help="the page; benchmarks/sweep[_behind][_grouped].md by default"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = tuple(arguments.batch_sizes)
    grid = Grid(at=arguments.at, group_by_clip=arguments.group_by_clip, batch_sizes=sizes)
    name = "sweep" + "_behind" * (grid.at == "behind") + "_grouped" * grid.group_by_clip
    default = Path(__file__).with_name(f"{name}.md")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        make_demo(work / "set", num_clips=arguments.clips, seed=0, workers=1, progress=False)
        experiment = work / f"{name}.toml"
        write_experiment(experiment, grid, precision=arguments.precision)
        facts, per_round = run(
            experiment,
            grid,
            rounds=arguments.rounds,
            answers=arguments.answers,
            sample_clips=arguments.sample_clips,
            work=Path(temporary),
        )
    text = page(facts, per_round, clock=arguments.clock)
    write(text, facts, arguments.output or default)
    print(text)


if __name__ == "__main__":
    main()
