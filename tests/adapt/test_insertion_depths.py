"""Insertions over encoders of different depth: from the end, by depth, aligned; what they resolved to is told."""

from __future__ import annotations

from typing import Any

import pytest

from talik.adapt.model.insertion import insertion_lines, resolve_insertions
from talik.errors import SettingsError

DEPTHS = {"visual": 24, "audio": 12, "text": 6}


def boundaries(wanted: Any, placement: Any = "between") -> dict[str, tuple[int, ...]]:
    resolved = resolve_insertions(wanted, DEPTHS, placement=placement)
    return {m: resolved.of(m) for m in DEPTHS}


def test_last_counts_from_each_end() -> None:
    assert boundaries("last 2") == {"visual": (22, 23), "audio": (10, 11), "text": (4, 5)}


def test_last_is_clamped_and_says_so() -> None:
    resolved = resolve_insertions("last 8", DEPTHS)
    assert resolved.of("text") == (0, 0, 0, 1, 2, 3, 4, 5)
    assert resolved.of("visual") == tuple(range(16, 24))
    assert resolved.notes == ("text: 'last 8' reaches below the first of 6 units; clamped at boundary 0",)
    with pytest.raises(SettingsError, match="a unit takes one parallel adapter"):
        resolve_insertions("last 8", DEPTHS, placement="parallel")
    assert boundaries("last 8", "inside")["text"] == (0, 1, 2, 3, 4, 5)


def test_depths_are_never_deeper_than_asked() -> None:
    assert boundaries((0.5, 0.75)) == {"visual": (12, 18), "audio": (6, 9), "text": (3, 4)}
    assert boundaries({"visual": (0.9,), "text": (3,)}) == {"visual": (21,), "audio": (), "text": (3,)}
    tenths = tuple(i / 10 for i in range(10))
    assert resolve_insertions(tenths, {"visual": 10}).of("visual") == tuple(range(10))  # 0.3 * 10 is 3, 0.7 * 10 is 7


def test_the_end_is_no_place_for_a_parallel_adapter() -> None:
    assert boundaries((1.0,)) == {"visual": (24,), "audio": (12,), "text": (6,)}
    resolved = resolve_insertions((1.0,), DEPTHS, placement="parallel")
    assert [resolved.of(m) for m in DEPTHS] == [(23,), (11,), (5,)]
    assert resolved.notes[2] == "text: depth 1.0 is after the last of 6 units; clamped at 5"


def test_aligned_takes_the_relative_depth_of_the_one_that_is_given() -> None:
    wanted = {"visual": (0, 12, 23), "audio": "aligned", "text": "aligned"}
    assert boundaries(wanted) == {"visual": (0, 12, 23), "audio": (0, 6, 11), "text": (0, 3, 5)}
    deepest = {"audio": (6,), "visual": (18,), "text": "aligned"}
    assert boundaries(deepest)["text"] == (4,)  # of visual's 24 units, not of audio's 12
    every = {"visual": tuple(range(24)), "text": "aligned"}
    resolved = resolve_insertions(every, DEPTHS)
    assert resolved.of("text") == tuple(k // 4 for k in range(24))
    assert resolved.notes[0].startswith("text: several insertions share a boundary: 0, 0, 0, 0, 1")
    with pytest.raises(SettingsError, match="takes one parallel adapter, not two"):
        resolve_insertions(every, DEPTHS, placement="parallel")


def test_inside_names_units_each_once_in_lists_of_any_length() -> None:
    found = boundaries({"visual": (-2, -1), "text": (3,)}, "inside")
    assert found == {"visual": (22, 23), "audio": (), "text": (3,)}
    for wrong, message in (({"text": (6,)}, "found 6, expected a boundary from 0 to 5"), ({"text": (1, 1)}, "each")):
        with pytest.raises(SettingsError, match=message):
            resolve_insertions(wrong, DEPTHS, placement="inside")
    with pytest.raises(SettingsError, match=r"insertion.visual: this encoder has no units"):
        resolve_insertions("last 1", {"visual": 0}, placement="inside")


def test_what_it_resolved_to_is_told() -> None:
    where = "visual at 22, 23 of 24 units; audio at 10, 11 of 12 units; text at 4, 5 of 6 units"
    assert resolve_insertions("last 2", DEPTHS).summary(DEPTHS) == where
    assert insertion_lines(resolve_insertions("last 2", DEPTHS), DEPTHS, "last 2") == [f"insertion 'last 2': {where}"]
    plain = {"visual": (3,), "text": (2,)}
    assert insertion_lines(resolve_insertions(plain, DEPTHS), DEPTHS, plain) == []
    assert insertion_lines(resolve_insertions(None, DEPTHS), DEPTHS, None) == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((9.0, 11.0), "insertion.visual: found 9.0, expected a depth from 0.0 to 1.0"),
        ({"visual": "aligned"}, 'expected boundaries, or "aligned" beside a modality with them'),
        ({"visual": (3,), "text": "alined"}, "insertion.text: found 'alined'"),
        ({"visual": (0.9, 0.1)}, "expected boundaries in rising order"),
        ({"visuals": (1,)}, "unknown modality 'visuals'; did you mean 'visual'"),
        ({"visual": (25,)}, "found 25, expected a boundary from 0 to 24"),
        ({"visual": (1, 2), "text": (1,)}, "lists of one length"),
        ("last 0", "K at least 1"),
    ],
)
def test_mistakes_are_named(wanted: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_insertions(wanted, DEPTHS)


def test_an_insertion_that_no_encoder_reaches_is_refused() -> None:
    from talik.adapt.model.insertion import check_reach

    check_reach("last 12", {"visual": 12, "text": 6})
    check_reach(None, {"visual": 12})
    with pytest.raises(SettingsError, match=r"'last 13' of 12 units \(visual\); expected \"last 12\" at most"):
        check_reach("last 13", {"visual": 12, "text": 6})
