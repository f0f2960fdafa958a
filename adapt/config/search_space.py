"""Grids and random searches of [sweep] written out as variants, each named by what it sets."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import Field

from ...config import Count, from_mapping, settings_class, to_mapping
from ...errors import SettingsError, unknown_name
from ...extract.stage.settings import VARIANT_TABLES

Search = Literal["grid", "random"]
_PARTS = ("adapter", "train", "insertion", "placement", *VARIANT_TABLES)
_WHOLE = ("insertion", "placement")
_ENDS = ("low", "high")  # what a range has
_LONGEST_NAME = 100  # characters; file systems allow 255 bytes
_LONGEST_VALUE = 24
_DRAWS_A_TRIAL = 100
_FIXED_KEYS = {"grid": ("variant",), "random": ("variant", "trials", "seed")}


@settings_class
class RangeSettings:
    """A range that a random search draws from.

    Args:
        low, high: its ends, both included; where both are whole numbers (and `step`), so is what is drawn.
        log: draw on a logarithmic scale.
        step: draw low, low + step, low + 2 · step, …
    """

    low: int | float
    high: int | float
    log: bool = False
    step: Annotated[int | float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SettingsError(f"found {self.low} to {self.high}, expected finite numbers, low below high")
        if self.log and self.low <= 0:
            raise SettingsError(f"low: found {self.low}, expected more than 0 on a logarithmic scale")
        if self.log and self.step is not None:
            raise SettingsError("step: has no meaning beside log = true; remove one of them")

    def at(self, share: float) -> int | float:
        """Return the value at a share of the range, 0 to below 1; fractions have three significant digits.

        >>> RangeSettings(low=1e-4, high=1e-2, log=True).at(0.5), RangeSettings(low=32, high=256, step=32).at(0.99)
        (0.001, 256)
        """
        low, high = self.low, self.high
        whole = all(isinstance(n, int) for n in (low, high, self.step or 0))
        if self.step is not None:
            count = math.floor((high - low) / self.step + 1e-9) + 1
            return round(low + int(share * count) * self.step, 12)
        if whole and not self.log:
            return int(low) + int(share * (high - low + 1))
        found = low * (high / low) ** share if self.log else low + share * (high - low)
        return round(found) if whole else min(max(float(f"{found:.3g}"), low), high)


@settings_class
class _RandomSettings:
    trials: Count
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SearchPoint:
    """Where a variant that a grid or a random search made stands in it.

    Attributes:
        base: the variant of the file that it starts from.
        search: "grid" or "random".
        values: by key ("adapter.window"), what is set.
        seed: of the draw; None in a grid.
    """

    base: str
    search: Search
    values: Mapping[str, Any]
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class _Made:
    table: Mapping[str, Any]  # of a variant, as the file would have it
    point: SearchPoint
    where: str


def written_out(
    variants: Sequence[Mapping[str, Any]],
    grids: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    searches: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    train_keys: Sequence[str],
    check: Callable[[Mapping[str, Any]], object],
) -> tuple[list[Mapping[str, Any]], dict[str, SearchPoint], tuple[str, ...]]:
    """Put the points of all grids and random searches in place of the variants that they start from.

    Args:
        variants: tables of [[variants]], names and kinds checked.
        grids: `[sweep] grid`.
        searches: `[sweep] random`.
        train_keys: known keys of [train].
        check: raises SettingsError where a variant's table is refused.

    Returns:
        The variants' tables, in the file's order; the points by their variant's name; one line for each point that
        stands there twice, and is kept once.

    Raises:
        SettingsError: an unknown key or variant, a value that is refused, or one name for two points.
    """
    known = {v["name"]: v for v in variants}
    made: dict[str, list[_Made]] = {}
    for where, kind, table in _tables(grids, searches):
        given = _flat(table, where, kind)
        chosen = given.pop("variant", None)
        names = list(known) if chosen is None else _names(chosen, known, where)
        if kind == "grid":
            draws, seed = list(_combinations(given, where)), None
        else:
            fixed: dict[str, Any] = {name: given.pop(name) for name in ("trials", "seed") if name in given}
            settings = from_mapping(_RandomSettings, fixed, where=where)
            draws, seed = _drawn(given, settings, where), settings.seed
        for key in given:
            _check_key(key, where, train_keys)
        for name in names:
            for values in draws:
                point = SearchPoint(base=name, search=kind, values=values, seed=seed)
                one = _changed(known[name], values)
                _check_values(one, values, where, check)
                made.setdefault(name, []).append(_Made(table=one, point=point, where=where))
    return _merged(variants, made)


def _merged(
    variants: Sequence[Mapping[str, Any]], made: Mapping[str, Sequence[_Made]]
) -> tuple[list[Mapping[str, Any]], dict[str, SearchPoint], tuple[str, ...]]:
    found: list[Mapping[str, Any]] = []
    points: dict[str, SearchPoint] = {}
    notes: list[str] = []
    tables: dict[str, Mapping[str, Any]] = {v["name"]: v for v in variants if v["name"] not in made}
    for variant in variants:
        if variant["name"] not in made:
            found.append(variant)
            continue
        several = made[variant["name"]]
        named = zip(point_names(variant["name"], [m.point.values for m in several]), several, strict=True)
        for name, one in named:
            table = {**one.table, "name": name}
            if name in tables:
                if name not in points or {**tables[name]} != table:
                    raise SettingsError(
                        f"{one.where}: {name!r} is the name of another variant too; rename the variant that it starts "
                        "from, or write the values into one list"
                    )
                notes.append(f"{one.where}: {name} stands there twice; it is trained once")
                continue
            tables[name] = table
            points[name] = one.point
            found.append(table)
    return found, points, tuple(dict.fromkeys(notes))


def point_names(base: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name variants after what each sets: readable in a table, and safe as the names of folders.

    >>> point_names("trimodal", [{"adapter.window": 1, "train.lr": 3e-4}, {"adapter.window": 2, "train.lr": 3e-4}])
    ['trimodal+window=1+lr=0.0003', 'trimodal+window=2+lr=0.0003']
    >>> point_names("lavish", [{"insertion": "last 2"}, {"insertion": {"visual": [9, 11], "audio": [2, 3]}}])
    ['lavish+insertion=last-2', 'lavish+insertion=visual-9-11-audio-2-3']
    """
    keys = list(dict.fromkeys(key for values in points for key in values))
    short = {key: key.rpartition(".")[2] for key in keys}
    labels = {key: _value_labels([values[key] for values in points if key in values]) for key in keys}
    shown = {key: key if list(short.values()).count(short[key]) > 1 else short[key] for key in keys}
    found = []
    for values in points:
        parts = [f"{shown[key]}={labels[key][_as_json(value)]}" for key, value in values.items()]
        name = "+".join([base, *parts])
        if len(name) > _LONGEST_NAME:
            name = f"{base}+{sha256(_as_json(values).encode()).hexdigest()[:8]}"
        found.append(name)
    return found


