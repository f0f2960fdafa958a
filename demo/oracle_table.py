"""The table of the evaluation set's oracles: how often the reader that perceives all is right, and each weaker one."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ..errors import SettingsError
from ..progress import progress_bar
from .description import Description, describe
from .description_reader import read_answer
from .evaluation_templates import BEFORE_AFTER, WHICH
from .questions import Record, make_records, make_scenes, row_of, rows_of, template_of
from .weaker_readers import LACKS, answer_without

READERS = ("nothing", *LACKS, "blind")
"""What the readers lack, in the order of the table; "blind" gives each template's most frequent training answer."""
_FEWEST = 100


@dataclass(frozen=True, kw_only=True)
class OracleTable:
    """Right answers of each reader.

    Attributes:
        num_questions: of each row: the types of basic questions, each kind of question of the two families, and "all".
        right: by row and reader, a name of `READERS`: the fraction of its questions that are answered rightly.
    """

    num_questions: dict[str, int]
    right: dict[str, dict[str, float]]

    def text(self) -> str:
        """Return the table as Markdown, in per cent."""
        lines = [f"| lacking: | questions | {' | '.join(READERS)} |", f"|---|{'---:|' * (len(READERS) + 1)}"]
        for row, num in self.num_questions.items():
            cells = " | ".join(f"{100 * self.right[row][reader]:.0f}" for reader in READERS)
            lines.append(f"| {row} | {num} | {cells} |")
        return "\n".join(lines)


def oracle_table(
    *, num_clips: int = 1000, seed: int = 0, num_imagined: int = 100, progress: bool = False
) -> OracleTable:
    """Ask every reader the questions of the evaluation set's test split; no clip is rendered.

    Args:
        num_clips: of the set, all splits; 100 or more, so that every type is asked.
        seed: of the set.
        num_imagined: how many completions a weaker reader imagines for each question.
        progress: whether to show a bar on the error stream.

    Raises:
        SettingsError: too few clips.
    """
    if num_clips < _FEWEST:
        raise SettingsError(f"clips: found {num_clips}, expected {_FEWEST} or more (every type needs some questions)")
    scenes = make_scenes(seed, num_clips, "evaluation")
    records = make_records(scenes, "evaluation")
    described = {scene.video_id: describe(scene) for scene in scenes}
    blind = _most_frequent(records["train"])
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    with progress_bar(total=len(records["test"]), desc="questions", unit="question", disable=not progress) as bar:
        for record in records["test"]:
            found = _answers(record, described[record["video_id"]], blind.get(template_of(record), ""), num_imagined)
            for reader, answer in found.items():
                for row in (_row(record), "all"):
                    hits[row][reader].append(answer == record["anser"])
            bar.update()
    order = [*rows_of(records), "all"]
    rows = sorted(hits, key=lambda row: (order.index(row.partition(":")[0]), row))
    return OracleTable(
        num_questions={row: len(hits[row]["nothing"]) for row in rows},
        right={row: {reader: sum(h) / len(h) for reader, h in hits[row].items()} for row in rows},
    )


def _answers(record: Record, clip: Description, blind: str, num_imagined: int) -> dict[str, str | None]:
    """Return every reader's answer; the blind one's where a reader has none."""
    template, values = record["question_content"], json.loads(record["templ_values"])
    found = {"nothing": read_answer(clip, template, values), "blind": blind}
    for lack in LACKS:
        rng = Random(f"talik reader {record['question_id']} {lack}")
        answer = answer_without(lack, clip, template, values, rng=rng, num_imagined=num_imagined)
        found[lack] = blind if answer is None else answer
    return found


def _most_frequent(records: Sequence[Record]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[template_of(record)][record["anser"]] += 1
    return {template: max(sorted(found), key=found.__getitem__) for template, found in counts.items()}


def _row(record: Record) -> str:
    """Return the type; for the two families the type, the family and what is asked."""
    row = row_of(record)
    if record["family"] == "basic":
        return row
    values = json.loads(record["templ_values"])
    asked = {WHICH: "which of two", BEFORE_AFTER: "which cue"}.get(record["question_content"])
    if asked is None:
        return f"{row}: {'which cue, at the same time' if row.startswith('AV-loc') else 'compare two alike'}"
    when = " ".join(values[1 if record["question_content"] == WHICH else 0].split()[:2])
    when = {"when the": "when a cue plays", "first after": "first after, last before"}.get(when, when)
    return f"{row}: {asked}, {'first after, last before' if when == 'last before' else when}"
