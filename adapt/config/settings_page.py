"""The reference of the experiment file as a Markdown page: every key with its values, default and meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from inspect import getdoc
from typing import Any

from ...config import json_schema
from ...extract.datasets.generic import ManifestColumns
from ..adapters.registry import BUILT_IN, adapter_kind
from .experiment_schema import experiment_schema

#: The tables in the page's order: their headings, what the schema calls them, and what is said before their keys.
SECTIONS: tuple[tuple[str, str, str], ...] = (
    ("[data]", "DataSettings", "The data set. See [your own data](your-data.md)."),
    (
        "[encoders.visual], [encoders.audio], [encoders.text]",
        "EncoderSettings",
        "The frozen encoders, at most one a modality; at least one has to be there. See [encoders](encoders.md).",
    ),
    ("[encoders.audio.picture]", "PictureSettings", "Of an image model that hears."),
    (
        "[encoders.visual.augment], [encoders.audio.augment]",
        "AugmentSettings",
        "What the stored views change. See [augmented views](views.md).",
    ),
    ("[store]", "StoreSettings", "Where the states lie. See [the store](store.md)."),
    ("[extract]", "PipelineSettings", "How stage 1 uses the machine; states do not depend on it."),
    ("[engine]", "EngineSettings", "Who computes. See [clusters](cluster.md)."),
    ("[task]", "TaskSettings", "What is predicted, and the head that predicts it."),
    (
        "[train]",
        "TrainSettings",
        "The defaults of every variant; `train` of a variant changes them. See [training](training.md).",
    ),
    ("[[variants]]", "VariantSettings", "One table a variant. See [adapters](adapters.md)."),
    ("[sweep]", "SweepSettings", "Seeds and searches. See [sweeps](sweeps.md)."),
    ("[sweep.early_stop]", "HalvingSettings", "The settings of `early_stop`, when it is a table."),
    (
        "[[sweep.grid]]",
        "sweep grid",
        "Beside the keys below, any key of a variant by its dotted name, each with the list of its values: "
        '`"train.lr" = [1e-4, 1e-3]`, `"adapter.window" = [0, 1]`, `insertion`, `placement`, '
        '`"encoders.visual.model"` and so on.',
    ),
    (
        "[[sweep.random]]",
        "sweep random",
        "Keys of a variant as in a grid; each has a list to draw from, or a range (below).",
    ),
    ("A range in [[sweep.random]]", "RangeSettings", '`"train.lr" = { low = 1e-4, high = 1e-2, log = true }`'),
    ("[log]", "LogSettings", "Loggers; they are no part of a run's settings."),
)

#: Definitions of the schema that are no tables of their own in the page.
NOT_TABLES = ("EncodersSettings",)  # its keys are the three tables themselves

_INTRODUCTION = """\
# Every setting

All tables and keys of an experiment file, and the columns of a manifest. This page is written by `talik schema
--markdown` from the docstrings in the code (`make reference`). Unknown keys are refused with the nearest known one, and
a value out of its range with what was expected. [The experiment file](experiment.md) says how a file extends another,
and how a command or a Python call changes a value.

"–" stands for no default: the key may be left out, and nothing, or what the text says, takes its place.
"""


def settings_page() -> str:
    """Return the page as Markdown: a table for each table of an experiment file, adapter kind and manifest.

    Only talik's own adapter kinds are there, so that the page is the same whatever else is installed.

    Example:
        >>> from talik.adapt.config.settings_page import settings_page
        >>> "| `epochs` | whole number, at least 1 | `10` | passes over the training questions" in settings_page()
        True
    """
    schema = experiment_schema()
    definitions = schema["$defs"]
    parts = [_INTRODUCTION, "## Above the tables\n", _table(_top(schema["properties"]))]
    for heading, name, text in SECTIONS:
        parts += [f"## {_as_code(heading)}\n", f"{text}\n", _table(_own_keys(definitions[name]))]
        if name == "VariantSettings":
            parts += _adapters(definitions)
    parts += [
        "## Columns of a manifest\n",
        'Of `dataset = "manifest"`: the keys of each line of a JSONL file, or the columns of a CSV file, with commas, '
        "semicolons or tabs between fields. Other columns are refused unless `columns` of `[data]` names them.\n",
        _table(json_schema(ManifestColumns)),
    ]
    return "\n".join(parts)


def _top(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of the keys that stand above all tables."""
    return {"properties": {name: properties[name] for name in ("name", "extends", "import")}}


def _adapters(definitions: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section for each adapter kind of talik, those of PEFT in one."""
    yield "### `adapter`\n"
    yield (
        "`kind` names the adapter, the other keys are its own. A class of one's own beside the experiment file is the "
        'kind `"module:Class"` ([more](extending.md)).\n'
    )
    for kind in BUILT_IN:
        if kind.startswith("peft:"):
            continue
        first = (getdoc(adapter_kind(kind).settings) or "").partition("\n\n")[0]
        own = {n: v for n, v in definitions[f"adapter {kind}"]["properties"].items() if n != "kind"}
        yield f'#### `kind = "{kind}"`\n'
        yield f"{' '.join(first.split())}\n"
        yield _table({"properties": own}) if own else "No keys of its own.\n"
    tuners = ", ".join(f"`{kind}`" for kind in BUILT_IN if kind.startswith("peft:"))
    yield '#### `kind = "peft:…"`\n'
    yield (
        f"Tuners of the PEFT library: {tuners}. The other keys are those of PEFT's config class of that tuner, with "
        "its defaults but for those that [adapters](adapters.md#pefttuner) names; `talik adapt EXPERIMENT.toml --list "
        "lora` shows them.\n"
    )


def _own_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's schema without what the page says once: the keys of a variant in a search."""
    if "patternProperties" not in table:
        return dict(table)
    own = {n: v for n, v in table["properties"].items() if n in ("variant", "trials", "seed")}
    return {"properties": own, "required": table.get("required", ())}


def _table(schema: Mapping[str, Any]) -> str:
    """Return the keys of a table as a Markdown table."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, value in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else _default(value)
        rows.append(f"| `{name}` | {_value(value)} | {default} | {_cell(value.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _default(value: Mapping[str, Any]) -> str:
    found = value.get("default")
    return "–" if found is None or found in ({}, []) else f"`{json.dumps(found, ensure_ascii=False)}`"


def _value(schema: Mapping[str, Any]) -> str:
    """Return what may stand there, in words: "whole number, at least 1"."""
    if "$ref" in schema:
        return "table"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "anyOf" in schema and schema.get("type") != "object":
        kinds = [_value(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    kind = schema.get("type", "")
    if kind == "array":
        inner: Mapping[str, Any] = schema.get("items") or next(iter(schema.get("prefixItems", ())), {})
        return f"list: {_value(inner)}"
    words = {"integer": "whole number", "number": "number", "string": "string", "boolean": "`true` or `false`"}
    return ", ".join([words.get(kind, "table"), *_ranges(schema)])


def _ranges(schema: Mapping[str, Any]) -> Iterator[str]:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    yield from (f"{text} {schema[key]:g}" for key, text in words.items() if key in schema)


def _as_code(heading: str) -> str:
    """Return a heading with its table names as code."""
    return re.sub(r"\[+[\w.]+\]+", lambda found: f"`{found[0]}`", heading)


def _cell(text: str) -> str:
    """Return a text for a cell: nothing in it ends the cell, or is taken for HTML outside code."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