def _value_labels(values: Sequence[Any]) -> dict[str, str]:
    """Return a short text for each value, by its JSON; its number in the list where a text is long or not its own."""
    distinct = list({_as_json(value): value for value in values}.items())
    texts = {key: _value_text(value) for key, value in distinct}
    counts = list(texts.values())
    return {
        key: text if len(text) <= _LONGEST_VALUE and counts.count(text) == 1 else f"no{number}"
        for number, (key, text) in enumerate(texts.items(), 1)
    }


def _value_text(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") if not isinstance(value, int | float) else text


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _tables(grids: Any, searches: Any) -> Iterator[tuple[str, Search, Mapping[str, Any]]]:
    kinds: tuple[tuple[Search, Any], ...] = (("grid", grids), ("random", searches))
    for kind, given in kinds:
        if isinstance(given, Mapping):
            yield f"sweep.{kind}", kind, given
        else:
            for number, table in enumerate(given):
                yield f"sweep.{kind}[{number}]", kind, table


def _flat(table: Mapping[str, Any], where: str, kind: Search) -> dict[str, Any]:
    """Return the keys dotted, however they were written: "adapter.window", adapter.window, [sweep.grid.adapter]."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        for name, one in _leaves(key, value):
            if name in found:
                raise SettingsError(f"{where}: {name!r} stands twice; write it once")
            if name not in _FIXED_KEYS[kind] and name.partition(".")[0] not in _PARTS:
                known = [*_FIXED_KEYS[kind], *(f"{p}.…" for p in _PARTS if p not in _WHOLE), *_WHOLE]
                raise SettingsError(f"{where}: {unknown_name('key', name, known)}")
            found[name] = one
    if not found.keys() - {*_FIXED_KEYS[kind]}:
        raise SettingsError(f'{where}: no key of a variant; expected for instance "train.lr" = [1e-4, 3e-4]')
    return found


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of nested tables, with their lists and ranges."""
    if not isinstance(value, Mapping) or key.partition(".")[0] not in _PARTS or not value.keys().isdisjoint(_ENDS):
        yield key, value
        return
    for inner, one in value.items():
        yield from _leaves(f"{key}.{inner}", one)


def _names(chosen: Any, known: Mapping[str, Any], where: str) -> list[str]:
    names = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"{where}.variant: found {chosen!r}, expected the name of a variant, or a list of names")
    for name in names:
        if name not in known:
            raise SettingsError(f"{where}.variant: {unknown_name('variant', name, known)}")
    return list(dict.fromkeys(names))


