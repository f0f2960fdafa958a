"""Finds rows by item key among millions, at a cost that does not grow with their number.

Keys are SHA-256 digests, so their first bits are spread evenly: a table over those bits says where among the sorted
digests a key would stand, give or take a few places, which are compared at once. A binary search waits for memory 20
times among a million keys, this four times among any number. 24 to 32 bytes an item; a dict takes 200.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_AT_ONCE = 4096  # keys; each takes some 200 bytes while it is looked for
_WIDEST = 64  # keys that are no digests may crowd in one place: then by binary search


class KeyIndex:
    """The digests' first 8 bytes in order, each with its row and its place in the table of keys."""

    def __init__(self, keys: Array, places: Array, rows: Array) -> None:
        """Index some of `keys`.

        Args:
            keys: (records, 32) uint8; not copied.
            places: (n,) int64, which of `keys` are indexed, each a different key.
            rows: (n,) int64, the row of each.
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
        """Return the number of keys."""
        return len(self._rows)

    def find(self, keys: Sequence[str]) -> Array:
        """Return the row of each key (len(keys),) int64, -1 where there is none; `keys` are 64 hex digits each."""
        if not len(self._rows):
            return np.full(len(keys), -1, np.int64)
        if len(keys) > _AT_ONCE:
            return np.concatenate([self.find(keys[at : at + _AT_ONCE]) for at in range(0, len(keys), _AT_ONCE)])
        asked = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), 32)
        prefixes = np.ascontiguousarray(asked[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
        at = np.minimum(self._lower_bound(prefixes), len(self._rows) - 1)
        rows = self._rows[at]
        differ = (self._keys[self._places[at]] != asked).any(axis=1)
        for i in np.flatnonzero(differ):
            rows[i] = self._scan(int(at[i]), prefixes[i], asked[i])
        return rows

    def _lower_bound(self, prefixes: Array) -> Array:
        """Return where each prefix stands, or would, as np.searchsorted does."""
        if self._window is None:
            return np.searchsorted(self._prefixes, prefixes)
        starts = self._starts[(prefixes >> self._shift).astype(np.int64)]
        places = starts[:, None] + self._window  # one place more than the fullest bucket has
        smaller = self._prefixes.take(places, mode="clip") < prefixes[:, None]
        smaller &= places < len(self._prefixes)
        return starts + smaller.sum(axis=1)

    def _scan(self, at: int, prefix: np.uint64, key: Array) -> int:
        while at < len(self._rows) and self._prefixes[at] == prefix:
            if np.array_equal(self._keys[self._places[at]], key):
                return int(self._rows[at])
            at += 1
        return -1
