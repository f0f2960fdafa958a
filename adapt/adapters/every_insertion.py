"""What most kinds are: an adapter of its own at every insertion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class AtEveryInsertion(nn.Module):
    """The adapters of all insertions.

    A kind derives from it and names in `make` what stands at one insertion.

    Args:
        settings: every choice of the kind.
        dims: for each insertion, the channels of each modality that takes part.
    """

    def __init__(self, settings: Any, dims: Sequence[dict[str, int]]) -> None:
        super().__init__()
        self.insertions = nn.ModuleList(self.make(settings, here) for here in dims)

    @staticmethod
    def make(settings: Any, dims: dict[str, int]) -> nn.Module:
        """The adapter of one insertion: called with a `Triple`, it returns `Deltas`."""
        raise NotImplementedError

    def at(self, index: int) -> nn.Module:
        """The adapter of the index-th insertion."""
        return self.insertions[index]
