"""The order in which an extraction computes, where a training beside it waits for what its next batch needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...cache.feature_store import Item

_MOST_SHARDS = 512  # that a boundary has more than it would have otherwise

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ItemOrder:
    """Clips and texts in the order in which they are first needed.

    Attributes:
        clips: their ids.
        texts: of questions.
        clips_at_once: how many are needed at once: the most of one batch.
    """

    clips: tuple[str, ...]
    texts: tuple[str, ...]
    clips_at_once: int

    def of_clips(self, found: Mapping[str, T]) -> dict[str, T]:
        """Return what is found by clip id in this order; clips that it does not name come last, as they were."""
        return {name: found[name] for name in self.clips if name in found} | dict(found)

    def of_texts(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of texts in this order; those that it does not name come last, as they were."""
        by_text = {item.source: item for item in items}
        return list(({text: by_text[text] for text in self.texts if text in by_text} | by_text).values())

    def clips_per_shard(self, most: int, num_clips: int) -> int:
        """Return how many clips a new shard holds: those of a batch, for nobody reads a shard before it is finished.

        Args:
            most: how many it may hold.
            num_clips: of the data set, which bounds the number of shards.
        """
        return min(most, max(1, self.clips_at_once, -(-num_clips // _MOST_SHARDS)))


def in_order_of_need(keys: Iterable[Sequence[str]], ranks: Mapping[str, int]) -> list[int]:
    """Return the numbers of some lists of keys, sorted by the key of each that is needed first.

    >>> in_order_of_need([["c", "d"], ["b"], ["e", "a"]], {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4})
    [2, 1, 0]
    """
    firsts = [min((ranks.get(key, len(ranks)) for key in several), default=len(ranks)) for several in keys]
    return sorted(range(len(firsts)), key=firsts.__getitem__)
