"""The evaluation set: true by construction, decided where its manifest says, and without a shortcut."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import pytest

from talik.demo.evaluation_scene import NUM_SEGMENTS, PLOTS, SEGMENT_SECONDS, draw_scene, make_evaluation_scene
from talik.demo.evaluation_templates import WHICH, family_candidates_of
from talik.demo.make import make_demo
from talik.demo.question_templates import Candidate
from talik.demo.questions import make_records, make_scenes, row_of, rows_of
from talik.demo.scene import SPLITS, Player, Scene, make_scene, scene_from_json, scene_to_json
from talik.demo.video_file import frames_of
from talik.errors import SettingsError
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.settings import DataSettings

FAMILY_ROWS = {"AV-temp, long", "AV-temp, short", "AV-loc, short", "AV-comp, short"}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return make_scenes(5, 200, "evaluation")


@pytest.fixture(scope="module")
def records(scenes: list[Scene]) -> dict[str, list[dict[str, Any]]]:
    return make_records(scenes, "evaluation")


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Candidate]]:
    """Every question of the two families about 300 clips of each plot that has some."""
    scenes = [draw_scene(Random(f"{plot} {i}"), plot) for plot in PLOTS if plot != "open" for i in range(300)]
    return [(scene, candidate) for scene in scenes for candidate in family_candidates_of(scene)]


def plays(player: Player, segment: int) -> bool:
    return player.plays_at((segment + 0.5) * SEGMENT_SECONDS)


def test_clips_ask_about_five_questions_each_of_all_types_and_families(
    records: dict[str, list[dict[str, Any]]],
) -> None:
    everything = [record for split in SPLITS for record in records[split]]
    assert 4.8 <= len(everything) / 200 <= 5.0
    assert len(rows_of(records)) == 9 + len(FAMILY_ROWS)
    counts = Counter(map(row_of, everything))
    assert sum(counts[row] for row in FAMILY_ROWS) > 0.25 * len(everything)
    assert counts["AV-temp, long"] > 80
    for record in everything:
        assert bool(record["deciding_segments"]) == (record["family"] != "basic")
        assert all(0 <= segment < NUM_SEGMENTS for segment in record["deciding_segments"])
        if record["family"] == "long":
            assert 2 <= len(record["deciding_segments"]) <= 3


def test_what_happens_changes_between_segments_and_who_is_away_is_silent(scenes: list[Scene]) -> None:
    left = 0
    for scene in scenes:
        assert scene.seconds == NUM_SEGMENTS * SEGMENT_SECONDS == 24.0
        assert any(player.sounds for player in scene.players)
        for player in scene.players:
            for start, end in (*player.intervals, *player.away):
                assert start % SEGMENT_SECONDS == end % SEGMENT_SECONDS == 0.0
            assert not any(plays(player, s) and not player.shown_at((s + 0.5) * SEGMENT_SECONDS) for s in range(16)
                           if player.seen)  # fmt: skip
            left += bool(player.away)
    assert left > 30


def test_answers_of_families_follow_from_the_segments_that_decide(asked: list[tuple[Scene, Candidate]]) -> None:
    """Read off the deciding segments anew, and nothing else of the clip."""
    checked: Counter[str] = Counter()
    for scene, question in asked:
        if question.type == "AV-comp":
            continue
        if question.template == WHICH:
            kind, when = question.values
            cue = when.split()[-2] if when.endswith("plays") else when.split()[-1]
            found = {p.seat for p in scene.players if p.kind == kind and any(plays(p, s) for s in question.segments)}
        else:
            seat, kind = question.values[-1].split()
            (solo,) = [p for p in scene.players if p.seat == seat and p.kind == kind]
            assert any(plays(solo, s) for s in question.segments)
            cue = question.answer
            found = {p.kind for p in scene.players if p.role.startswith("cue") and plays(p, question.segments[0])}
            found |= {p.kind for p in scene.players if p.role.startswith("cue") and plays(p, question.segments[-1])}
        (heard,) = [p for p in scene.players if p.kind == cue]
        assert not heard.seen
        assert any(plays(heard, s) for s in question.segments)
        assert found == {question.answer}
        checked[question.row] += 1
    assert set(checked) == FAMILY_ROWS - {"AV-comp, short"}
    assert min(checked.values()) > 200


@pytest.mark.parametrize(
    "clue",
    [
        lambda scene, q: tuple(sorted(str(p.seat) for p in scene.players if p.role.startswith("alike"))),
        lambda scene, q: q.values[0],
        lambda scene, q: q.segments[0],
        lambda scene, q: q.segments[-1],
        lambda scene, q: next(p.seat for p in sorted(scene.players, key=first_segment) if p.role.startswith("alike")),
        lambda scene, q: max((p for p in scene.players if p.role.startswith("alike")), key=lambda p: p.level_db).seat,
    ],
    ids=["seats", "kind", "first deciding segment", "last deciding segment", "who begins", "who is louder"],
)
def test_no_single_clue_tells_where(
    asked: list[tuple[Scene, Candidate]], clue: Callable[[Scene, Candidate], object]
) -> None:
    """A table from one clue of sight, sound or time to the seat is right about as often as one of two seats is."""
    for family in ("long", "short"):
        pairs = [(clue(s, q), q.answer) for s, q in asked if q.template == WHICH and q.family == family]
        table: dict[object, Counter[str]] = defaultdict(Counter)
        fit, tried = (pairs[half::4] + pairs[half + 1 :: 4] for half in (0, 2))  # a clip has two
        for found, answer in fit:
            table[str(found)][answer] += 1
        right = [table[str(found)].most_common(1)[0][0] == answer for found, answer in tried if table[str(found)]]
        assert len(right) > 200
        assert np.mean(right) < 0.6


def first_segment(player: Player) -> float:
    return player.intervals[0][0] if player.intervals else np.inf


def test_larger_sets_begin_with_the_smaller_ones(scenes: list[Scene], records: dict[str, list[dict[str, Any]]]) -> None:
    smaller = make_records(scenes[:37], "evaluation")
    for split in SPLITS:
        assert smaller[split] == records[split][: len(smaller[split])]
    assert make_evaluation_scene(5, 36) == scenes[36]
    assert scene_from_json(json.loads(json.dumps(scene_to_json(scenes[36])))) == scenes[36]
    assert make_evaluation_scene(6, 36) != scenes[36]


def test_frames_show_who_plays_and_not_who_is_away() -> None:
    scene = next(s for i in range(99) if (s := draw_scene(Random(i), "together")) and any(p.away for p in s.players))
    (guest,) = [player for player in scene.players if player.away]
    frames = frames_of(scene)
    assert frames.shape == (96, 240, 320, 3)
    at = {int(scene.frames_per_second * guest.away[0][0]), int(scene.frames_per_second * guest.intervals[0][0])}
    away, playing = (frames[i, guest.y - 45 : guest.y + 30, guest.x - 35 : guest.x + 35].astype(int) for i in sorted(
        at, key=lambda i: i != int(scene.frames_per_second * guest.away[0][0])))  # fmt: skip
    assert np.abs(away - playing).mean() > 20


def test_the_set_is_made_with_its_manifest(tmp_path: Path) -> None:
    made = make_demo(tmp_path, num_clips=4, seed=0, kind="evaluation", workers=1, progress=False)
    assert made.num_made == 4
    for path in (tmp_path / "videos").iterdir():
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            for stream in (video, audio):
                assert float(stream.duration * stream.time_base) == 24.0
            assert audio.layout.name == "mono"
        assert path.stat().st_size < 600_000
    by = {"type": "AV-temp, long", "family": "long"}
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for column in ("type_and_family", "family", "type"):
        settings = DataSettings(
            dataset="manifest", root=str(tmp_path), segments=16, type_column=column,
            columns=("family", "type_and_family", "deciding_segments"),
        )  # fmt: skip
        manifest = load_manifest(settings, base=tmp_path)
        assert Counter(q.type for q in manifest.questions) == Counter(line[column] for line in lines)
    assert any(line["type_and_family"] == by["type"] and line["family"] == by["family"] for line in lines)
    assert all("<" not in line["question"] for line in lines)
    demo = load_manifest(DataSettings(dataset="demo", root=str(tmp_path)), base=tmp_path)
    assert [q.text for q in demo.questions] == [line["question"] for line in lines]
    with pytest.raises(SettingsError, match="holds the evaluation set of seed 0, version 1; expected the demo set of"):
        make_demo(tmp_path, num_clips=4, seed=0, progress=False)
    with pytest.raises(SettingsError, match="unknown kind of set 'evaluate'; did you mean 'evaluation'"):
        make_demo(tmp_path, num_clips=4, kind="evaluate", progress=False)  # type: ignore[arg-type]


def test_scenes_written_before_there_was_a_second_set_are_read() -> None:
    values = scene_to_json(make_scene(3, 1))
    for key in ("seconds", "frames_per_second", "plot"):
        del values[key]
    for player in values["players"]:
        del player["away"], player["role"]
    assert scene_from_json(values) == make_scene(3, 1)
