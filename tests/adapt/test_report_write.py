"""The report as a whole: every file, and a page that is whole, safe and needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import textwrap
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import tomli_w
from PIL import Image

from talik.adapt.report.build_table import build_table
from talik.adapt.report.dataset import DataSet, ShownClip, data_uri, pick_clips, show_clip
from talik.adapt.report.page_data import page_data
from talik.adapt.report.read_runs import read_run
from talik.adapt.report.write import report
from talik.adapt.scoring.metrics import TYPE_ORDER, score
from talik.errors import MediaError, RunError, SettingsError, TalikError
from talik.extract.datasets.types import Clip

from .made_runs import made_runs

EVIL = """<script>alert("1")</script>&'x"""
VOID = {"meta", "img", "input", "line", "circle", "rect", "polyline", "image"}
PNG = "data:image/png;base64," + base64.b64encode(b"not really").decode()


class Page(HTMLParser):
    """Checks that tags close in order, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.text += data

    def count(self, tag: str) -> int:
        """How often a tag begins."""
        return sum(name == tag for name, _ in self.tags)


def make_runs(root: Path, rates: dict[str, float], *, num_seeds: int = 1, evil: str = "") -> dict[str, str]:
    """Write runs of 60 questions on 20 clips; `evil` goes into every text. Returns a baseline's answers."""
    rng = np.random.default_rng(0)
    for variant, rate in rates.items():
        for seed in range(num_seeds):
            folder = root / "exp" / f"v{list(rates).index(variant)}" / f"seed{seed}"
            folder.mkdir(parents=True)
            lines: list[dict[str, Any]] = []
            for i in range(60):
                right = bool(rng.random() < rate)
                lines.append(
                    {
                        "question_id": f"q{i}",
                        "clip_id": f"c{i // 3}{evil}",
                        "type": TYPE_ORDER[i % 9],
                        "template": "Is <Object> there?",
                        "question": f"Is the flute there?{evil}",
                        "answer": f"yes{evil}",
                        "prediction": f"yes{evil}" if right else f"no{evil}",
                        "probability": round(float(rng.random()), 4),
                        "correct": right,
                    }
                )
            epochs = [
                {"event": "epoch", "epoch": e, "step": e, "train_loss": 2.0 / e, "val_loss": float("nan")}
                | {"val_accuracy": 0.3 + 0.01 * e, "seconds": 1.0}
                for e in range(1, 5)
            ]
            done = {"event": "done", "best_epoch": 4, "seconds": 4.25, "trainable_params": 1000, "all_params": 2000}
            config = {"experiment": f"exp{evil}", "variant": variant, "seed": seed, "train": {"lr": 0.1}}
            scores = score([x["type"] for x in lines], [x["correct"] for x in lines]).to_json()
            result = {"split": "test", **scores, "seconds": 1.0, "trainable_params": 1000}
            (folder / "config.toml").write_text(tomli_w.dumps(config))
            (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*epochs, done])))
            (folder / "result.json").write_text(json.dumps(result))
    return {f"q{i}": f"{'yes' if i % 3 else 'no'}{evil}" for i in range(60)}


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_every_format_is_written_and_agrees(num_seeds: int, tmp_path: Path) -> None:
    blind = make_runs(tmp_path / "runs", {"probe": 0.4, "trimodal": 0.9}, num_seeds=num_seeds)
    files = report([tmp_path / "runs"], out=tmp_path / "out", blind=blind, order=["trimodal"], notes=["My own note."])
    numbers = json.loads(files.json.read_text())
    assert [row["variant"] for row in numbers["rows"]] == ["blind", "trimodal", "probe"]
    assert numbers["notes"][0] == "My own note."
    assert numbers["rows"][0]["overall"]["percent"] == pytest.approx(200 / 3)
    assert numbers["rows"][1]["seeds"] == list(range(num_seeds))
    average = f"{numbers['rows'][1]['overall']['percent']:.1f}"
    page = Page(files.html.read_text())
    for path in (files.markdown, files.latex, files.html):
        assert average in path.read_text()
    assert average in files.text
    assert files.csv.read_text().startswith("variant,label,seeds,A-count")
    assert len(files.comparisons_csv.read_text().splitlines()) == 1 + 3 + 9  # one of them by type
    assert "> My own note." in files.markdown.read_text()
    names = ["accuracy_by_type", "accuracy_over_parameters", "differences", "train_loss", "val_accuracy"]
    assert page.count("svg") == len(names)
    assert sorted(path.name for path in files.figures.iterdir()) == [f"{n}.{s}" for n in names for s in ("pdf", "svg")]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in written)


