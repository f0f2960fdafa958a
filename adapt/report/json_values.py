"""The numbers of a report as plain values, for report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .costs import CostTable
from .runs import Run
from .statistics import MeanInterval
from .table import Table
from .tables_text import row_fields


def json_values(
    table: Table, variants: Mapping[str, Sequence[Run]], costs: CostTable, *, title: str, notes: Sequence[str]
) -> dict[str, Any]:
    """Return what report.json holds."""
    rows = [
        {
            "variant": row.name,
            "label": row.label,
            "trained": row.trained,
            "seeds": [run.seed for run in variants.get(row.name, ())],
            "runs": [run.name for run in variants.get(row.name, ())],
            "best_epochs": [run.best_epoch for run in variants.get(row.name, ())],
            "by_type": {name: _cell(cell) for name, cell in row.by_type.items()},
            "by_group": {name: _cell(cell) for name, cell in row.by_group.items()},
            "overall": _cell(row.overall),
            **{name: getattr(row, name) for name in row_fields(table)},
        }
        for row in table.rows
    ]
    comparisons = [
        {"a": c.a, "b": c.b, **c.values(), "by_type": {name: of_type.values() for name, of_type in c.by_type.items()}}
        for c in table.comparisons
    ]
    by_variant = [cost._asdict() for cost in costs.variants]
    totals = {"training": costs.training, "without_cache": costs.without_cache}
    return {
        "title": title,
        "notes": list(notes),
        "split": table.split,
        "metric": table.metric.name,
        "num_questions": dict(table.num_by_type),
        "num_clips": table.num_clips,
        "rows": rows,
        "comparisons": comparisons,
        "baseline": table.baseline,
        "spread": table.spread,
        "costs": {**asdict(costs), "variants": by_variant, **totals},
    }


def _cell(cell: MeanInterval) -> dict[str, float | None]:
    return {"percent": cell.mean, "half_interval": cell.half, "sd": cell.sd}
