"""Measure what running a model through its trunk costs beside its own forward.

    python benchmarks/trunk_overhead.py [--rounds 25] [--batch 2] [--output trunk_overhead.json]

Every round runs each way once, in rotated order; reported are the medians over rounds of the ratios within a round.
Times are the processor time of one thread, so that other work on the machine counts less. ViT-S at 224 pixels and
BERT-base at 64 tokens, random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from coverage_checks import Inputs, restored
from scan import environment
from trunk_memory import bare_units, picture_trunk, text_trunk

from talik.extract.trunk.trunk import Trunk

ALLOWED = 1.03
"""The most that `run(0, n)` may take, as a part of the model's own forward."""

Ways = Mapping[str, Callable[[], object]]


def ways_of(trunk: Trunk, inputs: Inputs) -> Ways:
    """Return what is timed: the model's own forward, its units bare and through the trunk, and the whole in pieces."""
    last = trunk.num_units
    hidden, context = trunk.embed(inputs)

    def pieces() -> object:
        first, made = trunk.embed(inputs)
        return trunk.finish(trunk.run(first, made, 0, last), made)

    def from_store() -> object:
        made = restored(trunk, inputs)
        return trunk.finish(trunk.run(hidden, made, 0, last), made)

    return {
        "own forward": lambda: trunk.forward(inputs),
        "bare units": lambda: bare_units(trunk, hidden, context, 0, last),
        "run(0, n)": lambda: trunk.run(hidden, context, 0, last),
        "embed, run(0, n), finish": pieces,
        "restored context, run(0, n), finish": from_store,
    }


def ratios(ways: Ways, rounds: int, base: str) -> dict[str, dict[str, float]]:
    """Return each way's median seconds, and the median and quartiles of its ratio to `base` within a round."""
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-2, rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.thread_time()
            ways[name]()
            if index >= 0:
                times[name].append(time.thread_time() - start)
    found = {}
    for name in names:
        each = [a / b for a, b in zip(times[name], times[base], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        median = statistics.median(times[name])
        found[name] = {"seconds": median, "ratio": middle, "first_quartile": low, "third_quartile": high}
    return found


def main() -> None:
    """Print the ratios, and stop with an error where `run(0, n)` costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="timed runs of each way")
    parser.add_argument("--batch", type=int, default=2, help="items in a batch")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="the result file")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"environment": environment(), "rounds": parsed.rounds, "batch": parsed.batch}
    above = []
    cases = {
        "ViT-S/16 at 224": lambda: picture_trunk("vit_small_patch16_224", max(parsed.batch, 3), 224),
        "BERT-base at 64 tokens": lambda: text_trunk(max(parsed.batch, 3), 64),
    }
    for name, make in cases.items():
        trunk, inputs = make()
        with torch.no_grad():
            found = ratios(
                ways_of(trunk, {n: t[-parsed.batch :] for n, t in inputs.items()}), parsed.rounds, "own forward"
            )
        result[name] = found
        print(f"{name}, {parsed.batch} items, one thread: ratio to the model's own forward [quartiles]")
        for way, row in found.items():
            spread = f"[{row['first_quartile']:.3f}, {row['third_quartile']:.3f}]"
            print(f"    {way:36s} {row['seconds'] * 1e3:8.1f} ms  {row['ratio']:.3f} {spread}")
        if found["run(0, n)"]["ratio"] > ALLOWED:
            above.append(f"{name}: run(0, n) takes {found['run(0, n)']['ratio']:.3f}, expected at most {ALLOWED}")
    parsed.output.write_text(json.dumps(result, indent=1) + "\n")
    if above:
        raise SystemExit("\n".join(above))


if __name__ == "__main__":
    main()
