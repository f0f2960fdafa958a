"""The page's template (Jinja2, every value escaped unless it is Markup made by `charts`)."""

from __future__ import annotations

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:">
<title>{{ title }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
{%- macro dot(row) -%}
  <span class="dot{{ '' if row.trained else ' blind' }}"
    {%- if row.trained %} style="background:{{ colours[row.name] }}"{% endif %}></span>
{%- endmacro %}
{%- macro cell(row, column, kind='') -%}
  {%- set value = cell_of(row, column) -%}
  <td class="{{ kind }}{{ ' best' if is_best(row, column) }}">{{ '%.1f' % value.mean }}
  {%- if value.half is not none %} <small>±{{ '%.1f' % value.half }}</small>{% endif %}</td>
{%- endmacro %}

<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
</header>
{% if notes %}
<section class="notes">
{%- for note in notes %}
<p>{{ note }}</p>
{%- endfor %}
</section>
{% endif %}

<section>
<h2>Accuracy by question type</h2>
<p class="caption">Percent of the {{ table.split }} questions answered correctly; averages are over questions.
{% if several_seeds %}Mean over seeds ± half of a 95 % t-interval. {% endif %}Bold: the highest of a column among
trained rows, whether or not the difference is more than chance. Hours are wall-clock, of one run
{%- if counts_flops %}; FLOPs those of one forward pass above the cached states (matrix products, convolutions and
attention){% endif %}.</p>
<div class="card scroll">
<table class="accuracy">
<thead>
{% if grouped %}
<tr><th class="first"></th>
{%- for group, members in groups.items() %}
<th class="group" colspan="{{ members|length + (1 if group else 0) }}">{{ group }}</th>
{%- endfor %}<th colspan="{{ 1 + cost_heads|length }}"></th></tr>
{% endif %}
<tr><th class="first">variant</th>
{%- for group, members in groups.items() %}
{%- for name in members %}
<th>{{ short_type(name) if group else name }}<small>{{ table.num_by_type[name] }}</small></th>
{%- endfor %}
{%- if group %}<th>Avg<small>{{ group_sizes[group] }}</small></th>{% endif %}
{%- endfor %}<th>All<small>{{ table.num_questions }}</small></th>
{%- for head in cost_heads %}<th>{{ head.split(' ', 1)[0] }}<small>{{ head.split(' ', 1)[1:]|join }}</small></th>
{%- endfor %}</tr>
</thead>
<tbody>
{%- for row in table.rows %}
<tr class="{{ '' if row.trained else 'untrained' }}"><th scope="row">{{ dot(row) }}{{ row.label }}</th>
{%- for group, members in groups.items() %}
{%- for name in members %}{{ cell(row, name) }}{% endfor %}
{%- if group %}{{ cell(row, group, 'average') }}{% endif %}
{%- endfor %}{{ cell(row, 'Avg', 'average') }}
{%- for number in cost_cells(row) %}<td>{{ number }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</div>
</section>

{% if table.comparisons %}
<section>
<h2>Which differences are more than chance</h2>
<p class="caption">{{ method }}</p>
<div class="card scroll">
<table>
<thead><tr><th class="first">variant</th><th class="left">against</th><th>points</th><th>95 % interval</th>
<th class="interval">{{ charts.interval_axis(table) }}</th><th>p</th><th>p (Holm)</th>
<th>excludes zero</th></tr></thead>
<tbody>
{%- for c in table.comparisons %}
<tr><th scope="row">{{ c.a_label }}</th><td class="left">{{ c.b_label }}</td>
<td>{{ format_points(c.difference.points) }}</td><td>{{ format_interval(c) }}</td>
<td class="interval">{{ charts.interval_bar(table, c) }}</td>
<td>{{ format_p(c.difference.p_value) }}</td><td>{{ format_p(c.p_corrected) }}</td>
<td class="{{ verdict(c) }}">{{ verdict(c) }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}

{% if deltas %}
<section>
<h2>Differences by question type</h2>
<p class="caption">{{ delta_note }} On the same questions, by the test described above; the interval shows on
hovering.</p>
<div class="card scroll">
<table class="accuracy">
<thead><tr>{% for head in delta_head %}<th{% if loop.first %} class="first"{% endif %}>{{ head }}</th>{% endfor %}</tr>
</thead>
<tbody>
{%- for c in deltas %}
<tr><th scope="row">{{ c.a_label }}</th>
{%- for name in table.types %}<td title="{{ format_interval(c.by_type[name]) }}">{{ starred(c.by_type[name]) }}</td>
{%- endfor %}<td class="average" title="{{ format_interval(c) }}">{{ starred(c) }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}

<section>
<h2>What it cost</h2>
{%- for line in ledger_lines %}
<p class="caption">{{ line }}</p>
{%- endfor %}
<div class="card scroll">
<table>
<thead><tr>{% for head in ledger_head %}<th{% if loop.first %} class="first"{% endif %}>{{ head }}</th>{% endfor %}</tr>
</thead>
<tbody>
{%- for row in ledger_rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for number in row[1:] %}<td>{{ number }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</div>
</section>

<section>
<h2>Plots</h2>
<div class="legend">{% for row in table.rows %}<span>{{ dot(row) }}{{ row.label }}</span>{% endfor %}</div>
<div class="figures">
<figure class="card wide"><figcaption>Accuracy by question type
{%- if several_seeds %}<span>whiskers: 95 % t-interval over seeds</span>{% endif %}</figcaption>{{ bars }}</figure>
{%- for figure in figures %}
<figure class="card{{ ' wide' if figure.wide }}">
<figcaption>{{ figure.caption }}<span>{{ figure.detail }}</span></figcaption>{{ figure.svg }}</figure>
{%- endfor %}
</div>
</section>

{% if gates %}
<section>
<h2>What the selection kept</h2>
<p class="caption">Mean over channels of a variant's gates at each segment and word (its first seed), for a few test
questions: 1 lets pass, 0 suppresses, 2 doubles. Blue above 1, red below, the stronger the further from 1 (the furthest
of each figure at full strength). The first question of a clip is shown, whatever was answered.</p>
<div class="figures">
{%- for shown in gates %}
<figure class="card"><figcaption>{{ shown.question }}
<span>{{ shown.label }} · true answer: {{ shown.answer }} · clip {{ shown.clip_id }}</span></figcaption>
{%- for insertion, chart in shown.charts %}
{%- if shown.charts|length > 1 %}<p class="caption">insertion {{ insertion + 1 }}</p>{% endif %}{{ chart }}
{%- endfor %}</figure>
{%- endfor %}
</div>
</section>
{% endif %}

{% if clips %}
<section>
<h2>A few clips</h2>
<p class="caption">Test clips with their questions and what each variant answered
{%- if several_seeds %} (its first seed){% endif %}; the number is the probability that it gave its own answer.</p>
{%- for clip in clips %}
<article class="card clip">
<h3>{{ clip.shown.clip_id }}</h3>
<div class="media">
{%- if clip.shown.video %}<video controls preload="metadata" src="{{ clip.shown.video }}"></video>{% endif %}
{%- for frame in clip.shown.frames %}
<img src="{{ frame }}" alt="frame {{ loop.index }} of clip {{ clip.shown.clip_id }}">
{%- endfor %}
</div>
<div class="scroll">
<table>
<thead><tr><th>question</th><th>true answer</th>
{%- for row in table.rows %}<th>{{ row.label }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for question in clip.questions %}
<tr><td class="question">{{ question.text }}<small>{{ question.type }}</small></td><td><b>{{ question.answer }}</b></td>
{%- for given in question.given %}<td class="{{ 'right' if given.correct else 'wrong' }}">{{ given.prediction }}
{%- if given.probability is not none %} <small>{{ '%.2f' % given.probability }}</small>{% endif %}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</div>
</article>
{%- endfor %}
</section>
{% endif %}

<footer>{{ footer }}</footer>
</main>
</body>
</html>
"""
