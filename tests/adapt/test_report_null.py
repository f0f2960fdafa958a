"""Reports on variants that differ only by name and seed: how often the whole report calls them different."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from talik.adapt.report import write
from talik.adapt.scoring.metrics import TYPE_ORDER, score

CLIPS, A_CLIP, SEEDS = 50, 5, 3


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures play no part in what is counted here, and take most of a report's time."""
    monkeypatch.setattr(write, "make_figures", lambda *_: ())


def write_runs(root: Path, rng: np.random.Generator) -> None:
    """Two variants of three seeds on 50 clips; questions differ in difficulty, seeds a little, answers by chance."""
    num = CLIPS * A_CLIP
    difficulty = rng.normal(0.3, 1.5, num) + rng.normal(0, 0.7, CLIPS).repeat(A_CLIP)
    for variant in ("one", "other"):
        for seed in range(SEEDS):
            right = rng.random(num) < 1 / (1 + np.exp(-difficulty - rng.normal(0, 0.1)))
            lines = [
                {
                    "question_id": f"q{i}",
                    "clip_id": f"c{i // A_CLIP}",
                    "type": TYPE_ORDER[i % len(TYPE_ORDER)],
                    "template": "t",
                    "question": "Is it?",
                    "answer": "yes",
                    "prediction": "yes" if ok else "no",
                    "correct": bool(ok),
                }
                for i, ok in enumerate(right)
            ]
            folder = root / variant / f"seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            config = {"experiment": "exp", "variant": variant, "seed": seed}
            scores = score([x["type"] for x in lines], [bool(x["correct"]) for x in lines]).to_json()
            (folder / "config.toml").write_text(tomli_w.dumps(config))
            (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
            (folder / "metrics.jsonl").write_text(json.dumps({"event": "done", "best_epoch": 1, "seconds": 1.0}))
            (folder / "result.json").write_text(json.dumps({"split": "test", **scores, "trainable_params": 1}))


def called(folder: Path, num: int) -> tuple[int, int, int]:
    """How many of `num` reports call the two different: by the interval, by p (Holm), and in some question type."""
    rng, found = np.random.default_rng(31), []
    for _ in range(num):
        write_runs(folder / "runs" / "exp", rng)
        files = write.report([folder / "runs"], out=folder / "out", baseline="one", resamples=1000)
        (c,) = json.loads(files.json.read_text())["comparisons"]
        by_type = any(x["p_holm"] < 0.05 for x in c["by_type"].values())
        found.append((c["excludes_zero"], c["p_holm"] < 0.05, by_type))
    by_interval, by_p, by_type = (sum(column) for column in zip(*found, strict=True))
    return by_interval, by_p, by_type


def test_twenty_reports_call_two_names_for_one_variant_different_as_seldom_as_said(tmp_path: Path) -> None:
    assert max(called(tmp_path, 20)) <= 4  # 5 % of 20 is 1; more than 4 in one case of 400


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_reports_call_two_names_for_one_variant_different_as_seldom_as_said(tmp_path: Path) -> None:
    assert max(called(tmp_path, 200)) <= 17  # 5 % of 200, and the 97th percentile of its own chance
