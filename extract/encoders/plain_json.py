"""Values of configurations as plain JSON that is the same in every process: infinities, sets, data types, configs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def plain_json(value: Any) -> Any:
    """Return `value` as plain JSON: what JSON has no form for, by its words.

    >>> plain_json({"limits": (0.0, float("inf")), "kinds": {"b", "a"}, 1: float("nan")})
    {'limits': [0.0, 'Infinity'], 'kinds': ['a', 'b'], '1': 'NaN'}

    Args:
        value: a tree of mappings, sequences, sets, numbers, strings, data types and configurations.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {_key(name): plain_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_json(inner) for inner in value), key=json.dumps)
    if callable(getattr(value, "to_dict", None)) and not isinstance(value, type):
        return {name: inner for name, inner in plain_json(value.to_dict()).items() if name != "transformers_version"}
    if is_dataclass(value) and not isinstance(value, type):
        return plain_json(asdict(value))
    return _ADDRESS.sub("", str(value))


def _key(name: Any) -> str:
    """Return a key as the json module writes it."""
    if isinstance(name, str):
        return name
    return json.dumps(name) if name is None or isinstance(name, bool | int | float) else str(name)
