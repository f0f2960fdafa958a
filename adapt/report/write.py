"""Write a report on finished runs: Markdown, LaTeX, CSV, JSON, figures and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ...cache.atomic_io import write_file
from ...errors import RunError, SettingsError, counted, unknown_name
from ..training.run_folder import RunFolder
from ..training.stopped_runs import read_stopped
from .build_table import build_table
from .costs import CostTable, make_cost_table
from .dataset import DataSet, ShownClip, find_data_set, some_clips
from .figures import make_figures
from .json_values import json_values
from .latex import to_latex
from .notes import make_notes
from .order import order_of_files
from .page import method_note, to_html
from .read_runs import is_finished, read_run, with_prefixes
from .runs import Run, group_by_variant
from .search import summarise_search
from .statistics import Spread
from .table import AVERAGE, BLIND, Table
from .tables_text import (
    DEVIATION,
    HALF_INTERVAL,
    cells_to_markdown,
    comparisons_to_csv,
    cost_table_cells,
    to_csv,
    to_markdown,
    to_text,
)

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, repr=False)
class ReportFiles:
    """Paths of a written report, and its numbers.

    Attributes:
        figures: folder of the figures, each as SVG and PDF.
        table: accuracies and comparisons.
        costs: measured seconds of the runs, and predicted ones without the cache.
        notes: as they stand at the top of the page.
        text: the tables in at most 160 columns.
    """

    markdown: Path
    latex: Path
    csv: Path
    comparisons_csv: Path
    json: Path
    html: Path
    figures: Path
    table: Table
    costs: CostTable
    notes: tuple[str, ...]
    text: str

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table: a row for each variant; mean accuracies in percent by type and in all, parameters, seconds.

        Columns that end in "± (half of 95 % t interval)" and "sd" have the spread over seeds.
        """
        import pandas

        rows = {}
        for row in self.table.rows:
            cells = {**row.by_type, **row.by_group, AVERAGE: row.overall}
            means = {name: cell.mean for name, cell in cells.items()}
            halves = {name + HALF_INTERVAL: cell.half for name, cell in cells.items() if cell.half is not None}
            halves |= {name + DEVIATION: cell.sd for name, cell in cells.items() if cell.sd is not None}
            costs = {"params": row.trainable_params, "seconds": row.seconds, "seeds": row.num_seeds}
            rows[row.name] = {"label": row.label, **means, **halves, **costs}
        return pandas.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        return f"ReportFiles({counted(len(self.table.trained), 'variant')}, {self.html})"

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(float_format="{:.1f}".format))


