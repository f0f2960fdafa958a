"""Writes a report on finished runs: Markdown, LaTeX, CSV, JSON and one HTML page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import RunError, SettingsError, unknown_name
from .clips import ShownClip
from .dataset import find_data_set, some_clips
from .html import method_note, to_html
from .ledger import Ledger, make_ledger
from .notes import make_notes
from .runs import Run, find_runs, group_by_variant, is_finished, read_run
from .statistics import MeanInterval
from .table import BLIND, Comparison, Corrected, Table, build_table
from .tables_text import comparisons_to_csv, ledger_to_markdown, to_csv, to_latex, to_markdown, to_text


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report stands, and what of it belongs on a terminal.

    Args:
        table: the numbers.
        ledger: what the runs cost, and would have cost.
        notes: as they stand at the top of the page.
        text: the tables in at most 160 columns.
    """

    markdown: Path
    latex: Path
    csv: Path
    comparisons_csv: Path
    json: Path
    html: Path
    table: Table
    ledger: Ledger
    notes: tuple[str, ...]
    text: str


def report(
    run_folders: Iterable[Path | str],
    *,
    out: Path | str,
    order: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    blind: Mapping[str, str] | None = None,
    comparisons: Iterable[tuple[str, str]] | None = None,
    baseline: str | None = None,
    clips: Iterable[ShownClip] | None = None,
    notes: Sequence[str] = (),
    title: str | None = None,
    skip_unfinished: bool = False,
    resamples: int = 10_000,
) -> ReportFiles:
    """Build the table of finished runs and write it to `out` in every format.

    Args:
        run_folders: run folders, or folders above them (a variant's, an experiment's).
        out: the folder to write, made if it is not there; report files in it are replaced.
        order: variant names in the order of their rows; variants that it leaves out follow in order of appearance.
        labels: what to print for a variant's name, "blind" for the baseline.
        blind: the blind baseline's answer to each test question by question id; from the data set that the runs name,
            where that can be read, if not given.
        comparisons: pairs (a, b) of variant names or "blind"; by default each variant against the blind baseline, and
            each other against `baseline`.
        baseline: the variant (or "blind") that others are compared with, by question type too; the first variant where
            neither it nor comparisons are given.
        clips: clips to show on the page; by default a few of those asked about, where their media can be read.
        notes: paragraphs to put above those that the report makes itself.
        title: of the page; the experiments' names where absent.
        skip_unfinished: rather than stop, leave out unfinished runs, and names in `order`, `labels` and `comparisons`
            that no finished run has; a note says which.
        resamples: of the bootstrap.

    Raises:
        RunError: nothing to report, an unfinished, malformed or contradictory run, or a folder that cannot be written.
        SettingsError: names in `order`, `labels`, `comparisons`, `baseline` or `clips` that the runs do not have.
    """
    folders = find_runs(run_folders)
    left_out = [folder for folder in folders if skip_unfinished and not is_finished(folder)]
    variants = group_by_variant(read_run(folder) for folder in folders if folder not in left_out)
    pairs = None if comparisons is None else list(comparisons)
    missing: list[str] = []
    if skip_unfinished:
        known = {*variants, BLIND}
        named = dict.fromkeys([*(order or ()), *(name for pair in pairs or () for name in pair)])
        missing = [name for name in named if name not in known]
        order = [name for name in order or () if name in known]
        labels = {name: label for name, label in (labels or {}).items() if name in known}
        pairs = None if pairs is None else [pair for pair in pairs if known.issuperset(pair)]
    variants = _ordered(variants, order)
    data = find_data_set(next(iter(variants.values()))[0]) if variants else None
    if data is not None:
        blind = data.blind if blind is None else blind
        clips = some_clips(data, next(iter(variants.values()))[0].predictions) if clips is None else clips
    table = build_table(variants, labels=labels, blind=blind, comparisons=pairs, baseline=baseline, resamples=resamples)
    ledger = make_ledger(variants)
    own = () if data is None else data.notes
    said = (*notes, *_left_out_note(left_out, missing), *own, *make_notes(table, variants))
    experiments = dict.fromkeys(run.experiment for runs in variants.values() for run in runs)
    title = title or f"talik: {', '.join(experiments)}"
    page = to_html(table, variants, ledger, title=title, notes=said, blind=blind, clips=clips or ())
    out = Path(out)
    files = ReportFiles(
        markdown=out / "report.md",
        latex=out / "report.tex",
        csv=out / "report.csv",
        comparisons_csv=out / "comparisons.csv",
        json=out / "report.json",
        html=out / "report.html",
        table=table,
        ledger=ledger,
        notes=said,
        text=to_text(table),
    )
    method = f"\n{method_note(table)}\n" if table.comparisons else ""
    costs = ledger_to_markdown(ledger, {row.name: row.label for row in table.rows})
    quoted = "".join(f"> {note}\n>\n" for note in said)
    _write(files.markdown, f"{quoted}\n{to_markdown(table)}{method}\n{costs}")
    _write(files.latex, to_latex(table))
    _write(files.csv, to_csv(table))
    _write(files.comparisons_csv, comparisons_to_csv(table))
    _write(files.json, json.dumps(_as_json(table, variants, ledger, title, said), indent=1, ensure_ascii=False) + "\n")
    _write(files.html, page)
    return files


