"""The JSON Schema of an experiment file, from which editors complete and check its TOML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...config import json_schema
from ...errors import TalikError
from ...extract.datasets.settings import DATASETS
from ...extract.stage.settings import VARIANT_TABLES, ExtractTables
from ..adapters.peft_settings import TUNERS, config_fields
from ..adapters.registry import adapter_kind, known_adapters
from .experiment import Tables
from .search_space import RangeSettings

#: What stands above the tables.
_TOP = {
    "extends": {
        "type": "string",
        "description": "Another experiment file, whose tables are merged below this one's, variants by name.",
    },
    "import": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Modules, or .py files, of one's own code beside this file, imported first.",
    },
    "name": {"type": "string", "description": "The folder of the runs, runs/<name>; by default this file's stem."},
}


def experiment_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of an experiment file: every table, key, range, default and meaning.

    A variant's `adapter` is one of the kinds that can be used here, those of entry points included, each with its own
    keys. Of a kind whose package is missing, any keys are let through.

    Example:
        >>> from talik.adapt.config.experiment_schema import experiment_schema
        >>> experiment_schema()["$defs"]["TrainSettings"]["properties"]["epochs"]["minimum"]
        1
    """
    stage1, stage2 = json_schema(ExtractTables), json_schema(Tables)
    kinds = {name: _adapter_schema(name) for name in known_adapters()}
    definitions = {**stage1.pop("$defs"), **stage2.pop("$defs"), **{f"adapter {n}": s for n, s in kinds.items()}}
    own_code = {"type": "string", "pattern": r"^(?!peft:)[A-Za-z_][\w.]*:[A-Za-z_]\w*$"}
    dataset = definitions["DataSettings"]["properties"]["dataset"]
    dataset["anyOf"] = [{"enum": sorted(DATASETS.names())}, own_code]
    adapter = definitions["VariantSettings"]["properties"]["adapter"]
    adapter.update(required=["kind"], anyOf=[{"$ref": f"#/$defs/adapter {name}"} for name in kinds])
    adapter["anyOf"].append({"title": "a class of one's own", "properties": {"kind": own_code}})
    definitions |= _search_schemas(definitions["TrainSettings"]["properties"])
    for search in ("grid", "random"):
        table = {"$ref": f"#/$defs/sweep {search}"}
        one = definitions["SweepSettings"]["properties"][search]
        one["anyOf"] = [table, {"type": "array", "items": table}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An experiment of talik",
        "type": "object",
        "properties": {**_TOP, **stage1["properties"], **stage2["properties"]},
        "anyOf": [{"required": stage1["required"]}, {"required": ["extends"]}],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _search_schemas(train: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of one grid and of one random search, with the keys of [train] as they are written there."""
    ranges = json_schema(RangeSettings)
    found = {"RangeSettings": {name: value for name, value in ranges.items() if name != "$defs"}}
    fixed = {
        "variant": {
            "description": "The variants that it starts from; all of the experiment's by default.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
        }
    }
    drawn = {
        "trials": {"type": "integer", "minimum": 1, "description": "How many different combinations are drawn."},
        "seed": {"type": "integer", "default": 0, "description": "Of the draw."},
    }
    for search, own in (("grid", fixed), ("random", fixed | drawn)):
        of = _sources(search)
        keys = {
            f"train.{name}": {**of(value), "description": value.get("description", "")} for name, value in train.items()
        }
        found[f"sweep {search}"] = {
            "type": "object",
            "properties": {
                **own,
                **keys,
                "insertion": of({}),
                "placement": of({"enum": ["between", "parallel"]}),
                "adapter": {"type": "object", "additionalProperties": of({})},
                **{table: {"type": "object"} for table in VARIANT_TABLES},
                "train": {
                    "type": "object",
                    "properties": {name: of(value) for name, value in train.items()},
                    "additionalProperties": False,
                },
            },
            "patternProperties": {rf"^(adapter|insertion|{'|'.join(VARIANT_TABLES)})\.": of({})},
            "additionalProperties": False,
            "required": ["trials"] if search == "random" else [],
        }
    return found


def _sources(search: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what makes the schema of a key's values in a search from the schema of one value."""

    def listed(value: dict[str, Any]) -> dict[str, Any]:
        one = {name: found for name, found in value.items() if name not in ("default", "title", "description")}
        return {"type": "array", "items": one, "minItems": 1}

    def listed_or_range(value: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [listed(value), {"$ref": "#/$defs/RangeSettings"}]}

    return listed if search == "grid" else listed_or_range


def _adapter_schema(name: str) -> dict[str, Any]:
    """Return the schema of `[variants.adapter]` for one kind."""
    try:
        own = _peft_schema(name) if name.startswith("peft:") else json_schema(adapter_kind(name).settings)
    except TalikError:  # it, or its package, cannot be imported
        own = {"type": "object", "properties": {}}
    own.setdefault("properties", {})["kind"] = {"const": name}
    return {**own, "title": name, "required": ["kind", *own.get("required", ())]}


def _peft_schema(name: str) -> dict[str, Any]:
    """Return the keys of a tuner's PEFT config; PEFT checks their values itself."""
    tuner = name.removeprefix("peft:")
    fields = {n: f for n, f in config_fields(tuner).items() if n not in TUNERS[tuner].preset}
    texts = {n: " ".join(str(f.metadata.get("help", "")).split()) for n, f in fields.items()}
    properties = {n: {"description": text} for n, text in texts.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}
