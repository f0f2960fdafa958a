"""The documentation site builds without a warning: no dead link, no page outside the navigation, no unknown name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import talik as package

ROOT = Path(package.__file__).parent


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module, reason="the site's tools are not installed: pip install 'talik[docs]'")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "talik").symlink_to(ROOT)
    search = [str(tmp_path / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    python = (tmp_path / "site" / "python.html").read_text(encoding="utf-8")
    assert "Train one variant" in re.sub(r"\s+", " ", python)  # a docstring's text, not only its name
    assert "<math" in (tmp_path / "site" / "adapters.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "benchmarks" / "gpu.html").is_file()


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: talik\..*?\.?(\w+)$", page, re.MULTILINE)) == set(package.__all__)
