"""The page of the preprocessing's comparison: what was compared, what was counted, every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_INTRODUCTION = """# Whether models get the pixels that their own code gives them

Written by `python benchmarks/preprocess_coverage.py --markdown`; nothing here is edited by hand. Frames of {shapes}
(width x height), smooth with a corner of noise, go through talik's preprocessing and through the model's own:
`timm.data.create_transform` of every pretrained configuration of timm {timm}, and the image or video processor of
transformers {transformers}, called on one Pillow image (or clip) at a time. No weights are read.

- **way**: "image" and "timm" are talik's batched preprocessing, which hands small and high frames of timm models to
  timm's own transform; "processor" is the model's own, run on batches.
- **largest**: the largest difference, in grey levels of 255, for each shape of frame.
- **beyond**: the share of values that are more than one grey level off.
- A refusal is the message of `load_encoder`.

Measured on {cpu} with torch {torch}, Pillow {pillow}, Python {python}, commit {commit}.
"""


def page(account: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    where, rows = account["environment"], account["rows"]
    shapes = ", ".join(f"{width} x {height}" for height, width in account["shapes"])
    head = _INTRODUCTION.format(
        shapes=shapes,
        timm=where["timm"],
        transformers=where["versions"]["transformers"],
        cpu=where["cpu"],
        torch=where["versions"]["torch"],
        pillow=where["pillow"],
        python=where["versions"]["python"],
        commit=(where["commit"] or "?")[:7],
    )
    parts = [head, _counts(rows)]
    for family, title in (("timm", "## timm, by data configuration"), ("transformers", "## transformers")):
        lines = [title, "", "| what | models | for example | way | largest | beyond |", "|---|---:|---|---|---|---:|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows if row["family"] == family]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _counts(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| | compared | models | to the bit | within one grey level | beyond | refused |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for family in ("timm", "transformers"):
        own = [row for row in rows if row["family"] == family]
        run = [row for row in own if not row["refusal"]]
        exact = sum(row["num_models"] for row in run if max(row["largest"]) < 0.01)
        beyond = sum(row["num_models"] for row in run if row["beyond"])
        models, compared = (sum(row["num_models"] for row in some) for some in (own, run))
        lines.append(
            f"| {family} | {len(own)} | {models} | {exact} | {compared - exact - beyond} | {beyond} | "
            f"{models - compared} |"
        )
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = row["name"].replace("|", "/")
    if row["refusal"]:
        return [name, str(row["num_models"]), row["example"], "refused: " + row["refusal"].replace("|", "/"), "", ""]
    largest = ", ".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in row["largest"])
    beyond = "0" if not row["beyond"] else f"{row['beyond']:.1e}"
    return [name, str(row["num_models"]), row["example"], row["way"], largest, beyond]
