"""Can an adapter bind a sound to what is seen at its time? A made task in feature space, for all adapters.

    python benchmarks/binding.py [--variants A,B] [--rates 3e-4,1e-3,3e-3] [--widths 64] [--depths 1] [--seeds 3]
                                 [--device cpu] [--jobs 1]

A clip has eight segments. Two players of one kind stand at two of its visual tokens, and in each segment one of the two
plays: a direction is added to its token. Each of four events sounds in a segment of its own. The question names an
event; the answer is which player plays then. Neither the mean of all tokens nor one modality holds the answer: chance
is 0.5, a model that binds reaches 1. Every step has new clips, so that the score, the mean over the last 150 steps, is
that of clips never seen. The head is talik's, and reads only the pooled end of each encoder.

Runs that stand in binding.json are not repeated; after each run the JSON and the page binding.md are written anew. A
run takes some five minutes of one CPU core; on a GPU many processes (--jobs) share the device.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from scan import environment
from torch import Tensor, nn

from talik.adapt.adapters.base import Triple
from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.adapt.model.heads import AnswerHead, TaskSettings
from talik.adapt.training.optimizer import learning_rate_scale, parameter_groups

HERE = Path(__file__).parent

NUM_SEGMENTS, NUM_PLACES, NUM_SOUND_TOKENS, NUM_WORDS, NUM_EVENTS = 8, 8, 4, 4, 4
NUM_CHANNELS = 48
BATCH_SIZE = 64
SCORED_STEPS = 150

VARIANTS: dict[str, dict[str, Any]] = {
    "probe": {"kind": "probe"},
    "lavish": {"kind": "lavish", "latents": "random", "reduction": 4, "groups": 2},
    "lstta": {"kind": "lstta"},
    "dgsct": {"kind": "dgsct", "latents": "random", "reduction": 4, "groups": 2},
    "bottleneck": {"kind": "bottleneck"},
    "trimodal": {"kind": "trimodal"},
    "no selection": {"kind": "trimodal", "selection": "none"},
    "attention for the scan": {"kind": "trimodal", "selection": "attention"},
    "no interaction": {"kind": "trimodal", "interaction": "none"},
    "global window": {"kind": "trimodal", "interaction": "global"},
    "window 0": {"kind": "trimodal", "window": 0},
    "window 2": {"kind": "trimodal", "window": 2},
    "centred on audio": {"kind": "trimodal", "center": "audio"},
    "gates at 1/4": {"kind": "trimodal", "selection_scale": 0.25},
    "both at 1/4": {"kind": "trimodal", "scale": 0.25},
    "no selection, at 1/4": {"kind": "trimodal", "selection": "none", "scale": 0.25},
}


class Task:
    """The made clips: directions that mean something are drawn once, from `seed`.

    Args:
        seed: of the directions.
    """

    def __init__(self, seed: int = 1) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)

        def directions(*shape: int) -> Tensor:
            drawn = torch.randn(*shape, NUM_CHANNELS, generator=generator, device="cpu")
            return drawn.to(torch.get_default_device())

        self.player = directions()
        self.playing = 1.5 * directions()
        self.places = 0.7 * directions(NUM_PLACES)
        self.events = 1.5 * directions(NUM_EVENTS)
        self.question = directions()

    def batch(self, size: int) -> tuple[Triple, Tensor]:
        """Return new clips with a question each, and the answers: 1 where the left player plays, (size,) int64."""
        left_plays = torch.randint(0, 2, (size, NUM_SEGMENTS))
        asked = torch.randint(0, NUM_EVENTS, (size,))
        segments = torch.rand(size, NUM_SEGMENTS).argsort(dim=1)[:, :NUM_EVENTS]  # of each event
        rows = torch.arange(size)

        visual = 0.5 * torch.randn(size, NUM_SEGMENTS, NUM_PLACES, NUM_CHANNELS) + self.places
        half = NUM_PLACES // 2
        left, right = torch.randint(0, half, (size,)), torch.randint(half, NUM_PLACES, (size,))
        visual[rows, :, left] += self.player
        visual[rows, :, right] += self.player
        for t in range(NUM_SEGMENTS):
            visual[rows, t, torch.where(left_plays[:, t].bool(), left, right)] += self.playing

        audio = 0.5 * torch.randn(size, NUM_SEGMENTS, NUM_SOUND_TOKENS, NUM_CHANNELS)
        for event in range(NUM_EVENTS):
            token = torch.randint(0, NUM_SOUND_TOKENS, (size,))
            audio[rows, segments[:, event], token] += self.events[event]

        text = 0.2 * torch.randn(size, NUM_WORDS, NUM_CHANNELS)
        text[:, 0] += self.question
        text[:, 1] += 0.7 * self.events[asked]
        answers = left_plays[rows, segments[rows, asked]]
        return Triple(visual=visual, audio=audio, text=text, text_mask=None), answers


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training.

    Args:
        variant: name in `VARIANTS`.
        lr: peak learning rate, of adapter and head.
        width: `d_model` of the tri-modal adapter; of other adapters their default stands.
        depth: insertions, one after another.
        seed: of weights and clips.
        steps: optimiser steps.
    """

    variant: str
    lr: float
    width: int
    depth: int
    seed: int
    steps: int


