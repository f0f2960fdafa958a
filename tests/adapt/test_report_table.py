"""The tables: what stands in them, and how each format prints them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from talik.adapt.report import formats
from talik.adapt.report import tables_text as render
from talik.adapt.report.build_table import build_table
from talik.adapt.report.latex import to_latex
from talik.adapt.report.notes import make_notes
from talik.adapt.report.runs import Prediction, Run
from talik.adapt.report.statistics import Difference, MeanInterval
from talik.adapt.report.table import Table
from talik.adapt.scoring.metrics import TYPE_ORDER, score
from talik.errors import RunError, SettingsError
from talik.formats import readable_count, readable_seconds


def made_run(
    variant: str, right: Sequence[bool], *, seed: int = 0, types: Sequence[str] = TYPE_ORDER, **given: object
) -> Run:
    """A run of len(right) questions, types in turn, two questions a clip; the true answer is "yes"."""
    predictions = tuple(
        Prediction(
            question_id=f"q{i}",
            clip_id=f"c{i // 2}",
            type=types[i % len(types)],
            template="t",
            question="Is it?",
            answer="yes",
            prediction="yes" if ok else "no",
            probability=0.5,
            correct=bool(ok),
        )
        for i, ok in enumerate(right)
    )
    settings: dict[str, object] = {"train_seconds": 12.0 + seed, "trainable_params": 1234, "config": {}} | given
    return Run(
        path=Path(f"runs/exp/{variant}/seed{seed}"),
        experiment="exp",
        variant=variant,
        seed=seed,
        epochs=(),
        predictions=predictions,
        scores=score([p.type for p in predictions], [p.correct for p in predictions]),
        split="test",
        best_epoch=1,
        **settings,  # type: ignore[arg-type]
    )


def made_variants(num_seeds: int = 1, num: int = 90, **given: object) -> dict[str, tuple[Run, ...]]:
    rng = np.random.default_rng(0)
    rates = {"probe": 0.4, "trimodal": 0.8}
    return {
        name: tuple(made_run(name, list(rng.random(num) < rate), seed=s, **given) for s in range(num_seeds))
        for name, rate in rates.items()
    }


def always(answer: str, variants: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """A baseline that gives one answer."""
    return {p.question_id: answer for p in next(iter(variants.values()))[0].predictions}


@pytest.fixture
def small() -> Table:
    """Two variants on four questions of two types, and a baseline that is right on none."""
    variants = {
        "probe": (made_run("probe", [1, 0, 1, 0], types=("A-count", "V-loc")),),
        "tri_modal": (made_run("tri_modal", [1, 1, 1, 0], types=("A-count", "V-loc"), trainable_params=2_340_000),),
    }
    return build_table(variants, blind=always("no", variants), comparisons=[], labels={"tri_modal": "tri_modal & co"})


def test_one_seed_gives_means_several_give_half_intervals() -> None:
    alone = build_table(made_variants(1)).rows[0]
    assert alone.overall.half is None
    runs = made_variants(3)
    several = build_table(runs).rows[1]
    values = [100 * run.scores.overall.accuracy for run in runs["trimodal"]]
    assert several.overall.mean == pytest.approx(np.mean(values))
    assert several.overall.half == pytest.approx(4.302653 * np.std(values, ddof=1) / 3**0.5, rel=1e-6)
    assert (several.num_seeds, several.seconds, several.trainable_params) == (3, 13.0, 1234)


def test_rows_keep_their_order_with_the_baseline_first() -> None:
    variants = made_variants()
    table = build_table(variants, blind=always("yes", variants))
    assert [row.name for row in table.rows] == ["blind", "probe", "trimodal"]
    assert table.rows[0].overall == MeanInterval(mean=100.0, half=None, num=1)
    assert not table.rows[0].trained
    assert table.types == TYPE_ORDER
    assert (table.num_questions, table.num_clips) == (90, 45)


def test_comparisons_are_against_the_baseline_and_the_first_unless_named() -> None:
    variants = made_variants()
    blind = always("no", variants)
    pairs = [(c.a, c.b) for c in build_table(variants, blind=blind).comparisons]
    assert pairs == [("probe", "blind"), ("trimodal", "blind"), ("trimodal", "probe")]
    named = build_table(variants, blind=blind, comparisons=[("trimodal", "probe")]).comparisons
    assert [(c.a, c.b) for c in named] == [("trimodal", "probe")]
    rows = [run[0].scores.overall.accuracy for run in variants.values()]
    assert named[0].difference.points == pytest.approx(100 * (rows[1] - rows[0]))
    assert named[0].p_corrected == named[0].difference.p_value


def test_p_values_are_corrected_for_the_number_of_comparisons() -> None:
    variants = made_variants()
    table = build_table(variants, blind=always("no", variants))
    smallest = min(table.comparisons, key=lambda c: c.difference.p_value)
    assert smallest.p_corrected == pytest.approx(3 * smallest.difference.p_value)


def test_names_that_are_no_variant_are_refused() -> None:
    variants = made_variants()
    with pytest.raises(SettingsError, match="comparisons 'trimodl'; did you mean 'trimodal'"):
        build_table(variants, comparisons=[("trimodl", "probe")])
    with pytest.raises(SettingsError, match="labels 'prob'"):
        build_table(variants, labels={"prob": "x"})
    with pytest.raises(SettingsError, match="comparisons 'blind'"):
        build_table(variants, comparisons=[("probe", "blind")])  # there is no baseline here
    with pytest.raises(RunError, match="no answer to 89 test questions"):
        build_table(variants, blind={"q0": "yes"})
    with pytest.raises(RunError, match="another name"):
        build_table({"blind": variants["probe"]})
    with pytest.raises(RunError, match="no run"):
        build_table({})


def test_seeds_of_different_size_are_refused() -> None:
    runs = tuple(made_run("probe", [1, 0], seed=s, trainable_params=10 + s) for s in range(2))
    with pytest.raises(RunError, match=r"\[10, 11\]"):
        build_table({"probe": runs})


def test_text_is_this(small: Table) -> None:
    assert render.to_text(small).splitlines() == [
        "variant         A-count  V-loc   Avg  params       h",
        "────────────────────────────────────────────────────",
        "blind baseline      0.0    0.0   0.0       –       –",
        "probe             100.0    0.0  50.0  1.23 k  0.0033",
        "tri_modal & co    100.0   50.0  75.0  2.34 M  0.0033",
    ]


MARKS = "Bold: the one highest of a column (one seed each: by how much chance moves it is not known); "


def test_markdown_is_this(small: Table) -> None:
    assert render.to_markdown(small).splitlines() == [
        "| variant | A-count | V-loc | Avg | trainable parameters | hours |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| blind baseline | 0.0 | 0.0 | 0.0 | – | – |",
        "| probe | 100.0 | 0.0 | 50.0 | 1.23 k | 0.0033 |",
        "| tri_modal & co | 100.0 | **50.0** | **75.0** | 2.34 M | 0.0033 |",
        "",
        f"{MARKS}italics: a highest that ties.",
    ]


def test_latex_is_this(small: Table) -> None:
    assert to_latex(small).splitlines() == [
        r"% Made by talik report. \input this file in a document with \usepackage{booktabs,graphicx}.",
        r"\begin{table*}[tbp]",
        r"\centering\small\setlength{\tabcolsep}{3.5pt}",
        r"\caption{Accuracy (\%) by question type on 4 test questions on 2 clips; one seed a variant; the blind "
        rf"baseline has none. {MARKS}underlined: a highest that ties.}}",
        r"\label{tab:talik-accuracy}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        r"\begin{tabular}{lrrrrrrr}",
        r"\toprule",
        r" & \multicolumn{2}{c}{Audio} & \multicolumn{2}{c}{Visual} &  &  &  \\",
        r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}",
        r"Variant & count & Avg & loc & Avg & Avg & Params & Hours \\",
        r"\midrule",
        r"blind baseline & 0.0 & 0.0 & 0.0 & 0.0 & 0.0 & -- & -- \\",
        r"\midrule",
        r"probe & 100.0 & 100.0 & 0.0 & 0.0 & 50.0 & 1.23 k & 0.0033 \\",
        r"tri\_modal \& co & 100.0 & 100.0 & \textbf{50.0} & \textbf{50.0} & \textbf{75.0} & 2.34 M & 0.0033 \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]


def test_bold_stands_only_where_one_maximum_does() -> None:
    def rows(**values: tuple[float, ...]) -> dict[str, str]:
        """The mark of each row's average, given accuracies of its seeds in percent."""
        made = {
            name: tuple(made_run(name, [k < share for k in range(100)], seed=s) for s, share in enumerate(shares))
            for name, shares in values.items()
        }
        table = build_table(made, comparisons=[])
        return {row.name: table.mark(row, "Avg") for row in table.rows}

    assert rows(a=(50,), b=(60,)) == {"a": "", "b": "best"}
    assert rows(a=(60,), b=(60,)) == {"a": "", "b": ""}  # all rows are equal
    assert rows(a=(60,), b=(60,), c=(50,)) == {"a": "shared", "b": "shared", "c": ""}
    assert rows(a=(50, 51, 52), b=(60, 61, 62)) == {"a": "", "b": "best"}
    assert rows(a=(50, 55, 60), b=(56, 61, 66)) == {"a": "", "b": "shared"}  # their intervals over seeds overlap


