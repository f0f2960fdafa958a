"""The report's page in a real browser: no error, nothing wider than the window, and every control does what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from talik.adapt.report.write import report

from .browser import Browser, opened
from .made_runs import made_runs

LONG = "a_variant_whose_name_has_no_place_to_break_and_goes_on_and_on_and_on_for_more_than_a_hundred_characters_in_all"
EVIL = "<img src=x onerror=\"document.title='changed'\">"
CASES: dict[str, dict[str, Any]] = {
    "three": {"names": ["probe", f"lavish {EVIL}", "trimodal"], "seeds": 5, "media": True, "gates": True, "clips": 6},
    "sixty": {"names": [f"{LONG}_{i}" if i % 9 == 4 else f"variant {i:02d}" for i in range(60)], "clips": 4},
    "stretches": {"names": ["probe"], "media": True, "gates": True, "clips": 3, "stretch": (0.5, 1.5)},
    "search": {"names": ["start", *(f"{LONG}_{i}" for i in range(6))], "searched": True, "clips": 4},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a case's report once; only where there is a browser."""
    made: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in made:
            base = tmp_path_factory.mktemp(case) / "exp"
            made_runs(base, **CASES[case])
            made[case] = report([base / "runs"], out=base / "report", resamples=200).html
        return made[case]

    return make


@pytest.mark.parametrize("case", [case for case in CASES if case != "stretches"])
def test_pages_have_no_error_and_nothing_wider_than_the_window(
    case: str, browser: Browser, page: Callable[[str], Path]
) -> None:
    for width, dark in ((390, False), (900, True), (1600, False)):
        browser.open(page(case), width=width, dark=dark)
        assert browser.problems == []
        wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg, figure.wide')
            && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
        assert browser.run(wide) == []
        assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
    assert browser.run("document.title") == "talik: exp"
    browser.scheme(media="print")
    assert browser.run("getComputedStyle(document.querySelector('#questions')).display") == "none"
    browser.scheme()


def test_variants_are_filtered_and_sorted(browser: Browser, page: Callable[[str], Path]) -> None:
    browser.open(page("sixty"))
    rows = "[...document.querySelectorAll('#accuracy tbody tr')].filter(r => !r.hidden).map(r => r.dataset.row)"
    before = browser.run(rows)
    assert before == ["blind", *CASES["sixty"]["names"]]
    head = "document.querySelector('#accuracy thead tr:last-child th:nth-child(14)')"
    average = "[...document.querySelectorAll('#accuracy tbody td:nth-child(14)')].map(c => Number(c.dataset.value))"
    assert browser.run(f"{head}.innerText").startswith("All")
    for order, reverse in (("descending", True), ("ascending", False)):
        browser.run(f"{head}.click()")
        values = browser.run(average)
        assert values == sorted(values, reverse=reverse)
        assert browser.run(f"{head}.getAttribute('aria-sort')") == order
    browser.run(f"{head}.click()")
    assert browser.run(rows) == before
    browser.run("(f => {f.value = 'VARIANT 07, variant 21'; f.oninput()})(document.querySelector('#filter'))")
    assert browser.run(rows) == ["variant 07", "variant 21"]
    dimmed = "document.querySelectorAll('svg .dimmed[data-row=\"variant 08\"]').length"
    assert browser.run(dimmed) > 0
    assert browser.run(dimmed.replace("08", "07")) == 0


def test_a_question_shows_its_clip_its_answers_and_its_gates(browser: Browser, page: Callable[[str], Path]) -> None:
    browser.open(page("three"))
    one = "document.querySelector('#questions .one')"
    assert browser.run(f"{one}.querySelector('h3').textContent").startswith("How many instruments")
    assert browser.run(f"{one}.querySelectorAll('table.answers tbody tr').length") == 4
    assert browser.run(f"{one}.querySelectorAll('table.gates td').length") == 8  # two modalities, four segments
    play = "(async v => {v.muted = true; await v.play(); return [v.videoWidth, v.duration]})"
    width, seconds = browser.run(f"{play}({one}.querySelector('video'))")
    assert width == 64
    assert seconds == pytest.approx(2.0, abs=0.2)
    choose = "(s => {s.value = %r; s.oninput()})(document.querySelector('#questions [name=%s]'))"
    shown = "document.querySelector('#questions .pager span').textContent"
    assert browser.run(shown) == "1–25 of 54"
    browser.run(choose % ("unseen", "outcome"))
    assert browser.run(shown) == "1–1 of 1"
    assert "(in no training question)" in browser.run(f"{one}.textContent")
    browser.run(choose % ("right", "outcome"))
    right = int(browser.run(shown).split(" of ")[1])
    browser.run(choose % ("wrong", "outcome"))
    assert right + int(browser.run(shown).split(" of ")[1]) == 54
    browser.run("document.querySelector('#questions .pager button:last-child').click()")
    assert browser.run(shown).startswith("26–")
    counts = "[...document.querySelectorAll('#confusion tbody td.average')].map(c => Number(c.textContent))"
    assert sum(browser.run(counts)) == 5 * 54  # all seeds
    assert browser.problems == []


def test_a_stretch_is_played_from_its_beginning_and_its_segments_lie_in_it(
    browser: Browser, page: Callable[[str], Path]
) -> None:
    browser.open(page("stretches"))
    video = "document.querySelector('#questions .one video')"
    assert browser.run(f"{video}.src").endswith("/media/clip000.mp4#t=0.5,1.5")
    ready = f"(async v => {{v.muted = true; await v.play(); v.pause(); return v.currentTime}})({video})"
    assert 0.5 <= browser.run(ready) < 1.5
    cells = "document.querySelectorAll('#questions .one table.gates tr:first-child td')"
    browser.run(f"{cells}[2].click()")  # the third of four segments
    assert browser.run(f"{video}.currentTime") == pytest.approx(1.0, abs=0.01)


def test_a_clip_that_is_not_there_is_said_to_be_missing(browser: Browser, page: Callable[[str], Path]) -> None:
    browser.open(page("search"))
    assert "no media to play" in browser.run("document.querySelector('#questions .one').textContent")
    assert browser.run("document.querySelectorAll('#questions video').length") == 0


def test_the_switch_turns_light_and_dark_whatever_the_system_has(browser: Browser, page: Callable[[str], Path]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(page("three"), dark=True)
    dark = browser.run(ground)
    browser.run("document.querySelector('#theme').click()")
    light = browser.run(ground)
    browser.run("document.querySelector('#theme').click()")
    assert browser.run(ground) == dark != light
    browser.run("localStorage.clear()")


def test_hovering_says_the_interval_at_once(browser: Browser, page: Callable[[str], Path]) -> None:
    browser.open(page("three"))
    cell = "#accuracy tbody tr:nth-child(2) td:nth-child(14)"
    for selector, said in ((cell, "95 % t interval"), ("svg [data-hint]", "")):
        over = f"""(e => {{
            const box = document.querySelector('.hint');
            e.dispatchEvent(new PointerEvent('pointermove', {{bubbles: true, clientX: 9, clientY: 9}}));
            return [e.dataset.hint, box.textContent, box.hidden]}})(document.querySelector({selector!r}))"""
        expected, shown, hidden = browser.run(over)
        assert shown == expected
        assert said in shown
        assert not hidden
