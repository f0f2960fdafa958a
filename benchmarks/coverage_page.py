"""The page of the coverage table: what its words mean, what was counted, every row with its numbers or its refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INTRODUCTION = """# Which models can be trunks

Written by `python benchmarks/trunk_coverage.py --markdown`; nothing here is edited by hand. One small model with random
weights of every timm model file that registers a model, and of transformers encoders for text, pictures, video and
sound, is cut into units and then measured beside its own forward.

- **backbone**: the parameters that the share in units is taken of. For a timm model, those that its
  `forward_features` uses; for a transformers model, all but its embedding tables (`nn.Embedding`) and its tables of
  positions and single tokens (parameters of the shape (1, …, D)). Classifiers are in neither; patch embeddings, norms
  and poolers are in both.
- **units**: the modules that run between two boundaries; states can be stored, and adapters placed, between them.
- **exact**: boundaries, of all there are, from which a state runs on bit for bit as in the model's own forward, on a
  batch that neither the search nor the proof has seen, with a context rebuilt from the small inputs alone.
- **finish**: `finish` gives the model's own output bit for bit; *but …* names parts of that output which come from the
  embedding alone and which a stored state cannot give.
- **gradient**: the largest difference between the gradient through the suffix and the gradient through the whole model,
  over all boundaries, relative to the largest gradient, in float64. "f32" says float32: the model's own code has no
  finite gradient, or no kernel, in float64. 0 is bit-equal.
- **noise own / ours**: one item alone, without padding, against the same item in a padded batch, in float32: the
  largest difference over all boundaries, relative to the largest value, of the model's own hidden tensors and of the
  trunk's states, stored alone, padded together and run on included. A large own noise is the model's: its forward lets
  padding reach real tokens (Fourier mixing, convolutions without a mask).

Texts and waveforms come in unequal lengths with a mask; pictures, clips and spectrograms of fixed length without one.
A refusal is the message that `load_encoder` raises, and it says where the chain of units breaks.
"""


def page(rows: Sequence[Any], *, stale: int, missing: Sequence[str]) -> str:
    """Return the page in Markdown: introduction, counts, one table a family."""
    parts = [_INTRODUCTION, _counts(rows, stale, missing)]
    for family, title in (("timm", "## timm, one model a file"), ("transformers", "## transformers")):
        head = (
            "| model | class | units | in units | exact | finish | gradient | noise own / ours | unit, or why refused |"
        )
        lines = [title, "", head, "|---|---|---:|---:|---:|---|---:|---:|---|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows if row.family == family]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _counts(rows: Sequence[Any], stale: int, missing: Sequence[str]) -> str:
    lines = [
        "| | models | can be cut | with at least 80 % in units | refused | differ |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for family in ("timm", "transformers"):
        own = [row for row in rows if row.family == family]
        cut = [row for row in own if row.proven]
        wide = sum(row.share >= 0.8 for row in cut)
        part = f" ({wide / len(own):.0%})" if own else ""
        wrong = sum(bool(row.wrong) for row in own)
        lines.append(f"| {family} | {len(own)} | {len(cut)} | {wide}{part} | {len(own) - len(cut)} | {wrong} |")
    required = [row for row in rows if row.required]
    lines += ["", f"Of {len(required)} transformers encoders that must be cut, {sum(r.proven for r in required)} are."]
    if stale:
        lines += ["", f"{stale} rows were measured with an earlier version of the code or of a library."]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _cells(row: Any) -> list[str]:
    name, kind = _plain(row.name), _plain(row.model_class)
    if not row.proven:
        return [name, kind, "", "", "", "", "", "", "refused: " + _plain(row.refusal.split(" @ ")[0])]
    finish = "exact" if row.finish else "differs"
    if row.aside:
        finish += f", but {', '.join(row.aside[:3])}" + (" …" if len(row.aside) > 3 else "")
    gradient = _number(row.gradient) + (" f32" if row.gradient_dtype == "float32" else "")
    noise = f"{_number(row.noise_own)} / {_number(row.noise_ours)}"
    exact = f"{row.num_exact}/{row.num_units + 1}"
    unit = _plain(row.unit) + (f"; DIFFERS: {row.wrong}" if row.wrong else "")
    return [name, kind, str(row.num_units), f"{row.share:.0%}", exact, finish, gradient, noise, unit]


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