def test_plus_minus_is_said_to_be_what_it_is() -> None:
    variants = made_variants(3)
    interval, deviation = build_table(variants), build_table(variants, spread="sd")
    cell = deviation.rows[0].overall
    assert f"{cell.mean:.1f} ± {cell.sd:.1f}" in render.to_markdown(deviation)
    assert f"{cell.mean:.1f} ± {cell.half:.1f}" in render.to_markdown(interval)
    assert cell.sd == pytest.approx(cell.half / 4.302653 * 3**0.5, rel=1e-6)
    for printed in (render.to_text, render.to_markdown, to_latex):
        for table, said in ((interval, "half of the mean's 95"), (deviation, "the standard deviation over seeds")):
            assert said in printed(table)
    assert "±" not in render.to_text(build_table(made_variants(1)))


def test_columns_are_those_asked_for_in_their_order() -> None:
    config = {"train": {"lr": 0.01}, "insertion": {"visual": [3]}}
    table = build_table(made_variants(1, config=config), columns=["train.lr", "Avg", "V-loc", "params", "insertion"])
    head, _, first, *_ = render.to_text(table).splitlines()
    assert head.split() == ["variant", "train.lr", "Avg", "V-loc", "params", "insertion"]
    row = table.rows[0]
    assert first.split("  ")[0] == "probe"
    assert first.split()[1:4] == ["0.01", f"{row.overall.mean:.1f}", f"{row.by_type['V-loc'].mean:.1f}"]
    assert '{"visual": [3]}' in first
    assert "multicolumn" not in to_latex(table)
    with pytest.raises(SettingsError, match=r"unknown column 'train\.lrr'; did you mean 'train\.lr'"):
        render.to_text(build_table(made_variants(1, config=config), columns=["train.lrr"]))


