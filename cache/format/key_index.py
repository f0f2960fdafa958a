"""Index from item key to row, for millions of items: 24 bytes an item, where a dict takes 200.

Keys are SHA-256 digests, so their first 8 bytes nearly always differ: a binary search among these finds the place of a
key, whose 32 bytes are then compared.

Letters: R records, n indexed keys, B keys to find.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 4096  # keys; each takes some 200 bytes while it is looked for


class KeyIndex:
    """Sorted first 8 bytes of the keys, each with its row and its place in the table of keys.

    Args:
        keys: (R, 32) digests; not copied.
        places: (n,) indices of the keys to index, each a different key.
        rows: (n,) row of each.
    """

    def __init__(self, keys: NDArray[np.uint8], places: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        prefixes = _prefixes(keys)[places]
        order = np.argsort(prefixes, kind="stable")
        self._prefixes, self._rows, self._places = prefixes[order], rows[order], places[order]
        self._keys = keys

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
        prefixes = _prefixes(wanted)
        at = np.minimum(np.searchsorted(self._prefixes, prefixes), len(self._rows) - 1)
        rows = self._rows[at]
        differ = (self._keys[self._places[at]] != wanted).any(axis=1)
        for i in np.flatnonzero(differ):
            rows[i] = self._scan(int(at[i]), prefixes[i], wanted[i])
        return rows

    def _scan(self, at: int, prefix: np.uint64, key: NDArray[np.uint8]) -> int:
        while at < len(self._rows) and self._prefixes[at] == prefix:
            if np.array_equal(self._keys[self._places[at]], key):
                return int(self._rows[at])
            at += 1
        return -1


def _prefixes(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the first 8 bytes of digests (B, 32) as numbers (B,)."""
    return np.ascontiguousarray(keys[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