def test_figures_are_files_that_a_paper_can_take(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"_probe": 0.4, f"trimodal $x${EVIL}": 0.9}, num_seeds=2)
    before = dict(matplotlib.rcParams)
    files = report([tmp_path / "runs"], out=tmp_path)
    assert dict(matplotlib.rcParams) == before
    text = (files.figures / "accuracy_by_type.svg").read_text()
    root = ElementTree.fromstring(text)
    words = "".join(root.itertext())
    assert "_probe" in words  # in the legend
    assert "trimodal $x$" in words
    assert "<dc:date>" not in text
    assert (files.figures / "accuracy_by_type.pdf").read_bytes().startswith(b"%PDF-")
    page = Page(files.html.read_text())
    mean = files.table.rows[0].overall
    assert f"_probe, Avg: {mean.mean:.1f} ± {mean.half:.1f} %" in page.text  # on hovering
    assert "_probe, epoch 2: 1" in page.text


def test_depth_and_search_are_drawn_where_they_vary(tmp_path: Path) -> None:
    runs = made_runs(tmp_path / "deep", ["a", "b", "c"], clips=1)
    deep = report([runs], out=tmp_path / "deep" / "out", comparisons=[])
    words = "".join(ElementTree.parse(deep.figures / "accuracy_over_depth.svg").getroot().itertext())
    assert all(f"{name}" in words for name in "abc")
    assert not (deep.figures / "search.svg").exists()
    assert f"b, depth 0.17: {deep.table.rows[2].overall.mean:.1f} %" in Page(deep.html.read_text()).text
    runs = made_runs(tmp_path / "searched", ["a", *(f"t{i}" for i in range(6))], clips=1, searched=True)
    searched = report([runs], out=tmp_path / "searched" / "out", comparisons=[])
    drawn = "".join(ElementTree.parse(searched.figures / "search.svg").getroot().itertext())
    assert all(key in drawn for key in ("train.lr", "adapter.d_model", "adapter.center", "validation (%)"))
    assert "t3: train.lr = 0.001, " in Page(searched.html.read_text()).text  # on hovering, of one not in the table


def test_curves_and_dots_at_one_place_are_all_seen(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"one": 0.0, "two": 0.0})  # no answer is right, and the epochs are alike
    files = report([tmp_path / "runs"], out=tmp_path, comparisons=[])
    curves = (files.figures / "val_accuracy.svg").read_text()
    dashes = re.findall(r"stroke-dasharray: ([\d., ]+); stroke-dashoffset: ([\d.]+)", curves)
    assert len({offset for _, offset in dashes}) == 2
    dots = (files.figures / "accuracy_over_parameters.svg").read_text()
    markers = re.findall(r"<path id=\"m[^>]*?d=\"([^\"]*)\"", dots, re.DOTALL) + re.findall(r"d=\"([^\"]*)\"", dots)
    radii = {max(abs(float(x)) for x in re.findall(r"-?\d+(?:\.\d+)?", marker)) for marker in markers}
    assert {3.0, 5.0} <= radii  # a dot of 6 points, and one of 10 behind it, which shows as a ring


def test_colours_of_the_page_follow_light_and_dark(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {f"v{i:02d}": 0.5 for i in range(14)})
    text = report([tmp_path / "runs"], out=tmp_path, comparisons=[]).html.read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert {f"var(--c{i})" for i in range(12)} <= set(re.findall(r"var\(--c\d+\)", drawn))
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    assert "stroke-dasharray" in drawn  # the thirteenth has the first one's colour


