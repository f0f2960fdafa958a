"""What `mkdocs build` does beside the pages of this folder: pages from elsewhere in the repository, links, formulas."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks")

#: Files outside this folder that are pages of the site: where each stands in the repository → its page.
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "cache/FORMAT.md": "format.md"}
INDEX_OF_MEASUREMENTS = "measurements.md"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand elsewhere in the repository, those of benchmarks/ among them."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    listed = (root / "docs" / INDEX_OF_MEASUREMENTS).read_text(encoding="utf-8")
    for path in sorted((root / "benchmarks").glob("*.md")):
        if f"(../benchmarks/{path.name})" not in listed:
            log.warning("docs/%s does not name benchmarks/%s", INDEX_OF_MEASUREMENTS, path.name)
        ELSEWHERE[f"benchmarks/{path.name}"] = f"benchmarks/{path.name}"
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Have links that are right in the repository lead to the site's pages; those to other files become plain text."""
    root = Path(config.config_file_path).parent
    pages = dict(ELSEWHERE)
    here = {target: source for source, target in pages.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def mended(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or not target:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if not (root / path).exists():
            log.warning("%s: the link to %s leads nowhere", here, target)
        if path in pages:
            path = f"docs/{pages[path]}"
        if path.startswith("docs/"):
            relative = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(page.file.src_uri) or ".")
            return f"[{text}]({relative}{anchor})"
        return f"`{path}`" if text in (path, target) else f"{text} (`{path}`)"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)  # what is code stays
    return "".join(
        part if part.startswith("```") else re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", mended, part)
        for part in parts
    )


def on_page_content(html: str, **_: Any) -> str:
    """Turn the formulas into MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        block = found[1].startswith(r"\[")
        text = found[1][2:-2].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
        return str(convert(text, display="block" if block else "inline"))

    return re.sub(r'<(?:span|div) class="arithmatex">(\\[(\[].*?\\[)\]])</(?:span|div)>', mathml, html, flags=re.DOTALL)
