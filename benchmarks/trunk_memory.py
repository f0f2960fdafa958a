"""Measure what running a suffix of a trunk holds in memory, beside the bare modules called one after another.

    python benchmarks/trunk_memory.py [--output trunk_memory.json]

Bytes are those of torch's CPU allocator, from its profiler's memory events: exact, and the same at every run. "Peak" is
the most that was allocated at once beyond what was there at the start; weights and the given state are not in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import transformers
from coverage_checks import Inputs, known, restored
from scan import environment
from tensor_memory import peak_bytes
from torch import Tensor, nn

from talik.extract.encoders.hf import caller
from talik.extract.trunk.state import Context
from talik.extract.trunk.tracing import at, put
from talik.extract.trunk.trunk import Trunk
from talik.extract.trunk.verification import find_trunk

ALLOWED = 1.10
"""The most that a frozen suffix may peak at, as a part of the bare units' peak."""


def bare_units(trunk: Trunk, hidden: Tensor, context: Context, start: int, stop: int) -> Tensor:
    """Call the modules of units `start` to `stop` one after another, with nothing around them."""
    for index in range(trunk.bounds[start], trunk.bounds[stop]):
        link = trunk.links[index]
        args, kwargs = put(context.calls[index], link.slots, hidden)
        hidden = at(link.module(*args, **kwargs), min(link.exit, key=str))
    return hidden


def suffix_peaks(trunk: Trunk, inputs: Inputs) -> dict[str, int]:
    """Return the peaks, in bytes, of what can be done from the middle boundary, and of the whole model."""
    last, middle = trunk.num_units, trunk.num_units // 2
    with torch.no_grad():
        hidden, context = trunk.embed(inputs)
        state = trunk.run(hidden, context, 0, middle)
        del hidden

    def backward(run: Callable[[Tensor, int], Tensor], start: int, given: Tensor) -> None:
        leaf = given.detach().requires_grad_()
        run(leaf, start).sum().backward()

    def ours(given: Tensor, start: int) -> Tensor:
        return trunk.run(given, context, start, last)

    def bare(given: Tensor, start: int) -> Tensor:
        return bare_units(trunk, given, context, start, last)

    def restore_and_finish() -> list[Tensor]:
        fresh = restored(trunk, inputs)
        return known(trunk, trunk.finish(trunk.run(state, fresh, middle, last), fresh))

    def frozen(action: Callable[[], object]) -> int:
        with torch.no_grad():
            return peak_bytes(action)

    with torch.no_grad():
        restore_and_finish()  # what is kept once (contexts of a shape) is not the suffix's
        first = trunk.embed(inputs)[0]
    return {
        "bare suffix": frozen(lambda: bare(state, middle)),
        "suffix": frozen(lambda: ours(state, middle)),
        "context, suffix, finish": frozen(restore_and_finish),
        "whole model": frozen(lambda: trunk.forward(inputs)),
        "bare suffix, backward": peak_bytes(lambda: backward(bare, middle, state)),
        "suffix, backward": peak_bytes(lambda: backward(ours, middle, state)),
        "all units, backward": peak_bytes(lambda: backward(ours, 0, first)),
    }


def picture_trunk(name: str, batch: int, size: int) -> tuple[Trunk, Inputs]:
    """Cut a timm model with random weights; return it with a batch of pictures."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval().requires_grad_(False)
    return _cut(
        model, lambda inputs: model(inputs["pixel_values"]), {"pixel_values": torch.randn(batch, 3, size, size)}
    )


def text_trunk(batch: int, length: int, **config: int) -> tuple[Trunk, Inputs]:
    """Cut a BERT with random weights; return it with a batch of texts, the first one shorter."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**config)).eval().requires_grad_(False)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length * 3 // 4 :] = 0
    ids = torch.randint(5, model.config.vocab_size, (batch, length))
    return _cut(model, caller(model, None), {"input_ids": ids, "attention_mask": mask})


def _cut(model: nn.Module, forward: Callable[[Inputs], object], inputs: Inputs) -> tuple[Trunk, Inputs]:
    def batch(seed: int) -> Inputs:
        num = 2 + (seed == 2)
        return {n: t[:num].roll(seed, -1) if t.is_floating_point() or seed else t[:num] for n, t in inputs.items()}

    return find_trunk(model, forward, batch)[0], inputs


CASES: dict[str, Callable[[], tuple[Trunk, Inputs]]] = {
    "ViT-S/16, 8 pictures of 224": lambda: picture_trunk("vit_small_patch16_224", 8, 224),
    "ResNet-50, 8 pictures of 224": lambda: picture_trunk("resnet50", 8, 224),
    "Swin-T, 4 pictures of 224": lambda: picture_trunk("swin_tiny_patch4_window7_224", 4, 224),
    "BERT-base, 16 texts of 64": lambda: text_trunk(16, 64),
}


def main() -> None:
    """Print the peaks, and stop with an error where a frozen suffix peaks too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"), help="the result file")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"environment": environment(), "unit": "bytes, torch profiler, CPU allocator"}
    above = []
    for name, make in CASES.items():
        peaks = suffix_peaks(*make())
        ratio = peaks["suffix"] / peaks["bare suffix"]
        graph = peaks["suffix, backward"] / peaks["bare suffix, backward"]
        result[name] = peaks | {"suffix to bare": ratio, "suffix to bare, backward": graph}
        print(f"{name}: frozen suffix {ratio:.3f} of the bare units', with backward {graph:.3f}")
        for what, size in peaks.items():
            print(f"    {what:26s} {size / 2**20:8.1f} MiB")
        if max(ratio, graph) > ALLOWED:
            above.append(f"{name}: {max(ratio, graph):.3f} of the bare units' peak, expected at most {ALLOWED}")
    parsed.output.write_text(json.dumps(result, indent=1) + "\n")
    if above:
        raise SystemExit("\n".join(above))


if __name__ == "__main__":
    main()