def test_the_same_runs_give_the_same_report(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4, "trimodal": 0.9}, num_seeds=2)
    for name in ("one", "two"):
        report([tmp_path / "runs"], out=tmp_path / name)
    written = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(written) == 6 + 2 * 5
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in written)


def test_all_text_is_escaped(tmp_path: Path) -> None:
    name = f"probe{EVIL}"
    blind = make_runs(tmp_path / "runs", {name: 0.4, "trimodal": 0.9}, evil=EVIL)
    clips = [ShownClip(clip_id=f"c0{EVIL}", frames=(PNG,))]
    labels = {"blind": f"blind{EVIL}", "trimodal": f"tri{EVIL}"}
    kept = report(
        [tmp_path / "runs"], out=tmp_path, blind=blind, clips=clips, labels=labels, notes=[EVIL], title=f"Title{EVIL}"
    )
    text = kept.html.read_text()
    page = Page(text)
    assert EVIL not in text
    assert text.count("<script") == page.count("script") == 2  # the page's own, and the packed data
    for shown in (f"Title{EVIL}", name, f"tri{EVIL}", f"blind{EVIL}", f"yes{EVIL}", f"Is the flute there?{EVIL}"):
        assert shown in page.text
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)


def test_hostile_gates_are_escaped_and_malformed_ones_refused(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {f"probe{EVIL}": 0.4}, evil=EVIL)
    folder = tmp_path / "runs" / "exp" / "v0" / "seed0"
    record = {"question_id": f"q0{EVIL}", "clip_id": f"c0{EVIL}", "insertion": 0, "visual": [0.5, 1.5], "text": [1.0]}
    lines = (folder / "predictions.jsonl").read_text().replace('"q0"', json.dumps(f"q0{EVIL}"))
    (folder / "predictions.jsonl").write_text(lines)
    (folder / "gates-test.jsonl").write_text(json.dumps({**record, "tokens": [EVIL]}))
    clips = [ShownClip(clip_id=f"c0{EVIL}", frames=(PNG, PNG))]
    text = report([tmp_path / "runs"], out=tmp_path, clips=clips).html.read_text()
    page = Page(text)
    assert "Gates of the selection" in page.text
    attributes = {pair for _, attributes in page.tags for pair in attributes.items()}
    assert {("title", f"token {EVIL}: 1.00"), ("title", "visual, segment 2: 1.50")} <= attributes
    assert ("aria-label", f"gates of q0{EVIL}") in attributes
    assert page.count("img") == 2 * 2  # the segments' frames, above their gates and with the clip
    assert EVIL not in text
    assert page.count("script") == 2
    (folder / "gates-test.jsonl").write_text(json.dumps({**record, "visual": ["<b>"]}))
    with pytest.raises(RunError, match=r"gates-test\.jsonl: not as talik evaluate --gates writes it"):
        report([tmp_path / "runs"], out=tmp_path, clips=clips)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4})
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0" * 3000)
    clips = [ShownClip(clip_id="c3", video=data_uri(film), frames=(PNG,)), ShownClip(clip_id="c5", frames=(PNG, PNG))]
    text = report([tmp_path / "runs"], out=tmp_path, clips=clips).html.read_text()
    page = Page(text)
    sources = [a[key] for _, a in page.tags for key in ("src", "href", "poster", "srcset") if key in a]
    sources = [source for source in sources if not str(source).startswith("#")]
    assert len(sources) == 4
    assert all(source and source.startswith("data:") for source in sources)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text
    assert (page.count("video"), page.count("img")) == (1, 3)