def report(
    run_folders: Iterable[Path | str] | Mapping[str, Any],
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
    every_point: bool = False,
    split: str | None = None,
    spread: Spread = "interval",
    columns: Sequence[str] = (),
    resamples: int = 10_000,
) -> ReportFiles:
    """Build the tables and figures of finished runs and write them to `out` in every format.

    Of a grid or a random search the point with the best validation is a row of the table; what else was tried is
    listed with its validation, and so are runs that were stopped early.

    Args:
        run_folders: run folders, or folders above them (a variant's, an experiment's). With a prefix for each,
            {"small": "runs/small", "large": "runs/large"}, the variants are called "small/probe", "large/probe", …
        out: the folder to write, made if absent; report files in it are replaced.
        order: variant names in the order of their rows; variants that it leaves out follow in the order of their
            experiment's file, where that is still beside the runs, else in order of appearance.
        labels: printed names by variant name, "blind" for the baseline.
        blind: the blind baseline's answer to each test question by question id; from the data set that the runs name,
            where that can be read, if not given.
        comparisons: pairs (a, b) of variant names or "blind"; by default each variant against the blind baseline, and
            each other against `baseline`.
        baseline: the variant (or "blind") that others are compared with, by question type too; the first variant where
            neither it nor comparisons are given.
        clips: clips to show on the page; by default a few of the test split, where their media can be read.
        notes: paragraphs to put above those that the report makes itself.
        title: of the page; the experiments' names where absent.
        skip_unfinished: rather than stop, leave out unfinished runs, and names in `order`, `labels` and `comparisons`
            that no finished run has; a note says which.
        every_point: show all finished points of a search on test.
        split: whose predictions are compared, for instance "val", as `talik.evaluate` wrote them into the runs'
            folders; by default the split that the runs were scored on.
        spread: what stands after ±: "interval", half of the mean's 95 % t interval over seeds, or "sd", their standard
            deviation.
        columns: of the accuracy table, in order: question types, groups of types, "Avg", "val", "params", "flops",
            "trained-flops", "hours", "seeds", "macro-f1", "micro-f1" (of multi-label answers), or settings as
            "train.lr"; the usual ones if empty.
        resamples: of the bootstrap.

    Example:
        >>> import talik
        >>> talik.report(["runs"], out="report", skip_unfinished=True).html.as_posix()
        'report/report.html'

    Raises:
        RunError: nothing to report, an unfinished, malformed or contradictory run, or a folder that cannot be written.
        SettingsError: names in `order`, `labels`, `comparisons`, `baseline`, `clips` or `columns` that the runs do not
            have, or another `spread`.
    """
    if spread not in get_args(Spread):
        raise SettingsError(unknown_name("spread", spread, get_args(Spread)))
    prefixes = with_prefixes(run_folders)
    folders = tuple(prefixes)
    stopped = [folder for folder in folders if read_stopped(RunFolder(folder)) is not None]
    folders = tuple(folder for folder in folders if folder not in stopped)
    left_out = [folder for folder in folders if skip_unfinished and not is_finished(folder)]
    finished = [folder for folder in folders if folder not in left_out]
    variants: Mapping[str, Sequence[Run]] = group_by_variant(
        read_run(folder, split=split, prefix=prefixes[folder]) for folder in finished
    )
    order, labels = list(order or ()), dict(labels or {})
    pairs = None if comparisons is None else list(comparisons)
    if skip_unfinished:
        known = {*variants, BLIND}
        named = dict.fromkeys([*order, *(name for pair in pairs or () for name in pair)])
        unfinished = {f"{prefixes[f]}/{f.parent.name}" if prefixes[f] else f.parent.name for f in left_out}
        absent = [name for name in named if name not in known | unfinished]
        order = [name for name in order if name in known]
        labels = {name: label for name, label in labels.items() if name in known}
        pairs = None if pairs is None else [pair for pair in pairs if known.issuperset(pair)]
        places = ["/".join(folder.parts[-2:]) for folder in left_out]
        for reason, names in (("unfinished", places), ("there is no run of it", absent)):
            notes = (*notes, *([f"Left out, since {reason}: {', '.join(names)}."] if names else []))
    for name in order:
        if name not in variants:
            raise SettingsError(unknown_name("variant in order", name, variants))
    shown = {*order, *labels, *(name for pair in pairs or () for name in pair), baseline or ""}
    variants, search = summarise_search(
        {name: variants[name] for name in dict.fromkeys([*order, *order_of_files(variants)])},
        stopped,
        named=shown,
        every_point=every_point,
    )
    notes = (*notes, *search.notes())
    data = DataSet()
    if variants:
        first = next(iter(variants.values()))[0]
        if blind is not None and first.predictions[0].labels is not None:
            raise SettingsError("blind: of multi-label answers it is fitted to the data set; leave it out")
        data = find_data_set(first)
        blind = data.blind if blind is None else blind
        clips = some_clips(data, first.predictions) if clips is None else clips
        notes = (*notes, *data.notes)
    table = build_table(
        variants,
        labels=labels,
        blind=blind,
        blind_labels=data.blind_labels,
        comparisons=pairs,
        baseline=baseline,
        spread=spread,
        columns=columns,
        resamples=resamples,
    )
    costs = make_cost_table(variants)
    notes = (*notes, *make_notes(table, variants))
    experiments = dict.fromkeys(run.experiment for runs in variants.values() for run in runs)
    title = title or f"talik: {', '.join(experiments)}"
    figures = make_figures(table, variants, costs, search)
    tried = search.cells()
    out = Path(out)
    page = to_html(
        table,
        variants,
        costs,
        figures,
        title=title,
        notes=notes,
        blind=blind,
        clips=list(clips or ()),
        tried=tried,
        data=data,
        out=out,
    )
    files = ReportFiles(
        markdown=out / "report.md",
        latex=out / "report.tex",
        csv=out / "report.csv",
        comparisons_csv=out / "comparisons.csv",
        json=out / "report.json",
        html=out / "report.html",
        figures=out / "figures",
        table=table,
        costs=costs,
        notes=notes,
        text=to_text(table),
    )
    quoted = "".join(f"> {note}\n>\n" for note in notes)
    method = f"\n{method_note(table)}\n" if table.comparisons else ""
    cost_lines = "\n".join([cells_to_markdown(cost_table_cells(costs, table.labels)), *costs.lines()])
    values = json_values(table, variants, costs, title=title, notes=notes)
    values["tried"] = [one.to_json() for one in search.tried]
    tried_lines = "" if tried is None else f"\n{cells_to_markdown(tried)}"
    contents: dict[Path, str | bytes] = {
        files.markdown: f"{quoted}\n{to_markdown(table)}{method}{tried_lines}\n{cost_lines}\n",
        files.latex: to_latex(table),
        files.csv: to_csv(table),
        files.comparisons_csv: comparisons_to_csv(table),
        files.json: json.dumps(values, indent=1, ensure_ascii=False) + "\n",
        **{files.figures / f"{figure.name}.svg": figure.svg for figure in figures},
        **{files.figures / f"{figure.name}.pdf": figure.pdf for figure in figures},
        files.html: page,
    }
    for path, content in contents.items():
        _write(path, content)
    return files


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path}: the report cannot be written ({reason}); choose another folder") from None