def test_significant_is_what_holms_correction_leaves_so() -> None:
    d = Difference(points=1.0, low=0.1, high=1.9, p_value=0.03, level=0.95, covers_seeds=True)
    table = build_table(made_variants(1))
    (made,) = table.comparisons
    doubtful = replace(table, comparisons=(replace(made, difference=d, p_corrected=0.6, by_type={}),))
    assert d.excludes_zero
    cells = render.comparison_cells(doubtful)
    assert cells is not None
    assert cells.body[0][-2:] == ["0.600", "no"]
    clear = replace(doubtful, comparisons=(replace(made, difference=d, p_corrected=0.049, by_type={}),))
    assert render.comparison_cells(clear).body[0][-2:] == ["0.049", "yes"]


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_text_of_all_types_fits_160_columns(num_seeds: int) -> None:
    variants = made_variants(num_seeds, trainable_params=312_904)
    labels = {"trimodal": "trimodal without interaction"}
    text = render.to_text(build_table(variants, blind=always("no", variants), labels=labels))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 160
    starts = [line.startswith("trimodal without interaction") for line in lines]
    assert sum(starts) == 4  # the table, two comparisons, the differences by type
    assert ("±" in text) == (num_seeds > 1)


def test_labels_are_cut_short_before_columns_move_below() -> None:
    variants = made_variants(3, trainable_params=312_904)
    labels = {"blind": "blind: most frequent answer of each template", "trimodal": "trimodal without interaction"}
    table = build_table(variants, blind=always("no", variants), labels=labels, comparisons=[])
    lines = render.to_text(table).splitlines()
    assert len(lines) == 2 + 3 + 1
    assert lines[-1] == "± is half of the mean's 95 % t interval over seeds."
    assert max(map(len, lines)) <= 160
    assert lines[2].startswith("blind: most frequent answer")
    assert "…" in lines[2]


