"""Which fields of two identities differ: what `talik store why` and mismatch errors say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ABSENT = "(absent)"


@dataclass(frozen=True)
class FieldDifference:
    """One field, by its dotted name, with the value asked for and the value stored."""

    field: str
    asked: Any
    stored: Any

    def __str__(self) -> str:
        """Return one clause of a message."""
        return f"{self.field}: asked {_short(self.asked)}, stored {_short(self.stored)}"


def differences(asked: Any, stored: Any, field: str = "") -> list[FieldDifference]:
    """Return every leaf in which two JSON values differ, in order of name; [] when they are equal."""
    if isinstance(asked, dict) and isinstance(stored, dict):
        found: list[FieldDifference] = []
        for name in sorted({*asked, *stored}):
            inner = f"{field}.{name}" if field else name
            found += differences(asked.get(name, _ABSENT), stored.get(name, _ABSENT), inner)
        return found
    if asked == stored and type(asked) is type(stored):
        return []
    return [FieldDifference(field, asked, stored)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
