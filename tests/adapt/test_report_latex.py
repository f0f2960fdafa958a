"""The report's LaTeX in a paper: it compiles where TeX is installed, and is well formed everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from talik.adapt.report.build_table import build_table
from talik.adapt.report.latex import to_latex
from talik.adapt.report.runs import Run

from .test_report_table import always, made_run

HOSTILE = r"a|b_50% {x}~^\$#&<é>"
PAPER = r"""\documentclass[twocolumn]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx}
\begin{document}
See Tables~\ref{tab:talik-accuracy} and~\ref{tab:talik-differences}.
\input{report.tex}
\end{document}
"""


def variants(num: int, seeds: int) -> dict[str, tuple[Run, ...]]:
    rng = np.random.default_rng(0)
    names = ["base", HOSTILE, "long " * 12, *(f"v{i}" for i in range(num))][:num]
    return {
        name: tuple(
            made_run(name, list(rng.random(180) < 0.3 + 0.5 * i / num), seed=s, flops=10**8, device="cpu")
            for s in range(seeds)
        )
        for i, name in enumerate(names)
    }


def latex_of(runs: Mapping[str, Sequence[Run]]) -> str:
    return to_latex(build_table(runs, blind=always("no", runs), baseline="base", resamples=500))


@pytest.mark.parametrize(("num", "seeds"), [(3, 3), (60, 1)])
def test_it_compiles_in_a_paper_of_two_columns(num: int, seeds: int, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        pytest.skip("no TeX: apt-get install texlive-latex-base texlive-latex-recommended")
    (tmp_path / "report.tex").write_text(latex_of(variants(num, seeds)), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(PAPER, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    for _ in range(2):  # references are known the second time
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert not re.findall(r"^(?:Overfull \\hbox|.*too large|.*undefined|LaTeX Warning.*lost).*", log, re.MULTILINE)


@pytest.mark.parametrize("num", [3, 60])
def test_environments_and_braces_are_closed_and_captions_say_set_seeds_and_marks(num: int) -> None:
    text = latex_of(variants(num, 3))
    bare = re.sub(r"\\[{}\\%$&#_]", "", re.sub(r"(?m)(?<!\\)%.*$", "", text))
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    opened: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    caption = re.search(r"\\caption\{(Accuracy.*)\}", text)
    assert caption is not None
    for said in ("180 test questions on 90 clips", "3 seeds a variant", r"95 \% t interval", "differs from base"):
        assert said in caption[1]
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(labels) == len(set(labels))


def test_a_star_stands_where_a_difference_from_the_baseline_is_significant() -> None:
    half = [i // 9 % 2 == 0 for i in range(180)]
    made = {"base": half, "same": half, "all": [True] * 180}
    runs = {name: (made_run(name, right),) for name, right in made.items()}
    lines = to_latex(build_table(runs, baseline="base")).split(r"\end{table*}")[0].splitlines()
    starred = {line.split(" & ")[0]: line.count("$^{*}$") for line in lines if line.endswith(r"\\")}
    assert starred["base"] == starred["same"] == 0
    assert starred["all"] == 10  # nine types and all
