"""A fair trial of the adapters on the evaluation set: one search for each method, then five seeds on another set.

    python benchmarks/evaluation.py FOLDER [--clips 400] [--epochs 12] [--seeds 5] [--device auto] [--rows A,B]

Two evaluation sets are made (docs/evaluation.md): all choices are made on the first, whose seed is 1; the second, of
seed 7, is only trained on with what was chosen, and scored on its test split. Every method is inserted before the last
unit of each encoder (`last 1`; `lavish`, as published, beside the last two and after their attention), so that a unit
of vision and one of sound run live. Widths are set so that each adapter trains as many parameters as `trimodal`, within
20 %, where its form allows; the page says which do not.

Each method gets the same search: five learning rates, with one seed, the best epoch on validation. Then it is trained
with that rate on the second set with five seeds. `talik report` makes the tables and the paired comparisons; the gates
of `trimodal` are scored by the area under the ROC curve of the segments that decide the *long* questions.

What is done in FOLDER stays done. `--clips 16 --epochs 1 --seeds 1 --rates 1e-3 --rows probe,trimodal` runs every part
in minutes on a CPU, and learns nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tomli_w
from scan import environment
from scipy.stats import rankdata

import talik
from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.adapt.config.experiment import load_experiment
from talik.adapt.evaluation.evaluate import evaluate
from talik.adapt.sweep.halving import best_until
from talik.adapt.training.run_folder import RunFolder
from talik.demo.make import make_demo

TUNING_SEED, FINAL_SEED = 1, 7
RATES = (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3)
CHANNELS = 384  # of the three pretrained encoders


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        adapter: its settings.
        width: the setting that its number of parameters is matched by, and the values to choose from; none to leave
            the adapter as it is.
        insertion, placement: where it stands.
    """

    adapter: dict[str, Any]
    width: tuple[str, Sequence[int]] | None = None
    insertion: str = "last 1"
    placement: str = "between"


_D_MODEL = ("d_model", range(32, 192, 8))


def _trimodal(**settings: Any) -> Method:
    return Method({"kind": "trimodal", **settings}, _D_MODEL)


METHODS: dict[str, Method] = {
    "probe": Method({"kind": "probe"}),
    "bottleneck": Method({"kind": "bottleneck"}, ("d_bottleneck", range(16, 512, 8))),
    "lora": Method({"kind": "peft:lora", "r": 22}),
    "lavish": Method({"kind": "lavish"}, ("reduction", (1, 2, 3, 4, 6, 8))),
    "lavish-published": Method(
        {"kind": "lavish", "after_attention": True, "cross_gate": 0.0},
        ("reduction", (1, 2, 3, 4, 6, 8)),
        "last 2",
        "parallel",
    ),
    "dgsct": Method({"kind": "dgsct"}, ("reduction", (2, 3, 4, 6, 8, 12, 16, 24, 32))),
    "lstta": Method({"kind": "lstta"}, _D_MODEL),
    "trimodal": _trimodal(d_model=64),
    "attention": _trimodal(selection="attention"),
    "no-selection": _trimodal(selection="none"),
    "no-interaction": _trimodal(interaction="none"),
    "global": _trimodal(interaction="global"),
    "audio-centred": _trimodal(center="audio"),
    "window-0": _trimodal(window=0),
    "window-2": _trimodal(window=2),
}

COMPARISONS = (
    ("trimodal", "lavish"),
    ("trimodal", "lavish-published"),
    ("trimodal", "no-selection"),
    ("trimodal", "no-interaction"),
    ("trimodal", "attention"),
    ("trimodal", "global"),
    ("trimodal", "probe"),
    ("trimodal", "bottleneck"),
    ("trimodal", "lora"),
    ("trimodal", "lstta"),
    ("trimodal", "dgsct"),
    ("trimodal", "audio-centred"),
    ("trimodal", "window-0"),
    ("trimodal", "window-2"),
)

ENCODERS: dict[str, dict[str, Any]] = {
    "visual": {"model": "pip:dinov2-small", "image_size": 98, "cut": [10, 11]},
    "audio": {"model": "pip:whisper-tiny.en", "window_seconds": 1.0, "cut": [2, 3]},
    "text": {"model": "pip:minilm-l6", "cut": [4, 5]},
}