def test_columns_that_do_not_fit_go_on_below() -> None:
    types = [f"event number {i}" for i in range(28)]
    variants = {"v" * 200: (made_run("v" * 200, [True] * 56, types=types),)}
    lines = render.to_text(build_table(variants), width=100).splitlines()
    assert max(map(len, lines)) <= 100
    heads = [line.split("  ") for line in lines if line.startswith("variant")]
    assert len(heads) > 1
    shown = [cell.strip() for head in heads for cell in head if cell.strip().startswith("event")]
    assert shown == types
    assert any("…" in line for line in lines)


def test_latex_and_markdown_escape_what_would_break_them() -> None:
    name = "a|b_50%\n{x}~^\\$#"
    table = build_table({name: (made_run(name, [1, 0, 1, 1]),)}, comparisons=[(name, name)])
    latex = to_latex(table)
    assert r"a\textbar{}b\_50\%" in latex
    assert r"\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$\#" in latex
    assert "95 \\% interval" in latex
    lines = render.to_markdown(table).splitlines()
    rows = [line.count("|") - line.count(r"\|") for line in lines if line.startswith("|")]
    assert rows == [9] * 3 + [8] * 3


def test_latex_rows_have_as_many_cells_as_columns() -> None:
    variants = made_variants(3, types=(*TYPE_ORDER, "other"))
    latex = to_latex(build_table(variants, blind=always("no", variants)))
    for tabular in latex.split(r"\end{tabular}")[:-1]:
        columns = len(tabular.split(r"\begin{tabular}{")[1].split("}", 1)[0])
        rows = [line for line in tabular.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {row.count(" & ") + 1 for row in rows} == {columns}
    assert re.search(r"\d+\.\d\$_\{\\pm \d+\.\d\}\$", latex)


def test_csv_holds_full_precision_and_reads_back() -> None:
    variants = made_variants(3)
    table = build_table(variants, labels={"probe": 'a "probe", plain'})
    rows = list(csv.DictReader(io.StringIO(render.to_csv(table))))
    assert [row["label"] for row in rows] == ['a "probe", plain', "trimodal"]
    assert float(rows[1]["Avg"]) == table.rows[1].overall.mean
    assert float(rows[1]["Avg ± (half of 95 % t interval)"]) == table.rows[1].overall.half
    assert float(rows[0]["Audio"]) == table.rows[0].by_group["Audio"].mean
    assert rows[0]["trainable_params"] == "1234"
    compared = list(csv.DictReader(io.StringIO(render.comparisons_to_csv(table))))
    assert float(compared[0]["low"]) == table.comparisons[0].difference.low
    assert compared[0]["excludes_zero"] == "true"
    assert compared[0]["covers_seeds"] == "true"


def test_an_interval_on_one_side_of_zero_says_yes() -> None:
    variants = made_variants()
    better, equal = build_table(variants, comparisons=[("trimodal", "probe"), ("probe", "probe")]).comparisons
    assert [c.difference.excludes_zero for c in (better, equal)] == [True, False]
    assert formats.format_interval(equal.difference) == "[0.0, 0.0]"
    assert formats.format_interval(better.difference).startswith("[+")
    assert formats.format_points(-0.449) == "−0.4"
    assert formats.format_points(-0.04) == "0.0"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (48_512, "48.5 k"),
        (312_904, "313 k"),
        (999_999, "1.00 M"),
        (9_999_999, "10.0 M"),
        (33_000_000, "33.0 M"),
        (7_241_732_096, "7.24 G"),
    ],
)
def test_counts_have_three_digits(number: int | None, text: str) -> None:
    assert readable_count(number) == text


