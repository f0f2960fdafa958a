"""Specifications of what a store holds: items, small arrays, boundaries with their identity; and their comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ...errors import SettingsError, unknown_name
from .digests import Json, canonical_json, digest_json
from .int8 import SCALE

FORMAT_VERSION = 1
STORE_KIND = "feature store"
STORAGE_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2", "int8": "|i1"}  # bfloat16: bit patterns
INPUT_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One clip or one text.

    >>> Item(key=digest_json("what is heard first?"), source="question 12").key[:12]
    'bc981a143dc1'

    Args:
        key: SHA-256 of its content, 64 lower-case hex digits; its identity.
        source: its origin, for people: a path relative to the data root, or a text's id. It may change.
        size_bytes: size of the source file, 0 where there is none.
        mtime_ns: modification time of the source file in nanoseconds, 0 where there is none.
    """

    key: str
    source: str
    size_bytes: int = 0
    mtime_ns: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.key) or self.key == "0" * 64:
            raise SettingsError(f"item {self.source!r}: key {self.key!r} is not a SHA-256 digest of 64 hex digits")


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Data type and shape of a small array that is stored beside the state.

    Args:
        dtype: a name of INPUT_DTYPES.
        shape: of one item (dense) or of one token (ragged).
    """

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in INPUT_DTYPES:
            raise SettingsError(unknown_name("data type of an input", self.dtype, INPUT_DTYPES))
        object.__setattr__(self, "shape", _checked_shape(self.shape, "an input"))

    @property
    def size_bytes(self) -> int:
        """Bytes of one item or token."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class BoundarySpec:
    """Specification of one stored boundary of one encoder prefix.

    >>> spec = BoundarySpec(modality="visual", boundary=9, identity={"weights": "1f2e"}, dtype="float16", shape=(8, 4))
    >>> spec.path, spec.hidden_bytes
    ('visual/b09-020418781f7a', 64)

    Args:
        modality: `visual`, `audio`, `text` or another plain name.
        boundary: number of the unit that follows; 0 is after the embedding.
        identity: plain JSON of all that the values depend on (weights digest, configuration, preprocessing).
        dtype: storage data type: `float32`, `float16`, `bfloat16`, or `int8`, which adds the input `scale`.
        shape: dense: of one item, such as (T, N, D); ragged: of one token, such as (D,).
        ragged: whether items have different numbers of tokens.
        inputs: the small arrays stored beside the state, by name.

    Raises:
        SettingsError: another value.
    """

    modality: str
    boundary: int
    identity: dict[str, Any]
    dtype: str
    shape: tuple[int, ...]
    ragged: bool = False
    inputs: dict[str, ArraySpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.modality, *self.inputs):
            if not _NAME.fullmatch(name):
                raise SettingsError(f"{name!r} names a modality or an input: expected letters, digits, '_' and '-'")
        if self.boundary < 0:
            raise SettingsError(f"boundary {self.boundary}: a stored boundary counts from 0")
        if self.dtype not in STORAGE_DTYPES:
            raise SettingsError(unknown_name("storage data type", self.dtype, STORAGE_DTYPES))
        shape = _checked_shape(self.shape, f"{self.modality} boundary {self.boundary}")
        if not shape:
            raise SettingsError(f"{self.modality} boundary {self.boundary}: the shape of a state has at least one axis")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "identity", json.loads(canonical_json(self.identity)))
        if self.dtype == "int8":
            scale = ArraySpec(dtype="float32", shape=shape[:-1])
            if self.inputs.get(SCALE, scale) != scale:
                raise SettingsError(f"{self.modality} boundary {self.boundary}: the input {SCALE!r} of int8 is its own")
            object.__setattr__(self, "inputs", {**self.inputs, SCALE: scale})
        object.__setattr__(self, "inputs", {name: self.inputs[name] for name in sorted(self.inputs)})

    @property
    def key(self) -> str:
        """First 12 hex digits of the digest of all fields and of the format version."""
        return digest_json({"format": FORMAT_VERSION, **self.to_json()})[:12]

    @property
    def name(self) -> str:
        """Name of the boundary's folder, such as `b09-1f2e3d4c5b6a`."""
        return f"b{self.boundary:02d}-{self.key}"

    @property
    def path(self) -> str:
        """Path of the boundary's folder in the store, such as `visual/b09-1f2e3d4c5b6a`."""
        return f"{self.modality}/{self.name}"

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """NumPy data type of the stored values; int16 bit patterns for bfloat16."""
        return np.dtype(STORAGE_DTYPES[self.dtype])

    @property
    def hidden_bytes(self) -> int:
        """Bytes of the state of one item (dense) or of one token (ragged)."""
        return prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def unit_bytes(self) -> int:
        """Bytes of state and inputs of one item (dense) or of one token (ragged)."""
        return self.hidden_bytes + sum(array.size_bytes for array in self.inputs.values())

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        inputs = {name: {"dtype": a.dtype, "shape": list(a.shape)} for name, a in self.inputs.items()}
        return {
            "modality": self.modality,
            "boundary": self.boundary,
            "identity": self.identity,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "ragged": self.ragged,
            "inputs": inputs,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BoundarySpec:
        """Return the specification that `to_json` described; other keys are ignored."""
        inputs = {n: ArraySpec(dtype=a["dtype"], shape=tuple(a["shape"])) for n, a in fields["inputs"].items()}
        return cls(
            modality=fields["modality"],
            boundary=fields["boundary"],
            identity=fields["identity"],
            dtype=fields["dtype"],
            shape=tuple(fields["shape"]),
            ragged=fields["ragged"],
            inputs=inputs,
        )


def _checked_shape(shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if any(n < 1 for n in sizes):
        raise SettingsError(f"{where}: shape {shape!r} has an axis that is not a positive number")
    return sizes


_ABSENT = "(absent)"


@dataclass(frozen=True)
class FieldDifference:
    """One field, by its dotted name, with the requested value and the stored one."""

    field: str
    requested: Json
    stored: Json

    def __str__(self) -> str:
        return f"{self.field}: requested {_short(self.requested)}, stored {_short(self.stored)}"


def differences(requested: Json, stored: Json, field: str = "") -> list[FieldDifference]:
    """Return every leaf in which two JSON values differ, in order of name.

    >>> [str(d) for d in differences({"size": 112, "fit": "crop"}, {"size": 224, "fit": "crop"})]
    ['size: requested 112, stored 224']

    Args:
        requested: plain JSON.
        stored: plain JSON to compare it with.
        field: dotted name of the two values in what they are parts of.

    Returns:
        The differences; [] when the values are equal, numbers of the same type included.
    """
    if isinstance(requested, Mapping) and isinstance(stored, Mapping):
        found: list[FieldDifference] = []
        for name in sorted({*requested, *stored}):
            inner = f"{field}.{name}" if field else name
            found += differences(requested.get(name, _ABSENT), stored.get(name, _ABSENT), inner)
        return found
    if requested == stored and type(requested) is type(stored):
        return []
    return [FieldDifference(field, requested, stored)]


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