def build(case: Case) -> nn.ModuleDict:
    """Return the adapter (none for the probe) and the head of a case."""
    table = dict(VARIANTS[case.variant])
    if table["kind"] == "trimodal":
        table["d_model"] = case.width
    kind = adapter_kind(table["kind"])
    dims = {"visual": NUM_CHANNELS, "audio": NUM_CHANNELS, "text": NUM_CHANNELS}
    parts = {}
    if kind.module is not None:
        parts["adapter"] = kind.module(adapter_settings(table), [dims] * case.depth)  # type: ignore[call-arg]
    return nn.ModuleDict({**parts, "head": AnswerHead(dims, 2, TaskSettings(d_head=128))})


def forward(model: nn.ModuleDict, triple: Triple, depth: int) -> Tensor:
    """Return the logits (B, 2): every insertion adds to the tokens, then the head reads them."""
    tokens = {m: x for m in ("visual", "audio", "text") if (x := triple.get(m)) is not None}
    for index in range(depth if "adapter" in model else 0):
        deltas = model["adapter"].at(index)(Triple(text_mask=None, **tokens))
        tokens = {m: x if deltas.get(m) is None else x + deltas.get(m) for m, x in tokens.items()}
    logits: Tensor = model["head"](tokens, None)
    return logits


def train(case: Case, device: str) -> dict[str, Any]:
    """Train one case; return its score, the curve of scores over the training, and its time."""
    torch.set_num_threads(1)
    torch.set_default_device(device)
    torch.manual_seed(case.seed)
    task, model = Task(), build(case)
    groups = parameter_groups(model, lr=case.lr, head_lr=case.lr, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)
    hits, started = [], time.perf_counter()
    for step in range(case.steps):
        for group in optimizer.param_groups:
            group["lr"] = case.lr * learning_rate_scale(step, total=case.steps, warmup=0.1)
        triple, answers = task.batch(BATCH_SIZE)
        logits = forward(model, triple, case.depth)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, answers).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        hits.append((logits.argmax(dim=1) == answers).float().mean())
    correct: list[float] = torch.stack(hits).tolist()
    pieces = 8
    length = max(1, case.steps // pieces)
    return {
        **asdict(case),
        "accuracy": round(mean(correct[-SCORED_STEPS:]), 4),
        "curve": [round(mean(correct[i : i + length]), 3) for i in range(0, length * pieces, length)],
        "num_parameters": sum(p.numel() for p in model["adapter"].parameters()) if "adapter" in model else 0,
        "seconds": round(time.perf_counter() - started, 1),
    }


def page(record: Mapping[str, Any]) -> str:
    """Return the runs as Markdown: for each width and depth, variants by learning rates, the mean over seeds."""
    runs = record["runs"]
    lines = [
        "# Can an adapter bind a sound to what is seen at its time?",
        "",
        f"Written by `python benchmarks/binding.py`, which says what the task is: {record['cpu']}, torch "
        f"{record['versions']['torch']}, commit {record['commit']}. Accuracy on clips never seen; chance is 0.5. A "
        'cell is the mean over seeds, with the lowest and the highest where there are several. "Best" is the mean at '
        "the rate where it is highest, by the same runs: of each variant the best of as many rates as are shown.",
    ]
    sizes = ("width", "depth", "steps")
    for width, depth, steps in sorted({tuple(run[size] for size in sizes) for run in runs}):
        group = [run for run in runs if tuple(run[size] for size in sizes) == (width, depth, steps)]
        rates = sorted({run["lr"] for run in group})
        lines += [
            "",
            f"## Width {width}, {depth} insertion{'s' if depth > 1 else ''}, {steps} steps of {BATCH_SIZE}",
            "",
        ]
        lines.append("| variant | parameters | " + " | ".join(f"lr {rate:g}" for rate in rates) + " | best |")
        lines.append("|---|---:" + "|---:" * (len(rates) + 1) + "|")
        for variant in sorted({run["variant"] for run in group}, key=list(VARIANTS).index):
            own = [run for run in group if run["variant"] == variant]
            cells = [[run["accuracy"] for run in own if run["lr"] == rate] for rate in rates]
            best = max(mean(cell) for cell in cells if cell)
            shown = " | ".join(_cell(cell) for cell in cells)
            lines.append(f"| {variant} | {own[0]['num_parameters']:,} | {shown} | {best:.2f} |")
    return "\n".join(lines) + "\n"


def _cell(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    spread = f" ({min(scores):.2f} to {max(scores):.2f})" if len(scores) > 1 else ""
    return f"{mean(scores):.2f}{spread}"


def main() -> None:
    """Train every case that is not in the JSON, and write JSON and page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, separated by commas")
    parser.add_argument("--rates", default="3e-4,1e-3,3e-3", help="peak learning rates, separated by commas")
    parser.add_argument("--widths", default="64", help="d_model of the tri-modal adapter")
    parser.add_argument("--depths", default="1", help="numbers of insertions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, a process each")
    parser.add_argument("--out", type=Path, default=HERE / "binding.json")
    arguments = parser.parse_args()

    runs: list[dict[str, Any]] = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    cases = [
        Case(variant=variant, lr=float(lr), width=int(width), depth=int(depth), seed=seed, steps=arguments.steps)
        for seed in range(arguments.seeds)
        for width in arguments.widths.split(",")
        for depth in arguments.depths.split(",")
        for variant in arguments.variants.split(",")
        for lr in arguments.rates.split(",")
    ]
    left = [case for case in cases if not any(asdict(case).items() <= run.items() for run in runs)]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(train, case, arguments.device) for case in left]):
            runs.append(done.result())
            print(json.dumps(runs[-1]), flush=True)
            record = {**environment(), "device": arguments.device, "runs": runs}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            arguments.out.with_suffix(".md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
