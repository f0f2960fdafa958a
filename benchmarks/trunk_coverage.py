"""Which models can be cut: a random model of every timm model file and of many transformers encoders, measured.

    python benchmarks/trunk_coverage.py --markdown

Each row is kept in a JSON file as soon as it is measured. A row is measured again when what it depends on has changed
(the code that finds and proves trunks, the model's entry here, a library's version), so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import inspect
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from coverage_checks import TOLERANCE, measure_trunk
from coverage_models import TRANSFORMERS, Small
from coverage_page import page
from coverage_timm import CHOSEN, timm_model
from scan import environment
from torch import Tensor, nn

import talik
from talik.errors import TrunkError
from talik.extract.encoders.hf import caller
from talik.extract.encoders.probe import check_tokens
from talik.extract.trunk.verification import find_trunk

Inputs = dict[str, Tensor]
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; the measured numbers are those of `coverage_checks.Measured`."""

    family: str
    name: str
    model_class: str
    stamp: str
    required: bool
    num_units: int = 0
    share: float = 0.0
    proven: bool = False
    unit: str = ""
    aside: tuple[str, ...] = ()
    num_exact: int = 0
    finish: bool = False
    gradient: float = 0.0
    gradient_dtype: str = ""
    noise_own: float = 0.0
    noise_ours: float = 0.0
    refusal: str = ""
    seconds: float = 0.0

    @property
    def wrong(self) -> str:
        """What differs from the model's own forward though the trunk passed its proof; "" for nothing."""
        if not self.proven:
            return ""
        found = {
            f"{self.num_units + 1 - self.num_exact} boundaries": self.num_exact != self.num_units + 1,
            "finish": not self.finish,
            "gradient": not self.gradient <= TOLERANCE[getattr(torch, self.gradient_dtype)],
            "batch noise": not self.noise_ours <= max(TOLERANCE[torch.float32], 2 * self.noise_own),
        }
        return ", ".join(what for what, differs in found.items() if differs)


def small_model(entry: Small) -> tuple[nn.Module, Callable[[Inputs], Any], list[Inputs]]:
    """Build a transformers model and six batches of unequal lengths."""
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
    batches = [batch_for(entry, config, seed) for seed in range(6)]
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
        inputs["input_values"] *= mask
        inputs["attention_mask"] = mask
    return inputs


def _size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def measure(build: Callable[[], Any], **known: Any) -> Row:
    """Build one model, cut it, and say what came of it; `known` are fields of the row that are so already."""
    start = time.perf_counter()
    kind = "?"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, forward, batches, *excluded = build()
            kind = type(model).__name__
            trunk, proof = find_trunk(model, forward, batches.__getitem__, *excluded)
            for k, shape in enumerate(trunk.hidden_shapes if "input_ids" in batches[0] else ()):
                check_tokens(kind, k, shape, batches[0])  # as loading it would
            known |= asdict(measure_trunk(trunk, batches))
        units = sorted({type(link.module).__name__ for link in trunk.links if link.is_unit})
        known |= {"num_units": trunk.num_units, "share": proof.share, "proven": True, "unit": "+".join(units)}
        known["aside"] = proof.aside
    except TrunkError as error:
        known["refusal"] = str(error)
    except Exception as error:  # a model that cannot be built or run here is a line of the table, not the end of it
        known["refusal"] = f"not run: {type(error).__name__}: {str(error)[:200]}"
        if not isinstance(error, ImportError):
            known["refusal"] += " @ " + traceback.format_exc().strip().splitlines()[-3].strip()[-120:]
    return Row(model_class=kind, seconds=round(time.perf_counter() - start, 2), **known)


def tasks(family: str, only: str) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """Yield the rows of a family (or "all") whose name contains `only`, each with what builds its model."""
    mechanism = _mechanism()
    if family in ("timm", "all"):
        for file, (name, changes) in CHOSEN.items():
            title = f"{file}: {name}"
            if only in title:
                stamp = _stamp(mechanism, "timm", [timm_model], [name, repr(changes)])
                known = {"family": "timm", "name": title, "stamp": stamp, "required": False}
                yield known, lambda name=name, changes=changes: timm_model(name, changes)
    if family in ("transformers", "all"):
        for entry in TRANSFORMERS:
            if only in entry.name:
                stamp = _stamp(mechanism, "transformers", [small_model, batch_for], [repr(entry)])
                known = {"family": "transformers", "name": entry.name, "stamp": stamp, "required": entry.required}
                yield known, lambda entry=entry: small_model(entry)


