"""Index from item key to row, for millions of items, with a look-up cost that does not grow with their number.

Keys are SHA-256 digests, so their first bits are spread evenly: a table over those bits gives the position of a key
among the sorted digests up to a few places, which are compared at once. A binary search waits for memory 20 times among
a million keys, this four times among any number. It takes 24 to 32 bytes an item; a dict takes 200.

Letters: R records, n indexed keys, B keys to find.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 4096  # keys; each takes some 200 bytes while it is looked for
_WIDEST = 64  # keys that are no digests may crowd in one place; then a binary search is made


class KeyIndex:
    """Sorted first 8 bytes of the keys, each with its row and its place in the table of keys."""

    def __init__(self, keys: NDArray[np.uint8], places: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Index some of `keys`.

        Args:
            keys: (R, 32) digests; not copied.
            places: (n,) indices of the keys to index, each a different key.
            rows: (n,) row of each.
        """
        prefixes = np.ascontiguousarray(keys[:, :8]).view(">u8").reshape(-1)[places].astype(np.uint64)
        order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[order]
        self._rows = rows[order]
        self._places = places[order]
        self._keys = keys
        bits = max(len(rows).bit_length() - 1, 1)
        self._shift = np.uint64(64 - bits)
        first_bits = np.arange(1 << bits, dtype=np.uint64) << self._shift
        self._starts = np.searchsorted(self._prefixes, first_bits).astype(np.int64)
        crowd = int(np.diff(self._starts, append=len(rows)).max())
        self._window = np.arange(crowd + 1) if crowd <= _WIDEST else None

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the row (B,) of each key, -1 for a key that is not indexed.

        Args:
            keys: 64 hex digits each.

        Raises:
            ValueError: a key of other characters, or of another length.
        """
        if not len(self._rows):
            return np.full(len(keys), -1, np.int64)
        if len(keys) > _AT_ONCE:
            return np.concatenate([self.find(keys[at : at + _AT_ONCE]) for at in range(0, len(keys), _AT_ONCE)])
        wanted = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), 32)
        prefixes = np.ascontiguousarray(wanted[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
        at = np.minimum(self._lower_bound(prefixes), len(self._rows) - 1)
        rows = self._rows[at]
        differ = (self._keys[self._places[at]] != wanted).any(axis=1)
        for i in np.flatnonzero(differ):
            rows[i] = self._scan(int(at[i]), prefixes[i], wanted[i])
        return rows

    def _lower_bound(self, prefixes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return np.searchsorted of the prefixes (B,)."""
        if self._window is None:
            return np.searchsorted(self._prefixes, prefixes)
        starts = self._starts[(prefixes >> self._shift).astype(np.int64)]
        places = starts[:, None] + self._window  # one place more than the fullest bucket has
        smaller = self._prefixes.take(places, mode="clip") < prefixes[:, None]
        smaller &= places < len(self._prefixes)
        found: NDArray[np.int64] = starts + smaller.sum(axis=1)
        return found

    def _scan(self, at: int, prefix: np.uint64, key: NDArray[np.uint8]) -> int:
        while at < len(self._rows) and self._prefixes[at] == prefix:
            if np.array_equal(self._keys[self._places[at]], key):
                return int(self._rows[at])
            at += 1
        return -1