def _values(key: str, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise SettingsError(f'{where}."{key}": found {value!r}, expected a list of values')
    seen: set[str] = set()
    for one in value:
        if _as_json(one) in seen:
            raise SettingsError(f'{where}."{key}": the value {one!r} stands twice; expected each once')
        seen.add(_as_json(one))
    return list(value)


def _combinations(given: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    lists = [_values(key, value, where) for key, value in given.items()]
    for values in itertools.product(*lists):
        yield dict(zip(given, values, strict=True))


def _drawn(given: Mapping[str, Any], settings: _RandomSettings, where: str) -> list[dict[str, Any]]:
    """Draw distinct points; more trials only add to those of fewer, and equal seeds draw alike on every machine."""
    sources: dict[str, RangeSettings | list[Any]] = {
        key: from_mapping(RangeSettings, value, where=f'{where}."{key}"')
        if isinstance(value, Mapping)
        else _values(key, value, where)
        for key, value in given.items()
    }
    stream = random.Random(settings.seed)  # of which Python keeps random() the same in all versions
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_DRAWS_A_TRIAL * settings.trials):
        point = {}
        for key, source in sources.items():
            share = stream.random()
            point[key] = source.at(share) if isinstance(source, RangeSettings) else source[int(share * len(source))]
        found.setdefault(_as_json(point), point)
        if len(found) == settings.trials:
            return list(found.values())
    raise SettingsError(
        f"{where}.trials: found {settings.trials}, but there are hardly more than {len(found)} different combinations; "
        "lower it, or write a grid"
    )


def _check_key(key: str, where: str, train_keys: Sequence[str]) -> None:
    part, _, rest = key.partition(".")
    if part not in _WHOLE and not rest:
        raise SettingsError(f'{where}."{key}": name one of its keys, for instance "{part}.…"')
    if part == "train" and rest not in train_keys:
        raise SettingsError(f'{where}."{key}": {unknown_name("key", rest, train_keys)}')
    if part == "placement" and rest:
        raise SettingsError(f"{where}: {unknown_name('key', key, ['placement'])}")


def _changed(variant: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a variant's table with the values at their dotted keys."""
    found: dict[str, Any] = json.loads(json.dumps(to_mapping(variant)))
    for key, value in values.items():
        *parents, last = key.split(".")
        table = found
        for parent in parents:
            inner = table.get(parent)
            table[parent] = table = dict(inner) if isinstance(inner, dict) else {}
        table[last] = value
    return found


def _check_values(
    table: Mapping[str, Any], values: Mapping[str, Any], where: str, check: Callable[[Mapping[str, Any]], object]
) -> None:
    try:
        check(table)
    except SettingsError as error:
        adapter_keys = [key for key in values if key.startswith("adapter.")]
        advice = f'; name with variant = "…" those that have "{adapter_keys[0]}"' if adapter_keys else ""
        set_here = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        unknown = advice if "unknown key" in str(error) and "did you mean" not in str(error) else ""
        raise SettingsError(f"{where}: variant {table['name']!r} with {set_here}: {error}{unknown}") from None


def same_settings(tables: Mapping[str, str]) -> list[str]:
    """Return a line for each variant whose resolved settings are another one's too.

    Args:
        tables: by variant name, its settings as a text that is equal where they are.
    """
    first: dict[str, str] = {}
    found = []
    for name, text in tables.items():
        if text in first:
            found.append(f"{name} has the settings of {first[text]}: both are trained, and differ in name only")
        first.setdefault(text, name)
    return found