def test_times_and_p_values_are_short() -> None:
    hours = [formats.format_hours(s) for s in (None, 0.04, 79.2, 5400.0, 36_000.0, 1_234_567.0)]
    assert hours == ["–", "<0.0001", "0.022", "1.5", "10", "343"]
    times = [readable_seconds(s) for s in (0.04, 9.94, 89.0, 90.0, 5399.0, 5400.0, 1_234_567.0)]
    assert times == ["0.04 s", "9.94 s", "89 s", "1.5 min", "90 min", "1.5 h", "343 h"]
    assert [formats.format_p(p) for p in (0.0004, 0.001, 0.25, 1.0)] == ["<0.001", "0.001", "0.250", "1.000"]


def test_hours_and_flops_say_what_they_are_of() -> None:
    variants = made_variants(1, device="cpu", flops=12_345_678, flops_trained=1000)
    markdown = render.to_markdown(build_table(variants))
    assert "| FLOPs a question | CPU hours |" in markdown
    assert "| 12.3 M | 0.0033 |" in markdown
    variants["gpu"] = (made_run("gpu", [True] * 90, device="cuda"),)
    mixed = render.to_text(build_table(variants)).splitlines()
    assert mixed[0].endswith("FLOPs           h")
    assert [line.split("  ")[-1] for line in mixed[2:5]] == ["0.0033 CPU", "0.0033 CPU", "0.0033 GPU"]
    (row,) = (r for r in csv.DictReader(io.StringIO(render.to_csv(build_table(variants)))) if r["variant"] == "probe")
    assert (row["device"], row["flops"], row["flops_trained"]) == ("cpu", "12345678", "1000")


def test_a_named_baseline_is_what_all_others_are_compared_with_by_type_too() -> None:
    variants = made_variants(2) | {"other": tuple(made_run("other", [True] * 90, seed=s) for s in range(2))}
    table = build_table(variants, blind=always("no", variants), baseline="trimodal")
    assert [(c.a, c.b) for c in table.comparisons if c.by_type] == [("probe", "trimodal"), ("other", "trimodal")]
    probe = next(c for c in table.comparisons if (c.a, c.b) == ("probe", "trimodal"))
    assert tuple(probe.by_type) == TYPE_ORDER
    by_name = {row.name: row for row in table.rows}
    for kind, found in probe.by_type.items():
        means = [by_name[name].by_type[kind].mean for name in ("probe", "trimodal")]
        assert found.difference.points == pytest.approx(means[0] - means[1])
    every = [found for c in table.comparisons for found in c.by_type.values()]
    smallest = min(every, key=lambda found: found.difference.p_value)
    assert smallest.p_corrected == pytest.approx(min(1, 18 * smallest.difference.p_value))  # two rows of nine types
    with pytest.raises(SettingsError, match="baseline 'trimodl'; did you mean 'trimodal'"):
        build_table(variants, baseline="trimodl")


def test_differences_by_type_are_starred_where_they_are_more_than_chance() -> None:
    rng = np.random.default_rng(2)
    right = rng.random(600) < 0.5
    better = right | ((np.arange(600) % 2 == 0) & (rng.random(600) < 0.8))  # of the first type alone
    runs = {n: (made_run(n, list(r), types=("A-count", "V-loc")),) for n, r in (("a|b", right), ("better", better))}
    table = build_table(runs, baseline="a|b", resamples=2000)
    deltas = render.delta_cells(table)
    assert deltas is not None
    ((label, first, second, average),) = deltas.body
    assert (label, second) == ("better", "0.0")
    assert first.startswith("+")
    assert first.endswith("*")
    assert average.endswith("*")
    assert deltas.head == ["against a|b", "A-count", "V-loc", "Avg"]
    assert render.DELTA_NOTE in render.to_text(table)
    assert r"against a\|b" in render.to_markdown(table)
    assert f"better & {first} & 0.0 & {average}" in to_latex(table)
    lines = list(csv.DictReader(io.StringIO(render.comparisons_to_csv(table))))
    assert [line["type"] for line in lines] == ["Avg", "A-count", "V-loc"]
    assert float(lines[1]["difference"]) == table.comparisons[0].by_type["A-count"].difference.points


