"""Sizes of the adapters at Swin-V2-L scale: trainable parameters, and multiply-adds a token, written as a table.

The scale is that of LAVISH's experiments: one Swin-V2-L (2, 2, 18, 2 blocks of 192, 384, 768, 1536 channels; pictures
and spectrograms of 192 x 192 pixels, so 48², 24², 12², 6² tokens) for both modalities, an adapter at each of its 24
blocks, T = 10 segments. Nothing is downloaded: the adapters are built from these shapes alone.

Multiply-adds are those of matrix products in one forward pass, counted by torch's FlopCounterMode, over all visual and
audio tokens of all insertions. Element-wise work (norms, gates, softmax, the scan's recurrence) is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from talik.adapt.adapters.base import Triple
from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.extract.encoders.unit_replacement import is_norm

STAGES = ((2, 192, 48 * 48), (2, 384, 24 * 24), (18, 768, 12 * 12), (2, 1536, 6 * 6))  # blocks, channels, tokens
SEGMENTS, TEXT_TOKENS, TEXT_CHANNELS = 10, 16, 768
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("probe", {"kind": "probe"}),
    ("trimodal", {"kind": "trimodal"}),
    ("trimodal, with text", {"kind": "trimodal", "with_text": True}),
    ("lstta", {"kind": "lstta", "text": False}),
    ("lstta, with text", {"kind": "lstta", "with_text": True}),
    ("lavish, beside the unit alone", {"kind": "lavish"}),
    ("lavish, as published", {"kind": "lavish", "after_attention": True, "cross_gate": 0.0}),
    ("dgsct, beside the unit alone", {"kind": "dgsct"}),
    ("dgsct, both places", {"kind": "dgsct", "after_attention": True, "cross_gate": 0.0}),
    ("bottleneck", {"kind": "bottleneck"}),
    ("parallel", {"kind": "parallel"}),
    ("side", {"kind": "side"}),
)
UNIT_ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bitfit", {"kind": "bitfit"}),
    ("norm", {"kind": "norm"}),
    ("finetune", {"kind": "finetune"}),
    ("peft:lora", {"kind": "peft:lora", "r": 8}),
)
MODEL = "swinv2_large_window12_192"
NEED_VALUES = ("trimodal",)  # the scan runs on real tensors only; all else is counted without computing
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "adapters.md"
BEGIN, END = "<!-- sizes: written by benchmarks/adapter_sizes.py -->", "<!-- end of sizes -->"


def scale(with_text: bool) -> list[dict[str, int]]:
    """The channels at each of the 24 insertions."""
    text = {"text": TEXT_CHANNELS} if with_text else {}
    return [{"visual": width, "audio": width, **text} for blocks, width, _ in STAGES for _ in range(blocks)]


def triple(width: int, tokens: int, with_text: bool, device: str) -> Triple:
    """One clip's tokens at a stage; their values do not matter."""
    media = torch.zeros(1, SEGMENTS, tokens, width, device=device)
    text = torch.zeros(1, TEXT_TOKENS, TEXT_CHANNELS, device=device) if with_text else None
    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.bool, device=device) if with_text else None
    return Triple(media, media.clone(), text, mask)


def measure(row: Mapping[str, Any]) -> dict[str, float]:
    """Trainable parameters and multiply-adds a token of one row's adapter."""
    with_text = bool(row.get("with_text"))
    table = {k: v for k, v in row.items() if k != "with_text"}
    module, settings = adapter_kind(table["kind"]).module, adapter_settings(table)
    if module is None:
        return {"parameters": 0, "multiply_adds": 0}
    device = "cpu" if table["kind"] in NEED_VALUES else "meta"
    with torch.device(device):
        ends = ({"visual": STAGES[-1][1], "audio": STAGES[-1][1]},) if getattr(module, "beside", False) else ()
        adapter = module(settings, scale(with_text), *ends)
    num_tokens = sum(2 * SEGMENTS * blocks * tokens for blocks, _, tokens in STAGES)
    return {
        "parameters": sum(p.numel() for p in adapter.parameters()),
        "multiply_adds": round(_multiply_adds(adapter.requires_grad_(False), with_text, device) / num_tokens),
    }


