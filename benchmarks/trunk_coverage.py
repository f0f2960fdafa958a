"""Which models can be cut: a random model of every timm model file and of many transformers encoders, proven."""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from coverage_models import TRANSFORMERS, Small
from torch import Tensor, nn

from talik.cache.errors import TrunkError
from talik.extract.open_hf import caller
from talik.extract.proof import find_trunk

Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    family: str
    name: str
    model_class: str
    num_units: int = 0
    share: float = 0.0
    proven: bool = False
    unit: str = ""
    refusal: str = ""
    seconds: float = 0.0


def small_model(entry: Small) -> tuple[nn.Module, Callable[[Inputs], Any], list[Inputs]]:
    """Build a transformers model and four batches of unequal lengths."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(entry.kind, **entry.config)
    known = getattr(transformers, entry.model_class) if entry.model_class else None
    model: Any = known(config) if known else transformers.AutoModel.from_config(config)
    if entry.part:
        model = getattr(model, entry.part)
    model.eval().requires_grad_(False)
    for parameter in model.parameters():  # zero-initialised parts would hide what they do
        if parameter.numel() and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    batches = [batch_for(entry, config, seed) for seed in range(4)]
    return model, caller(model, None), batches


def batch_for(entry: Small, config: Any, seed: int) -> Inputs:
    """Return random inputs; the probe (seed 0) has 2 items, the others 2 or 3 and other lengths."""
    random = torch.Generator().manual_seed(seed)
    num = 2 + (seed == 2)
    if entry.modality == "text":
        longest = 9 + seed
        ids = torch.randint(5, config.vocab_size, (num, longest), generator=random)
        mask = torch.ones(num, longest, dtype=torch.long)
        mask[0, longest - 3 - seed % 2 :] = 0
        ids[:, -1] = 2
        return {"input_ids": ids * mask, "attention_mask": mask}
    shapes = entry.inputs or {"pixel_values": (3, *_size(config))}
    inputs = {name: torch.randn(num, *shape, generator=random) for name, shape in shapes.items()}
    if entry.kind == "siglip2_vision_model":
        mask = torch.ones(num, 16, dtype=torch.long)
        mask[0, 12:] = 0
        inputs["pixel_attention_mask"] = mask
        inputs["spatial_shapes"] = torch.tensor([[3, 4]] + [[4, 4]] * (num - 1))
    elif "input_values" in shapes and len(shapes["input_values"]) == 1:
        mask = torch.ones(num, *shapes["input_values"], dtype=torch.long)
        mask[0, 500 + 40 * seed :] = 0
        inputs["attention_mask"] = mask
    return inputs


def _size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def measure(family: str, name: str, build: Callable[[], Any]) -> Row:
    """Build one model, cut it, and say what came of it."""
    start = time.perf_counter()
    kind = "?"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, forward, batches, *excluded = build()
            kind = type(model).__name__
            trunk, proof = find_trunk(model, forward, batches.__getitem__, *excluded)
        units = sorted({type(link.module).__name__ for link in trunk.links if link.is_unit})
        found: dict[str, Any] = {
            "num_units": trunk.num_units,
            "share": proof.share,
            "proven": True,
            "unit": "+".join(units),
        }
    except TrunkError as error:
        found = {"refusal": str(error)}
    except Exception as error:  # a model that cannot be built or run here is a line of the table, not the end of it
        found = {"refusal": f"not run: {type(error).__name__}: {str(error)[:200]}"}
        if not isinstance(error, ImportError):
            found["refusal"] += " @ " + traceback.format_exc().strip().splitlines()[-3].strip()[-120:]
    return Row(family=family, name=name, model_class=kind, seconds=time.perf_counter() - start, **found)


def transformers_rows(only: str) -> Iterator[Row]:
    """Measure the transformers models whose name contains `only`."""
    for entry in TRANSFORMERS:
        if only in entry.name:
            yield measure("transformers", entry.name, lambda entry=entry: small_model(entry))


def timm_rows(only: str) -> Iterator[Row]:
    """Measure one model of every timm model file whose name contains `only`."""
    from coverage_timm import CHOSEN, timm_model

    for file, (name, changes) in CHOSEN.items():
        if only in file or only in name:
            yield measure("timm", f"{file}: {name}", lambda name=name, changes=changes: timm_model(name, changes))


def markdown(rows: list[Row]) -> str:
    """Return the table with every refusal's reason."""
    lines = [
        "# Which models can be cut",
        "",
        "Made by `python benchmarks/trunk_coverage.py`, small random models; proven: bit-exact at every boundary.",
        "",
        "| family | model | class | units | share in units | proven | unit, or why refused |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for row in rows:
        told = (row.unit or row.refusal.split(" @ ")[0]).replace("|", "/").replace("\n", " ")
        share = f"{row.share:.0%}" if row.proven else ""
        cells = (row.family, row.name, row.model_class, row.num_units or "", share, "yes" if row.proven else "no", told)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, and write it as JSON if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=("timm", "transformers", "all"), default="all")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table as Markdown")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = []
    sources = {"timm": timm_rows, "transformers": transformers_rows}
    for family, source in sources.items():
        if parsed.family in (family, "all"):
            for row in source(parsed.only):
                rows.append(row)
                told = (
                    f"{row.num_units:3d} units {row.share:4.0%} {row.unit}" if row.proven else f"REFUSED {row.refusal}"
                )
                print(f"{row.name:50s} {row.model_class:28s} {row.seconds:5.1f}s {told}", flush=True)
    proven = sum(row.proven for row in rows)
    print(f"{proven} of {len(rows)} proven")
    if parsed.out:
        parsed.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if parsed.markdown:
        parsed.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