def test_notes_are_worked_out_from_the_runs() -> None:
    variants = made_variants(1)
    table = build_table(variants, blind=always("no", variants))
    notes = make_notes(table, variants)
    widths = sorted(c.difference.half_width for c in table.comparisons)
    assert notes[0].startswith("A taste: one seed, 90 test questions on 45 clips.")
    assert f"below {widths[0]:.1f} to {widths[-1]:.1f} points" in notes[0]
    assert "0.0 %" in notes[1]
    assert len(notes) == 2
    several = made_variants(3)
    assert make_notes(build_table(several), several)[0].startswith("3 seeds, 90 test questions")


def test_a_run_made_before_there_was_a_setting_was_trained_alike() -> None:
    trains = {"older": {"epochs": 3}, "newer": {"epochs": 3, "patience": 0}, "patient": {"epochs": 3, "patience": 2}}
    runs = {name: (made_run(name, [True] * 20, config={"train": train}),) for name, train in trains.items()}
    notes = " ".join(make_notes(build_table(runs), runs))
    assert "they differ in patience (older 0, newer 0, patient 2)." in notes
    del runs["patient"]
    assert "not trained alike" not in " ".join(make_notes(build_table(runs), runs))


def test_a_variant_that_does_not_sit_where_its_paper_has_it_is_told() -> None:
    lavish = {"config": {"adapter": {"kind": "lavish"}}, "num_units": 12}
    variants = {
        "once": (made_run("once", [True] * 20, insertions=1, **lavish),),
        "all": (made_run("all", [True] * 20, insertions=12, **lavish),),
        "own": (made_run("own", [True] * 20, insertions=1, num_units=12, config={"adapter": {"kind": "trimodal"}}),),
    }
    assert make_notes(build_table(variants), variants)[-1] == (
        "Not where their papers have them: once sits at 1 place of 12, LAVISH as published at every block."
    )
    del variants["once"]
    assert "papers" not in " ".join(make_notes(build_table(variants), variants))


def test_a_comparison_the_other_way_round_is_a_delta_to_the_baseline_too() -> None:
    variants = made_variants(2)
    pairs = [("trimodal", "probe"), ("trimodal", "blind")]
    one = build_table(variants, blind=always("no", variants), comparisons=pairs, baseline="trimodal")
    (delta,) = one.deltas()
    assert (delta.a, delta.b) == ("probe", "trimodal")
    assert delta.difference.points == -one.comparisons[0].difference.points
    assert (delta.difference.low, delta.difference.high) == tuple(
        -end for end in (one.comparisons[0].difference.high, one.comparisons[0].difference.low)
    )
    assert set(delta.by_type) == set(TYPE_ORDER)
    deltas = render.delta_cells(one)
    assert deltas is not None
    ((label, *_, average),) = deltas.body
    assert label == "probe"
    assert average.startswith("−")
    assert delta.reversed() == one.comparisons[0]


def test_notes_tell_what_makes_a_row_doubtful() -> None:
    rng = np.random.default_rng(1)
    variants = {
        "probe": (made_run("probe", list(rng.random(20) < 0.5), config={"train": {"lr": 0.1, "epochs": 3}}),),
        "two": tuple(
            made_run("two", list(rng.random(20) < 0.5), seed=s, config={"train": {"lr": 0.2, "epochs": 3}})
            for s in range(2)
        ),
    }
    table = build_table(variants, blind=always("yes", variants), labels={"two": "2nd"})
    notes = " ".join(make_notes(table, variants))
    assert "1 to 2 seeds" in notes
    assert "Rows differ in seeds: probe 1, 2nd 2." in notes
    assert "Not shown to be better than the blind baseline: probe, 2nd." in notes
    assert "Only 10 test clips" in notes
    assert "they differ in lr (probe 0.1, 2nd 0.2)." in notes
    assert "epochs" not in notes