def test_a_clip_shows_each_question_with_its_true_answer_and_every_prediction(tmp_path: Path) -> None:
    blind = make_runs(tmp_path / "runs", {"probe": 0.4, "trimodal": 0.9}, num_seeds=2)
    text = report([tmp_path / "runs"], out=tmp_path, blind=blind, clips=[ShownClip(clip_id="c7")]).html.read_text()
    card = text.split('class="card clip"')[1].split("</article>")[0]
    assert card.count("Is the flute there?") == 3
    marks = re.findall(r'<td class="(right|wrong)">(yes|no)(?: <small>([\d.]+)</small>)?</td>', card)
    assert len(marks) == 9
    assert all((mark == "right") == (given == "yes") for mark, given, _ in marks)
    first = read_run(tmp_path / "runs" / "exp" / "v1" / "seed0").predictions[21]
    assert marks[2] == ("right" if first.correct else "wrong", first.prediction, f"{first.probability:.2f}")
    assert [p for _, _, p in marks[::3]] == ["", "", ""]  # the baseline has no probability
    assert "its first seed" in text


def test_the_page_holds_every_answer_for_its_script(tmp_path: Path) -> None:
    blind = make_runs(tmp_path / "runs", {"probe": 0.4, "trimodal": 0.9}, num_seeds=2)
    text = report([tmp_path / "runs"], out=tmp_path, blind=blind, comparisons=[]).html.read_text()
    packed = re.search(r'<script type="application/octet-stream" id="data">([^<]*)</script>', text)
    assert packed is not None
    found = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    runs = [read_run(tmp_path / "runs" / "exp" / "v1" / f"seed{k}").predictions for k in range(2)]
    assert [row["label"] for row in found["rows"]] == ["blind baseline", "probe", "trimodal"]
    assert found["questions"]["id"] == [p.question_id for p in runs[0]]
    assert [found["answers"][given] for given in found["given"][2]] == [p.prediction for p in runs[0]]
    assert found["probability"][2] == [round(100 * (p.probability or 0)) for p in runs[0]]
    assert found["right"][2] == [a.correct + b.correct for a, b in zip(*runs, strict=True)]
    assert sum(count for *_, count in found["confusion"][2]) == 120
    assert found["left_out"] == 0


def test_of_very_many_questions_those_of_evenly_spaced_clips_are_embedded(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4})
    variants = {"probe": (read_run(tmp_path / "runs" / "exp" / "v0" / "seed0"),)}
    table = build_table(variants)
    found = page_data(table, variants, blind=None, data=DataSet(), out=tmp_path, most_cells=30)
    assert [clip["id"] for clip in found["clips"]] == [f"c{i}" for i in range(0, 20, 2)]
    assert len(found["questions"]["id"]) == 30
    assert found["left_out"] == 30


def test_an_unfinished_run_stops_the_report_or_is_left_out_with_a_note(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4, "trimodal": 0.9})
    (tmp_path / "runs" / "exp" / "v1" / "seed0" / "result.json").unlink()
    with pytest.raises(RunError, match="unfinished"):
        report([tmp_path / "runs"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files = report([tmp_path / "runs"], out=tmp_path / "out", skip_unfinished=True)
    assert [row.name for row in files.table.rows] == ["probe"]
    assert files.notes[0] == "Left out, since unfinished: v1/seed0."
    assert "Left out, since unfinished: v1/seed0." in Page(files.html.read_text()).text


def test_rows_keep_the_order_of_the_experiments_file(tmp_path: Path) -> None:
    runs = made_runs(tmp_path, ["b", "c", "a", "old"], clips=1)
    names = ["c", "a", "b"]
    variants = [{"name": name, "adapter": {"kind": "probe"}} for name in names]
    (tmp_path / "exp.toml").write_text(tomli_w.dumps({"variants": variants}))
    rows = report([runs], out=tmp_path / "out", comparisons=[]).table.trained
    assert [row.name for row in rows] == [*names, "old"]  # no file names it any more
    rows = report([runs], out=tmp_path / "out", comparisons=[], order=["old"]).table.trained
    assert [row.name for row in rows] == ["old", *names]


def test_names_without_a_finished_run_are_left_out_with_the_unfinished(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4, "trimodal": 0.9, "other": 0.5})
    (tmp_path / "runs" / "exp" / "v2" / "seed0" / "result.json").unlink()
    names = ["trimodal", "never-begun", "probe"]
    pairs = [("trimodal", "probe"), ("never-begun", "probe")]
    labels = {"never-begun": "N", "probe": "P", "other": "O"}
    files = report(
        [tmp_path / "runs"], out=tmp_path, order=names, comparisons=pairs, labels=labels, skip_unfinished=True
    )
    assert [row.label for row in files.table.rows] == ["trimodal", "P"]
    assert [(c.a, c.b) for c in files.table.comparisons] == [("trimodal", "probe")]
    assert files.notes[:2] == (
        "Left out, since unfinished: v2/seed0.",
        "Left out, since there is no run of it: never-begun.",
    )


def test_names_that_the_runs_do_not_have_are_refused(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4})
    with pytest.raises(SettingsError, match="order 'trimodal'"):
        report([tmp_path / "runs"], out=tmp_path, order=["trimodal"])
    with pytest.raises(SettingsError, match=r"'absent' is to be shown, but no test question"):
        report([tmp_path / "runs"], out=tmp_path, clips=[ShownClip(clip_id="absent")])


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TalikError, match="the report cannot be written") as caught:
        report([tmp_path / "runs"], out=tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["https://example.org/a.mp4", "javascript:alert(1)", 'data:video/mp4;base64,AA"x', PNG])
