"""What the evaluation set asks for: the reader of everything is right, and each weaker one where it can be."""

from __future__ import annotations

import json
from collections import defaultdict
from random import Random

import numpy as np
import pytest

from talik.demo.description import describe
from talik.demo.description_reader import read_answer
from talik.demo.evaluation_scene import draw_scene
from talik.demo.evaluation_templates import LOUDER, WHICH, family_candidates_of
from talik.demo.oracle_table import READERS, oracle_table
from talik.demo.questions import make_records, make_scenes
from talik.demo.weaker_readers import answer_without
from talik.errors import SettingsError

NUM_CLIPS, NUM_IMAGINED = 50, 30


def test_the_oracle_answers_every_question() -> None:
    """Read from segments, by code of its own; over all splits, every template."""
    scenes = make_scenes(7, 160, "evaluation")
    clips = {scene.video_id: describe(scene) for scene in scenes}
    right: dict[str, list[bool]] = defaultdict(list)
    for records in make_records(scenes, "evaluation").values():
        for record in records:
            values = json.loads(record["templ_values"])
            answer = read_answer(clips[record["video_id"]], record["question_content"], values)
            right[record["question_content"]].append(answer == record["anser"])
    assert len(right) == 32
    assert min(np.mean(found) for found in right.values()) >= 0.98


def right_without(lack: str, plot: str, template: str) -> float:
    """The share of rightly answered questions of one template about clips of one plot."""
    hits = []
    for number in range(NUM_CLIPS):
        scene = draw_scene(Random(f"{plot} {number}"), plot)
        questions = [q for q in family_candidates_of(scene) if q.template == template]
        if questions:
            rng = Random(number)
            question = rng.choice(questions)
            answer = answer_without(
                lack, describe(scene), template, question.values, rng=rng, num_imagined=NUM_IMAGINED
            )
            hits.append(answer == question.answer)
    assert len(hits) >= NUM_CLIPS // 2
    return float(np.mean(hits))


@pytest.mark.parametrize("plot", ["together", "right after"])
def test_short_questions_need_binding_sound_and_sight(plot: str) -> None:
    for template in (WHICH, LOUDER):
        assert 0.25 < right_without("binding within a segment", plot, template) < 0.7
        assert right_without("sight", plot, template) < 0.7
        assert right_without("sound", plot, template) < 0.7
    whole = right_without("order of time", plot, WHICH)
    assert (whole == 1.0) if plot == "together" else (whole < 0.7)


@pytest.mark.parametrize("plot", ["solo then cue", "cue then solo"])
def test_long_questions_need_more_than_a_segment_and_no_binding_within_one(plot: str) -> None:
    assert right_without("binding within a segment", plot, WHICH) > 0.95
    for lack in ("all but one segment", "order of time", "sound", "sight"):
        assert right_without(lack, plot, WHICH) < 0.75, lack


def test_the_table_has_every_reader_and_says_the_same_again() -> None:
    table = oracle_table(num_clips=100, num_imagined=6)
    assert table.text() == oracle_table(num_clips=100, num_imagined=6).text()
    assert table.num_questions["all"] == sum(n for row, n in table.num_questions.items() if row != "all") > 100
    assert set(table.right["all"]) == set(READERS)
    assert table.right["all"]["nothing"] >= 0.98
    assert max(table.right["all"][reader] for reader in READERS if reader != "nothing") < 0.95
    assert table.right["all"]["blind"] < 0.45
    assert table.text().splitlines()[-1].startswith("| all | ")
    with pytest.raises(SettingsError, match="clips: found 99, expected 100 or more"):
        oracle_table(num_clips=99)
