"""Fewer threads are taken where more are slower, and said to be."""

from __future__ import annotations

import pytest
import torch

import talik.demo.thread_check as thread_check
from talik.demo.thread_check import fewer_threads, threads_now


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 20.0}, 1),
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 0.97}, 2),  # too little to change what is usual
        ({1: 4.0, 2: 2.0, 4: 3.0}, 2),
        ({1: 1.0, 2: 2.0, 4: 3.0}, 1),
        ({1: 8.0, 2: 4.0, 4: 2.1, 8: 1.0}, 8),
    ],
)
def test_as_few_threads_are_taken_as_are_not_slower(seconds: dict[int, float], expected: int) -> None:
    most = max(seconds)
    threads, said = fewer_threads(most, seconds.__getitem__)
    assert threads == expected
    assert (said is None) == (expected == most)
    if said is not None:
        ratio = seconds[most] / seconds[expected]
        assert said == (
            f"other processes are busy: {most} threads take {ratio:.1f} times as long as {expected}; "
            f"going on with {expected}"
        )


def test_the_machine_is_measured_where_it_can_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    assert threads_now("cuda") == (before, None)
    monkeypatch.setattr(thread_check.torch, "get_num_threads", lambda: 2)
    threads, said = threads_now("cpu")
    assert threads in (1, 2)
    assert (said is None) == (threads == 2)
