"""Settings are read strictly: every mistake is named with its place, the value found and what was expected."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talik import errors
from talik.config import from_mapping, to_mapping


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int
    on: bool = False
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    cut: int | tuple[int, ...] | Literal["auto"] = "auto"
    maybe: Inner | None = None
    free: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "size: missing; expected a whole number"),
        ({"size": 1, "sise": 2}, "sise: unknown key 'sise'; did you mean 'size'?"),
        ({"size": True}, "size: found True, expected a whole number"),
        ({"size": 1, "on": "False"}, "on: found 'False', expected true or false"),
        ({"size": 1, "inner": {"mode": "c"}}, "inner.mode: found 'c', expected one of 'a', 'b'"),
        ({"size": 1, "many": [{}, {"rate": "x"}]}, "many[1].rate: found 'x', expected a number"),
        ({"size": 1, "maybe": {"mood": "a"}}, "maybe.mood: unknown key 'mood'; did you mean 'mode'?"),
        (
            {"size": 1, "cut": 1.5},
            "cut: found 1.5, expected a whole number or a list of",
        ),
        ({"size": 1, "inner": 3}, "inner: found 3, expected a table"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.SettingsError) as caught:
        from_mapping(Outer, values, where="")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@given(
    size=st.integers(),
    on=st.booleans(),
    rates=st.lists(st.floats(allow_nan=False), max_size=3),
    cut=st.one_of(st.integers(), st.lists(st.integers(), max_size=3).map(tuple), st.just("auto")),
)
def test_settings_survive_the_way_out_and_in(size: int, on: bool, rates: list[float], cut: Any) -> None:
    settings = Outer(size=size, on=on, many=tuple(Inner(rate=r) for r in rates), cut=cut)
    assert from_mapping(Outer, to_mapping(settings), where="") == settings


def test_every_error_pickles_and_is_a_built_in_too() -> None:
    tree = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.TalikError)]
    assert len(tree) > 10
    for cls in tree:
        back = pickle.loads(pickle.dumps(cls("a.mp4: found x, expected y")))
        assert type(back) is cls
        assert str(back) == "a.mp4: found x, expected y"
        if cls is not errors.TalikError:
            assert any(issubclass(cls, b) for b in (ValueError, OSError, ArithmeticError, RuntimeError)), cls
