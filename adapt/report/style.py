"""The page's style sheet: light and dark after the reader's setting, no font or file from elsewhere."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --ground: #fbfbf9; --card: #ffffff; --ink: #1c1f23; --soft: #5d656f; --line: #e3e4e0; --stripe: #f6f6f2;
  --accent: #2a6fb0; --good: #17794a; --bad: #b3392f; --note: #fff8e3; --note-line: #e2b93b;
  --c0: #2f6fb3; --c1: #d9702b; --c2: #2a9463; --c3: #a9479a; --c4: #94791a; --c5: #5d55c4; --c6: #1590a0;
  --c7: #bf3f55; --c8: #5a6b7a; --c9: #6fa01f; --c10: #8a5a36; --c11: #d45f9b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --card: #1b1f23; --ink: #e7e9ea; --soft: #9aa4ae; --line: #31373d; --stripe: #20252a;
    --accent: #79b4ee; --good: #5fcf97; --bad: #f08a7e; --note: #2b2617; --note-line: #b8922a;
    --c0: #6eaeea; --c1: #f2995c; --c2: #5cc795; --c3: #d989cb; --c4: #d0b552; --c5: #a29bf2; --c6: #55c6d3;
    --c7: #f0808f; --c8: #a9b8c6; --c9: #a8d355; --c10: #c99a72; --c11: #f2a0c8;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial,
  sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 44px 28px 72px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; letter-spacing: -0.01em; margin: 52px 0 6px; }
p { margin: 6px 0 14px; max-width: 76ch; }
.lead, .caption { color: var(--soft); }
.caption { font-size: 14px; }
.notes { background: var(--note); border-left: 4px solid var(--note-line); border-radius: 0 8px 8px 0;
  margin: 24px 0 8px; padding: 12px 18px; }
.notes p { margin: 4px 0; max-width: none; font-size: 15px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; text-align: right; white-space: nowrap; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: 13px; vertical-align: bottom; border-bottom: 1px solid var(--line); }
thead th.group { text-align: center; color: var(--ink); border-bottom: 1px solid var(--line); }
thead th small { display: block; font-weight: 400; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr:hover > * { background: var(--stripe); }
tbody tr.untrained > * { color: var(--soft); font-style: italic; }
.left { text-align: left; }
tbody th, th.first { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 500; white-space: normal; min-width: 150px; }
td.left { white-space: normal; min-width: 280px; }
td.average { background: var(--stripe); }
td.best { font-weight: 700; }
table.accuracy { font-size: 13.5px; }
table.accuracy th, table.accuracy td { padding: 7px 7px; }
table.accuracy tr > :last-child { padding-right: 14px; }
table.accuracy tr > :first-child { padding-left: 14px; }
table.accuracy td small { display: block; font-size: 11.5px; line-height: 1.2; }
.interval svg { width: 220px; }
td small { color: var(--soft); font-weight: 400; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.dot.blind { background: none; border-top: 2px dashed var(--soft); border-radius: 0; height: 3px; }
.yes { color: var(--good); font-weight: 600; }
.no { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 18px;
  margin: 14px 0; }
figure { margin: 0; padding: 16px 16px 8px; }
figure.wide { grid-column: 1 / -1; }
figcaption { font-weight: 600; font-size: 15px; margin: 0 0 8px; }
figcaption span { display: block; font-weight: 400; color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-family: inherit; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg text.name { fill: var(--ink); font-size: 12.5px; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg text.word, svg text.gate { fill: var(--ink); }
svg text.gate { font-size: 10.5px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .zero { stroke: var(--ink); stroke-width: 1.2; }
svg .blind { stroke: var(--soft); stroke-width: 1.6; stroke-dasharray: 5 4; }
svg .leader { stroke: var(--soft); stroke-width: 0.8; }
svg .under { stroke: var(--card); stroke-width: 3.4; opacity: 0.8; }
svg .spread { stroke: var(--ink); stroke-width: 1.2; }
svg .whisker { stroke-width: 2; stroke-linecap: round; }
svg .whisker.sure { stroke: var(--accent); } svg .whisker.unsure { stroke: var(--soft); }
svg .centre.sure { fill: var(--accent); }
svg .centre.unsure { fill: var(--card); stroke: var(--soft); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; margin: 10px 0; }
.legend span { white-space: nowrap; }
.clip { padding: 18px; margin: 16px 0; }
.clip h3 { font-size: 14px; margin: 0 0 8px; font-weight: 500; color: var(--soft); overflow-wrap: anywhere; }
.clip .media { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 12px; }
.clip video, .clip img { display: block; height: 126px; max-width: 100%; border-radius: 6px; background: #000; }
.clip table { font-size: 13.5px; }
.clip th, .clip td { text-align: left; vertical-align: top; padding: 6px 10px 6px 0; }
.clip thead th { white-space: normal; min-width: 68px; font-size: 12px; }
.clip td.question { white-space: normal; min-width: 170px; }
.clip td.question small { display: block; }
.clip tbody tr:hover > * { background: none; }
.clip td.right small, .clip td.wrong small { display: block; padding-left: 1.2em; }
.clip .right::before { content: "✓ "; color: var(--good); font-weight: 700; }
.clip .wrong::before { content: "✗ "; color: var(--bad); font-weight: 700; }
.clip td.wrong { color: var(--soft); }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft); font-size: 14px; }
@media (max-width: 820px) { main { padding: 26px 16px 48px; }
  figure.wide { overflow-x: auto; } figure.wide svg { min-width: 640px; } }
@media print { body { background: none; } .card, .clip, figure { break-inside: avoid; } }
"""