def test_only_data_uris_of_the_right_kind_are_shown(uri: str) -> None:
    with pytest.raises(SettingsError, match="expected a base64 video data URI"):
        ShownClip(clip_id="c", video=uri)


def test_a_file_becomes_a_data_uri_if_it_is_small_and_known(tmp_path: Path) -> None:
    path = tmp_path / "a.PNG"
    path.write_bytes(b"12345")
    assert data_uri(path) == "data:image/png;base64," + base64.b64encode(b"12345").decode()
    with pytest.raises(MediaError, match="5 bytes; expected 1 to 4"):
        data_uri(path, max_bytes=4)
    with pytest.raises(MediaError, match=r"expected one of \.mp4"):
        data_uri(tmp_path / "a.svg")
    with pytest.raises(MediaError, match="cannot be read"):
        data_uri(tmp_path / "b.png")


def test_a_clip_is_shown_by_small_frames_of_its_segments(demo_set: Path, tmp_path: Path) -> None:
    path = sorted(demo_set.rglob("*.mp4"))[0]
    shown = show_clip(Clip(id="c", path=path), num_segments=3)
    assert shown is not None
    assert shown.video == data_uri(path)
    assert len(shown.frames) == 3
    for frame in shown.frames:
        content = base64.b64decode(frame.removeprefix("data:image/jpeg;base64,"))
        assert len(content) < 12_000
        with Image.open(io.BytesIO(content)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (160, 120))
    many = show_clip(Clip(id="c", path=path), num_segments=60)
    assert many is not None
    assert many.frames == ()
    (tmp_path / "torn.mp4").write_bytes(b"no film")
    assert show_clip(Clip(id="c", path=tmp_path / "torn.mp4"), num_segments=3) is None
    assert show_clip(Clip(id="c", path=None), num_segments=3) is None


def test_clips_are_picked_evenly_whatever_was_answered(tmp_path: Path) -> None:
    make_runs(tmp_path / "runs", {"probe": 0.4, "trimodal": 0.9})
    picked = {pick_clips(read_run(tmp_path / "runs" / "exp" / v / "seed0").predictions, 4) for v in ("v0", "v1")}
    assert picked == {("c2", "c7", "c12", "c17")}
    predictions = read_run(tmp_path / "runs" / "exp" / "v0" / "seed0").predictions
    assert len(set(pick_clips(predictions, 99))) == 20
    assert pick_clips(predictions, 0) == ()


def test_nothing_but_the_report_imports_the_libraries_of_the_report() -> None:
    code = """
        import sys, talik, talik.cli
        import talik.extract.stage.extract, talik.adapt.sweep.sweep
        import talik.adapt.evaluation.evaluate, talik.adapt.plan.plan
        found = {"matplotlib", "pandas", "statsmodels"} & set(sys.modules)
        assert not found, found
        import talik.adapt.report.write
        assert {"matplotlib", "pandas"} <= set(sys.modules)
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
