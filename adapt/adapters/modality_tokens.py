"""What meets at an insertion: the tokens of three modalities, and what an adapter returns to be added to them.

Letters: B items, T segments, L text tokens, N tokens of a frame or window, D channels; v, a, t the modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Triple:
    """The tokens of the three modalities at one insertion; a modality that takes no part is None.

    Args:
        visual: (B, T, Nv, Dv).
        audio: (B, T, Na, Da).
        text: (B, L, Dt), padded at the end.
        text_mask: (B, L) bool, true where a token is real.
    """

    visual: Tensor | None = None
    audio: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None

    def get(self, modality: str) -> Tensor | None:
        """The tokens of one modality."""
        tokens: Tensor | None = getattr(self, modality)
        return tokens


@dataclass(frozen=True)
class Deltas:
    """What is to be added to each modality's tokens, of their shapes; None adds nothing."""

    visual: Tensor | None = None
    audio: Tensor | None = None
    text: Tensor | None = None

    def get(self, modality: str) -> Tensor | None:
        """What is to be added to one modality."""
        delta: Tensor | None = getattr(self, modality)
        return delta