def measure_units(row: Mapping[str, Any]) -> dict[str, float]:
    """The same of what trains inside the blocks themselves, those of vision and those of sound."""
    with torch.device("meta"):
        model = timm.create_model(MODEL)
    blocks = [block for stage in model.layers for block in stage.blocks]
    if row["kind"] == "peft:lora":
        return _lora(blocks, row["r"])
    chosen = {
        "bitfit": lambda module, name: name.endswith("bias"),
        "norm": lambda module, name: is_norm(module),
        "finetune": lambda module, name: True,
    }[row["kind"]]
    counts = [
        p.numel()
        for block in blocks
        for module in block.modules()
        for name, p in module.named_parameters(recurse=False)
        if chosen(module, name)
    ]
    return {"parameters": 2 * sum(counts), "multiply_adds": 0}


def _lora(blocks: Sequence[nn.Module], rank: int) -> dict[str, float]:
    """Two matrices, rank x in and out x rank, beside every linear layer (Hu et al. 2022)."""
    parameters = adds = num_tokens = 0
    sizes = [tokens for count, _, tokens in STAGES for _ in range(count)]
    for block, tokens in zip(blocks, sizes, strict=True):
        num_tokens += tokens
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                own = rank * (module.in_features + module.out_features)
                parameters += own
                adds += own * tokens * ("cpb_mlp" not in name)  # that one runs once a forward, not on tokens
    return {"parameters": 2 * parameters, "multiply_adds": round(adds / num_tokens)}


def _multiply_adds(adapter: Any, with_text: bool, device: str) -> int:
    if getattr(adapter, "beside", False):
        rungs = [triple(width, tokens, with_text, device) for blocks, width, tokens in STAGES for _ in range(blocks)]
        last = STAGES[-1][2]
        return _count(lambda: adapter(rungs, {"visual": last, "audio": last}))
    total, index = 0, 0
    for blocks, width, tokens in STAGES:  # the blocks of a stage are alike
        given, here = triple(width, tokens, with_text, device), adapter.at(index)
        once = _count(lambda here=here, given=given: here(given))
        second = getattr(here, "second", None)
        if second is not None:
            once += _count(lambda second=second, given=given: second(given))
        total, index = total + blocks * once, index + blocks
    return total


def _count(run: Any) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def as_table(results: Sequence[tuple[str, Mapping[str, Any], Mapping[str, float]]]) -> str:
    """The results in Markdown."""
    lines = ["| adapter | settings | trainable parameters | multiply-adds a token |", "|---|---|---:|---:|"]
    for name, row, found in results:
        chosen = ", ".join(f"{k} = {json.dumps(v)}" for k, v in row.items() if k not in ("kind", "with_text"))
        lines.append(
            f"| {name} | {chosen or 'defaults'} | {found['parameters'] / 1e6:.2f} M | {found['multiply_adds']:,} |"
        )
    return "\n".join(lines)


def into_page(page: str, table: str) -> str:
    """The page with the table between its two marks."""
    head, rest = page.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all rows; write adapter_sizes.json beside this script and the table into docs/adapters.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page's table is another")
    options = parser.parse_args(arguments)
    results = [(name, row, measure(row)) for name, row in ROWS]
    results += [(name, row, measure_units(row)) for name, row in UNIT_ROWS]
    table = as_table(results)
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    if options.check:
        return 0 if into_page(page, table) == page else 1
    PAGE.write_text(into_page(page, table), encoding="utf-8")
    record = {
        "command": "python benchmarks/adapter_sizes.py",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "scale": {"model": MODEL, "stages": STAGES, "segments": SEGMENTS, "text": [TEXT_TOKENS, TEXT_CHANNELS]},
        "rows": [{"name": name, "settings": row, **found} for name, row, found in results],
    }
    (HERE / "adapter_sizes.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