def _ordered(variants: dict[str, tuple[Run, ...]], order: Sequence[str] | None) -> dict[str, tuple[Run, ...]]:
    for name in order or ():
        if name not in variants:
            raise SettingsError(unknown_name("variant in order", name, variants))
    return {name: variants[name] for name in dict.fromkeys([*(order or ()), *variants])}


def _left_out_note(folders: Sequence[Path], missing: Sequence[str]) -> tuple[str, ...]:
    unfinished = ["/".join(folder.parts[-2:]) for folder in folders]
    absent = [name for name in missing if name not in {folder.parent.name for folder in folders}]
    notes = []
    if unfinished:
        notes.append(f"Left out, since unfinished: {', '.join(unfinished)}.")
    if absent:
        notes.append(f"Left out, since there is no run of it: {', '.join(absent)}.")
    return tuple(notes)


def _as_json(
    table: Table, variants: Mapping[str, Sequence[Run]], ledger: Ledger, title: str, notes: Sequence[str]
) -> dict[str, Any]:
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
            "trainable_params": row.trainable_params,
            "seconds": row.seconds,
            "device": row.device,
            "flops": row.flops,
            "flops_trained": row.flops_trained,
        }
        for row in table.rows
    ]
    comparisons = [
        {
            "a": c.a,
            "b": c.b,
            **_difference(c),
            "by_type": {name: _difference(corrected) for name, corrected in c.by_type.items()},
        }
        for c in table.comparisons
    ]
    return {
        "title": title,
        "notes": list(notes),
        "split": table.split,
        "num_questions": dict(table.num_by_type),
        "num_clips": table.num_clips,
        "rows": rows,
        "comparisons": comparisons,
        "baseline": table.baseline,
        "ledger": {**asdict(ledger), "training": ledger.training, "without_cache": ledger.without_cache},
    }


def _difference(corrected: Comparison | Corrected) -> dict[str, float | bool]:
    d = corrected.difference
    return {
        "points": d.points,
        "low": d.low,
        "high": d.high,
        "level": d.level,
        "p_value": d.p_value,
        "p_holm": corrected.p_corrected,
        "excludes_zero": d.excludes_zero,
        "covers_seeds": d.covers_seeds,
    }


def _cell(cell: MeanInterval) -> dict[str, float | None]:
    return {"percent": cell.mean, "half_interval": cell.half}


def _write(path: Path, text: str) -> None:
    """Write whole or not at all: to a file beside it, then renamed."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path}: the report cannot be written ({error.strerror}); choose another folder") from None
    finally:
        if part.exists():
            part.unlink()