def num_parameters(adapter: Mapping[str, Any]) -> int:
    """Count what an adapter trains at one insertion of the pretrained encoders."""
    module = adapter_kind(str(adapter["kind"])).module
    if module is None:
        return 0
    dims = dict.fromkeys(("visual", "audio", "text"), CHANNELS)
    return sum(p.numel() for p in module(adapter_settings(adapter), [dims]).parameters())  # type: ignore[call-arg]


def matched(method: Method, wanted: int) -> dict[str, Any]:
    """Return a method's settings with the width at which its parameters are nearest to `wanted`."""
    if method.width is None:
        return method.adapter
    name, values = method.width
    insertions = 2 if method.insertion == "last 2" else 1
    return min(
        (
            {**method.adapter, name: value}
            for value in values
            if name not in method.adapter or value == method.adapter[name]
        ),
        key=lambda adapter: abs(insertions * num_parameters(adapter) - wanted),
    )


def experiment(
    folder: Path, name: str, chosen: Mapping[str, tuple[dict[str, Any], float]], arguments: argparse.Namespace
) -> Path:
    """Write an experiment on the set in `folder`: variants by name with an adapter and a learning rate each."""
    variants = []
    for variant, (adapter, rate) in chosen.items():
        method = METHODS[variant.partition("@")[0]]
        place = {} if adapter["kind"] == "probe" else {"insertion": method.insertion}
        if place and method.placement != "between":
            place["placement"] = method.placement
        variants.append({"name": variant, **place, "adapter": adapter, "train": {"lr": rate, "head_lr": rate}})
    tables = {
        "data": {
            "dataset": "manifest",
            "root": "set",
            "segments": 16,
            "columns": ["family", "type_and_family", "deciding_segments"],
            "type_column": "type_and_family",
        },
        "encoders": ENCODERS,
        "store": {"path": "features.zarr", "dtype": "float16"},
        "task": {"kind": "answers"},
        "train": {"epochs": arguments.epochs, "batch_size": 32, "group_by_clip": True},
        "sweep": {"seeds": list(range(arguments.seeds)) if name == "final" else [0]},
        "variants": variants,
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path


def train(path: Path, arguments: argparse.Namespace) -> None:
    """Fill the store of an experiment and train all of its runs."""
    talik.extract(path, device=arguments.device)
    talik.sweep(path, device=arguments.device)


def best_rates(path: Path) -> dict[str, float]:
    """Return each method's learning rate with the best validation of any epoch; equal ones by the smaller rate."""
    found: dict[str, dict[float, float]] = {}
    loaded = load_experiment(path)
    for variant in loaded.variants:
        method, _, rate = variant.name.partition("@")
        folder = RunFolder(loaded.runs / variant.name / "seed0")
        best = best_until(folder, loaded.train_settings(variant).epochs)
        assert best is not None, f"{folder.path}: not trained to its end"
        found.setdefault(method, {})[float(rate)], _ = best
    return {method: max(sorted(scores), key=lambda rate: scores[rate]) for method, scores in found.items()}


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive's score is above a negative's, ties counted half."""
    ranks = rankdata(scores)
    num = int(positive.sum())
    return float((ranks[positive].sum() - num * (num + 1) / 2) / (num * (len(scores) - num)))


def gate_scores(run: Path, questions: Mapping[str, Sequence[int]], *, device: str) -> dict[str, float]:
    """Return, by modality, the mean area under the ROC curve of a run's gates over the questions, the last insertion's.

    Args:
        run: a finished run of `trimodal`.
        questions: by id, the segments that decide it.
        device: where it runs.
    """
    path = run / "gates-test.jsonl"
    if not path.exists():
        evaluate(run, split="test", gates=True, device=device)
    areas: dict[str, list[float]] = {"visual": [], "audio": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        deciding = questions.get(str(record["question_id"]))
        for modality in areas if deciding else ():
            gates = np.asarray(record[modality])
            positive = np.isin(np.arange(len(gates)), deciding)
            areas[modality].append(auroc(gates, positive))
    return {modality: mean(found) for modality, found in areas.items() if found}


def long_questions(manifest: Path) -> dict[str, list[int]]:
    """Return the deciding segments of each test question of the family *long*, by id."""
    lines = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
    return {q["id"]: q["deciding_segments"] for q in lines if q["split"] == "test" and q["family"] == "long"}


def page(record: Mapping[str, Any], table: str) -> str:
    """Return the outcome as Markdown: the table of `talik report`, what was chosen, sizes, and the gates' areas."""
    wanted = record["methods"]["trimodal"]["parameters"]
    lines = [
        "# The adapters on the evaluation set",
        "",
        f"Written by `{record['command']}` on {record['device']}, commit {record['commit']}. All choices were made "
        f"on the set of seed {TUNING_SEED}; this is the test split of the set of seed {FINAL_SEED}; "
        f"{record['seeds']} seeds.",
        "",
        "```",
        table.strip(),
        "```",
        "",
        "## What was chosen, and how large it is",
        "",
        "| variant | adapter | learning rate | trained in the adapter | against trimodal |",
        "|---|---|---:|---:|---|",
    ]
    for name, row in record["methods"].items():
        ratio = row["parameters"] / wanted
        said = f"{ratio:.2f}" + ("" if 0.8 <= ratio <= 1.2 else ", not within 20 %")
        settings = ", ".join(f"{k} = {v}" for k, v in row["adapter"].items())
        lines.append(f"| {name} | {settings} | {row['lr']:g} | {row['parameters']:,} | {said} |")
    for name, areas in record["gates"].items():
        said = ", ".join(f"{modality} {area:.3f}" for modality, area in areas.items())
        lines += [
            "",
            f"Gates of `{name}` on *long* questions, area under the ROC curve of the deciding segments: {said}.",
        ]
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> Path:
    """Make both sets, search on the first, train on the second, report; return the page."""
    folders = {name: arguments.folder / name for name in ("tuning", "final")}
    for (name, folder), seed in zip(folders.items(), (TUNING_SEED, FINAL_SEED), strict=True):
        made = make_demo(folder / "set", num_clips=arguments.clips, seed=seed, kind="evaluation")
        print(f"{name}: {made.summary()}", flush=True)
    wanted = num_parameters(METHODS["trimodal"].adapter)
    adapters = {name: matched(METHODS[name], wanted) for name in arguments.rows}
    search = {f"{name}@{rate:g}": (adapter, rate) for name, adapter in adapters.items() for rate in arguments.rates}
    tuning = experiment(folders["tuning"], "tuning", search, arguments)
    train(tuning, arguments)
    rates = best_rates(tuning)
    final = experiment(folders["final"], "final", {name: (adapters[name], rates[name]) for name in adapters}, arguments)
    train(final, arguments)

    runs = load_experiment(final).runs
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(adapters)]
    files = talik.report([runs], out=folders["final"] / "report", comparisons=pairs or None)
    asked = long_questions(folders["final"] / "set" / "manifest.jsonl")
    gates: dict[str, dict[str, float]] = {}
    for name in adapters:
        if adapters[name]["kind"] == "trimodal" and adapters[name].get("selection") != "none" and asked:
            areas = [gate_scores(r, asked, device=arguments.device) for r in sorted((runs / name).glob("seed*"))]
            gates[name] = {m: mean(area[m] for area in areas) for m in areas[0]}
    results = {name: RunFolder(runs / name / "seed0").result() for name in adapters}
    trained = {name: results[name]["trainable_params"] for name in adapters}
    head = trained["trimodal"] - wanted  # the same in all rows
    methods = {
        name: {"adapter": adapter, "lr": rates[name], "parameters": trained[name] - head}
        for name, adapter in adapters.items()
    }
    record = {
        **environment(),
        "device": results[arguments.rows[0]]["device"],
        "seeds": arguments.seeds,
        "methods": methods,
        "gates": gates,
    }
    (arguments.folder / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path: Path = arguments.folder / "evaluation.md"
    path.write_text(page(record, files.text), encoding="utf-8")
    return path


def parsed(argv: Iterable[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=400, help="of each set")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        default=list(METHODS),
        help="methods, by comma; trimodal is always one",
    )
    parser.add_argument("--rates", type=lambda text: [float(r) for r in text.split(",")], default=list(RATES))
    arguments = parser.parse_args(None if argv is None else list(argv))
    arguments.rows = list(dict.fromkeys(["trimodal", *arguments.rows]))
    return arguments


if __name__ == "__main__":
    print(run(parsed()))
