"""Build the report's two tables from runs: accuracy by question type, and the comparisons between variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ..scoring.metrics import ACCURACY, GROUPS, Metric
from .statistics import Difference, MeanInterval, Spread

Mark = Literal["best", "shared", ""]

BLIND = "blind"
BLIND_LABEL = "blind baseline"
AVERAGE = "Avg"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the accuracy table: accuracies in percent, averaged over seeds.

    Attributes:
        by_type, by_group, overall: of the questions of each type, of each group of types, and of all.
        seconds: of training and evaluation, mean over seeds.
        flops: operations per question above the states that the variant starts from. flops_trained: those of adapters
            and head alone. None where the runs do not record them.
        device: "cpu" or "cuda"; None where the runs do not record it or differ.
        validation: accuracy on the validation split of the epochs that the runs are scored with, percent, mean over
            seeds; None where it was not recorded, or the table itself is of validation.
        macro_f1: mean over the true answers, or labels, of the F1 of each, percent, mean over seeds; of all rows.
        micro_f1: of multi-label answers F1 of all decisions together, percent, mean over seeds.
        settings: of its runs, by dotted name ("train.lr").
    """

    name: str
    label: str
    num_seeds: int
    by_type: Mapping[str, MeanInterval]
    by_group: Mapping[str, MeanInterval]
    overall: MeanInterval
    trainable_params: int | None = None
    seconds: float | None = None
    flops: int | None = None
    flops_trained: int | None = None
    device: str | None = None
    validation: float | None = None
    macro_f1: float | None = None
    micro_f1: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """False for the blind baseline."""
        return self.name != BLIND

    def cell(self, column: str) -> MeanInterval:
        """Look up the accuracy of a type, a group ("Audio", …) or of all ("Avg")."""
        if column == AVERAGE:
            return self.overall
        return self.by_type[column] if column in self.by_type else self.by_group[column]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Accuracy of variant `a` minus that of variant `b`, with a p-value corrected for multiple comparisons.

    Attributes:
        a, b: names of the variants. a_label, b_label: their printed names.
        p_corrected: the p-value after Holm, over all comparisons of the table.
        by_type: the same for the questions of each type, where one variant is the table's baseline and the other was
            trained; corrected over all types of all such comparisons.
    """

    a: str
    b: str
    a_label: str
    b_label: str
    difference: Difference
    p_corrected: float
    by_type: Mapping[str, Comparison] = field(default_factory=dict)

    def reversed(self) -> Comparison:
        """Compare `b` with `a`."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            a_label=self.b_label,
            b_label=self.a_label,
            difference=self.difference.reversed(),
            by_type={name: comparison.reversed() for name, comparison in self.by_type.items()},
        )

    def values(self) -> dict[str, float | bool]:
        """List the numbers: points, interval, level and p-values, parts by type left out."""
        found = {**asdict(self.difference), "p_holm": self.p_corrected}
        return {**found, "excludes_zero": self.difference.excludes_zero, "significant": self.significant}

    @property
    def significant(self) -> bool:
        """Whether the p-value that Holm's correction leaves is below 1 - level, 0.05."""
        return self.p_corrected < 1 - self.difference.level


@dataclass(frozen=True, kw_only=True)
class Table:
    """Accuracies of all variants and the comparisons between them.

    Attributes:
        types: question types, in the order of their columns.
        num_by_type: test questions of each type.
        rows: the blind baseline first, if the table has one, then the variants.
        comparisons: in the requested order.
        baseline: the variant that the others are compared with by question type.
        spread: what stands after ± in print: half of the t interval over seeds, or the standard deviation.
        columns: names of the printed columns, in order; () for the default ones.
        resamples: of the bootstrap behind the comparisons.
        metric: what the table's percentages are: accuracy, or the mAP of multi-label answers, and so is all that is
            called accuracy here.
    """

    types: tuple[str, ...]
    num_by_type: Mapping[str, int]
    num_clips: int
    split: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    baseline: str | None = None
    spread: Spread = "interval"
    columns: tuple[str, ...] = ()
    resamples: int = 10_000
    metric: Metric = ACCURACY

    @property
    def num_questions(self) -> int:
        """Number of all test questions."""
        return sum(self.num_by_type.values())

    @property
    def trained(self) -> list[Row]:
        """All rows but the blind baseline's."""
        return [row for row in self.rows if row.trained]

    @property
    def labels(self) -> dict[str, str]:
        """Printed name of each row by its name."""
        return {row.name: row.label for row in self.rows}

    def deltas(self) -> tuple[Comparison, ...]:
        """Select the comparisons that were made by type, each as another row minus the baseline."""
        made = (c for c in self.comparisons if c.by_type)
        return tuple(c if c.b == self.baseline else c.reversed() for c in made)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Sort the types into their groups ("Audio", …); types of no group stand under ""."""
        group_of = {t: name for name, members in GROUPS.items() for t in members}
        groups = {name: tuple(t for t in self.types if group_of.get(t, "") == name) for name in (*GROUPS, "")}
        return {name: members for name, members in groups.items() if members}

    def mark(self, row: Row, column: str) -> Mark:
        """Tell how a row's mean stands among the trained rows of a column, as printed.

        Returns:
            "best" for the one highest mean, if its interval over seeds overlaps no other row's; "shared" for a highest
            mean that others reach or whose interval overlaps; "" for all others, and where all rows are equal.
        """
        own, printed = row.cell(column), {r.name: f"{r.cell(column).mean:.1f}" for r in self.trained}
        highest = max(printed.values(), key=float)
        if printed.get(row.name) != highest or len(set(printed.values())) == 1:
            return ""
        others = [r.cell(column) for r in self.trained if r is not row]
        overlap = any(o.mean + (o.half or 0) >= own.mean - (own.half or 0) for o in others if own.half or o.half)
        return "shared" if overlap or [*printed.values()].count(highest) > 1 else "best"

    def spread_note(self) -> str:
        """Say what stands after ±; "" where every row has one seed."""
        if all(row.num_seeds == 1 for row in self.rows):
            return ""
        what = "the standard deviation" if self.spread == "sd" else "half of the mean's 95 % t interval"
        return f"± is {what} over seeds."

    def mark_note(self) -> str:
        """Say what the marks of `mark` mean."""
        several = any(row.num_seeds > 1 for row in self.trained)
        overlap = ", with an interval over seeds that overlaps no other's" * several
        shared = "ties or overlaps" if several else "ties"
        chance = "" if several else " (one seed each: by how much chance moves it is not known)"
        return f"Bold: the one highest of a column{overlap}{chance}; underlined: a highest that {shared}."
