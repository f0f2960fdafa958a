"""Photograph the report's page for the documentation: python -m tests.adapt.report_pictures docs/images."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from talik.adapt.report.write import report

from .browser import opened
from .made_runs import made_runs

LONG = "trimodal_with_a_name_that_has_no_place_to_break_and_goes_on_for_more_than_a_hundred_characters_in_all_of_it"


def main(out: Path) -> None:
    """Write the pictures of a small report in light and dark, and of one of sixty variants."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, opened() as browser:
        base = Path(folder) / "small"
        made_runs(base, ["probe", "lavish", "trimodal"], seeds=5, clips=40, media=True, gates=True)
        small = report([base / "runs"], out=base / "report", title="Three adapters on made questions").html
        browser.open(small, width=1200, height=860)
        browser.photograph(out / "report-light.png")
        browser.run("document.querySelector('#questions').scrollIntoView()")
        browser.run("(film => {film.muted = true; return film.play()})(document.querySelector('#questions video'))")
        browser.run("new Promise(done => setTimeout(done, 700))")
        browser.photograph(out / "report-question.png")
        browser.open(small, width=1200, height=860, dark=True)
        browser.run("document.querySelector('#plots').scrollIntoView()")
        browser.photograph(out / "report-dark.png")
        base = Path(folder) / "large"
        names = [f"{LONG}_{i}" if i % 9 == 4 else f"variant {i:02d}" for i in range(60)]
        made_runs(base, names, seeds=1, clips=10)
        large = report([base / "runs"], out=base / "report", title="Sixty variants, media missing").html
        browser.open(large, width=1200, height=860)
        browser.run("document.querySelector('#accuracy').scrollIntoView()")
        browser.photograph(out / "report-sixty.png")
        browser.open(large, width=390, height=860)
        browser.photograph(out / "report-narrow.png")
    for file in out.glob("report-*.png"):
        Image.open(file).convert("RGB").save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