def _stamp(mechanism: str, library: str, builders: Sequence[Callable[..., Any]], entry: Sequence[str]) -> str:
    sources = [inspect.getsource(function) for function in (measure, check_tokens, *builders)]
    whole = [mechanism, version("torch"), version(library), *sources, *entry]
    return hashlib.sha256("\n".join(whole).encode()).hexdigest()[:16]


@functools.cache
def _mechanism() -> str:
    """Return the digest of the sources that finding, proving and measuring a trunk uses."""
    root = Path(talik.__file__).parent
    waiting, sources = [root / "extract" / "proof.py"], {Path(__file__).with_name("coverage_checks.py")}
    while waiting:
        file = waiting.pop()
        if file in sources or not file.is_file():
            continue
        sources.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                waiting.append(file.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py"))
    whole = hashlib.sha256()
    for file in sorted(sources):
        whole.update(file.name.encode() + file.read_bytes())
    return whole.hexdigest()


def unchosen() -> list[str]:
    """Return timm's model files that register a model and have none in the table."""
    import timm.models._registry as registry

    return sorted(file for file in registry._module_to_models if file not in CHOSEN)


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """Return the rows measured before, by family and name."""
    if not path.is_file():
        return {}
    rows = [Row(**{**row, "aside": tuple(row["aside"])}) for row in json.loads(path.read_text())["rows"]]
    return {(row.family, row.name): row for row in rows}


def write_rows(path: Path, rows: dict[tuple[str, str], Row]) -> None:
    """Write the rows and what they depend on, in the order of the table."""
    order = [(known["family"], known["name"]) for known, _ in tasks("all", "")]
    kept = [asdict(rows[key]) for key in order if key in rows]
    account = {"environment": environment() | {"timm": version("timm")}, "rows": kept}
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(account, indent=1) + "\n")
    partial.replace(path)


def told(row: Row) -> str:
    """Return a row as a line for the terminal."""
    found = f"REFUSED {row.refusal}"
    if row.proven:
        found = f"{row.num_units:3d} units {row.share:4.0%} exact {row.num_exact}/{row.num_units + 1} "
        found += f"gradient {row.gradient:.0e} noise {row.noise_own:.0e}/{row.noise_ours:.0e} {row.unit}"
    if row.wrong:
        found = f"DIFFERS ({row.wrong}) {found}"
    return f"{row.name:50s} {row.model_class:26s} {row.seconds:5.1f}s {found}"


def main() -> None:
    """Measure what is missing, print the table, and write the page if asked; end with an error if a row differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("timm", "transformers", "all"), default="all")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--again", action="store_true", help="measure rows that are up to date too")
    parser.add_argument("--rows", type=Path, default=HERE / "trunk_coverage.json", help="where rows are kept")
    parser.add_argument("--markdown", action="store_true", help="write the page beside the rows")
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows there are")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = read_rows(parsed.rows)
    for known, build in [] if parsed.page_only else tasks(parsed.family, parsed.only):
        key = (known["family"], known["name"])
        if parsed.again or key not in rows or rows[key].stamp != known["stamp"]:
            rows[key] = measure(build, **known)
            write_rows(parsed.rows, rows)
        print(told(rows[key]), flush=True)
    order = list(tasks("all", ""))
    table = [rows[key] for known, _ in order if (key := (known["family"], known["name"])) in rows]
    stale = sum(rows[key].stamp != k["stamp"] for k, _ in order if (key := (k["family"], k["name"])) in rows)
    missing = [k["name"] for k, _ in order if (k["family"], k["name"]) not in rows]
    print(f"{sum(row.proven for row in table)} of {len(table)} can be cut")
    if parsed.markdown or parsed.page_only:
        parsed.rows.with_suffix(".md").write_text(page(table, stale=stale, missing=[*missing, *unchosen()]))
    problems = [f"{row.name}: {row.wrong}" for row in table if row.wrong]
    problems += [f"{row.name}: {row.refusal}" for row in table if row.required and not row.proven]
    problems += [f"timm/models/{file}.py: no model in the table" for file in unchosen()]
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
