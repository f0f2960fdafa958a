"""The time axis of encoders that take whole clips: which tokens belong to which time step, found by trying.

Letters: B clips, F frames of a clip, P time steps that the encoder tells apart, T segments, L tokens of a clip,
N tokens of a segment, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import SettingsError, TrunkError


@dataclass(frozen=True, eq=False)
class ClipAxis:
    """Where the tokens of each segment lie among those of a clip.

    Attributes:
        num_frames: F, the frames that enter together.
        num_steps: P; frames F/P·p … F/P·(p + 1) − 1 make step p.
        num_segments: T; steps P/T·t … P/T·(t + 1) − 1 make segment t.
        places: (T·N,) int64, positions among the L tokens, segment by segment and ascending in each.
        num_shared: tokens that belong to no segment (a class token of the whole clip).
    """

    num_frames: int
    num_steps: int
    num_segments: int
    places: Tensor
    num_shared: int

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return (B·T, N, D) of `hidden` (B, L, D); tokens that belong to no segment are left out."""
        found = hidden.index_select(1, self.places.to(hidden.device))
        return found.reshape(hidden.shape[0] * self.num_segments, -1, hidden.shape[-1])

    def with_tokens(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return `hidden` (B, L, D) with `tokens` (B·T, N, D) in their places; the others stay as they are."""
        flat = tokens.reshape(hidden.shape[0], -1, hidden.shape[-1])
        return hidden.index_copy(1, self.places.to(hidden.device), flat)

    def each_segment(self, pooled: Tensor) -> Tensor:
        """Return (B·T, …) of what there is once a clip, (B, …)."""
        return pooled.repeat_interleave(self.num_segments, dim=0)


def find_clip_axis(embed: Callable[[Tensor], Tensor], frames: Tensor, num_segments: int | None) -> ClipAxis:
    """Find the time axis by changing one frame after another: the tokens that change with it are its time step's.

    Args:
        embed: from (1, F, C, H, W) to the hidden tensor at boundary 0, (1, L, D).
        frames: (1, F, C, H, W), a clip of noise.
        num_segments: T; None for P.

    Raises:
        TrunkError: tokens that depend on several time steps, or steps of unequal size.
        SettingsError: the P time steps cannot be shared out evenly among T segments.
    """
    num_frames = frames.shape[1]
    before = embed(frames)
    if before.ndim != 3:
        raise TrunkError(
            f"a whole clip's hidden tensor: found shape {tuple(before.shape)}, expected (B, L, D); "
            "its tokens cannot be regrouped by segment"
        )
    groups: list[tuple[int, ...]] = []
    for number in range(num_frames):
        changed = frames.clone()
        changed[:, number] = -frames[:, number] - 0.5
        touched = (embed(changed) != before).any(dim=2)[0].nonzero().flatten()
        group = tuple(touched.tolist())
        if not groups or group != groups[-1]:
            groups.append(group)
    every = [place for group in groups for place in group]
    even = len({len(group) for group in groups}) == 1 and num_frames % len(groups) == 0
    if not every or not even or len(set(every)) != len(every):
        raise TrunkError(
            f"a whole clip of {num_frames} frames: its first tokens mix time steps, so they cannot be regrouped by "
            "segment; expected each token to see the frames of one time step"
        )
    axis = _grouped(groups, num_frames, before.shape[1], num_segments)
    return replace(axis, places=axis.places.to(before.device))


def _grouped(groups: list[tuple[int, ...]], num_frames: int, length: int, num_segments: int | None) -> ClipAxis:
    num_steps = len(groups)
    wanted = num_steps if num_segments is None else num_segments
    if wanted < 1 or num_steps % wanted:
        known = ", ".join(str(n) for n in range(1, num_steps + 1) if num_steps % n == 0)
        raise SettingsError(
            f"segments: found {wanted}, expected one of {known}: the encoder takes {num_frames} frames of a clip at "
            f"once and tells {num_steps} time steps apart"
        )
    per_segment = num_steps // wanted
    places: list[int] = []
    for start in range(0, num_steps, per_segment):
        places += sorted(place for group in groups[start : start + per_segment] for place in group)
    return ClipAxis(
        num_frames=num_frames,
        num_steps=num_steps,
        num_segments=wanted,
        places=torch.tensor(places),
        num_shared=length - len(places),
    )
