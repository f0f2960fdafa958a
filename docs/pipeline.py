"""Draw docs/pipeline.svg, the picture of the README: `python docs/pipeline.py`.

Its colours are readable on white and on black: white letters on filled boxes, grey ones beside them.
"""

from __future__ import annotations

from pathlib import Path

FROZEN, TRAINED, STORED, FILES, GREY = "#33658a", "#c8553d", "#2f7d5b", "#5c6370", "#7d8590"
MODALITIES = ("visual", "audio", "text")
ROWS = (64, 118, 172)  # the top of each row of boxes
HEIGHT = 34


def box(x: float, y: float, width: float, text: str, fill: str, height: float = HEIGHT) -> str:
    """Return a filled box with white letters, several lines where the text has them."""
    lines = text.split("\n")
    first = y + height / 2 - 7.5 * (len(lines) - 1)
    words = "".join(label(x + width / 2, first + 15 * i, line, fill="#ffffff") for i, line in enumerate(lines))
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}"/>{words}'


def label(x: float, y: float, text: str, *, fill: str = GREY, weight: str = "normal") -> str:
    """Return centred text."""
    return f'<text x="{x}" y="{y}" fill="{fill}" font-weight="{weight}">{text}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a grey arrow."""
    return f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{GREY}" stroke-width="1.6" fill="none" marker-end="url(#head)"/>'


def picture() -> str:
    """Return the SVG: files, the frozen units below the cut, the store, three variants, the report."""
    parts = [box(6, ROWS[0], 84, "videos\n\nquestions\nanswers", FILES, height=ROWS[-1] + HEIGHT - ROWS[0])]
    for modality, y in zip(MODALITIES, ROWS, strict=True):
        parts += [arrow(92, y + HEIGHT / 2, 112, y + HEIGHT / 2), box(118, y, 62, modality, FROZEN)]
        parts += [box(184 + 40 * i, y, 36, unit, FROZEN) for i, unit in enumerate(("0", "1", "…", "k−1"))]
        parts.append(arrow(346, y + HEIGHT / 2, 370, y + HEIGHT / 2))
    parts.append(box(376, ROWS[0], 104, "features.zarr\n\nstates at\nboundary k", STORED, ROWS[-1] + HEIGHT - ROWS[0]))
    for name, y in zip(("A", "B", "C"), ROWS, strict=True):
        middle = y + HEIGHT / 2
        parts += [arrow(482, middle, 502, middle), box(508, y, 72, f"adapter {name}", TRAINED)]
        parts += [
            box(584, y, 36, "k", FROZEN),
            box(624, y, 72, f"adapter {name}", TRAINED),
            box(700, y, 36, "…", FROZEN),
        ]
        parts += [box(740, y, 44, "n−1", FROZEN), box(788, y, 52, "head", TRAINED), arrow(842, middle, 862, middle)]
    parts.append(box(868, ROWS[0], 86, "table\n\nfigures\npage", FILES, height=ROWS[-1] + HEIGHT - ROWS[0]))
    for x, command, text in (
        (231, "talik extract", "once for all variants"),
        (674, "talik sweep", "each variant, every epoch: only this part runs"),
        (911, "talik report", ""),
    ):
        parts += [label(x, 24, command, weight="bold"), label(x, 44, text)]
    parts += [
        box(296, 228, 18, "", FROZEN, 14),
        label(392, 235, "frozen encoder units"),
        box(476, 228, 18, "", TRAINED, 14),
        label(526, 235, "trained"),
        box(576, 228, 18, "", STORED, 14),
        label(634, 235, "on the disk"),
    ]
    body = "\n".join(parts)
    style = "font-family:system-ui,sans-serif;font-size:13px;text-anchor:middle;dominant-baseline:central"
    marker = f'<path d="M0 0 L8 4 L0 8 z" fill="{GREY}"/>'
    head = f'<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{marker}</marker>'
    title = "Frozen units below the cut run once; each variant trains from the stored states"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 252" role="img" aria-label="{title}">\n'
        f"<defs>{head}<style>text{{{style}}}</style></defs>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("pipeline.svg").write_text(picture(), encoding="utf-8")
