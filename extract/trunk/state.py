"""What crosses a boundary of a trunk: the hidden tensor, and the context that the later units need.

Letters: B clips, T segments (the encoder's batch is B*T, t fastest), N tokens, L tokens of a text, D channels,
H W the grid of a feature map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import SettingsError, TrunkError
from .clip_axis import ClipAxis
from .host_reads import HostRead
from .tracing import map_tensors

Layout = Literal["NLC", "NHWC", "NCHW"]
RANKS: dict[str, int] = {"NLC": 3, "NHWC": 4, "NCHW": 4}


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """The arguments beside the hidden tensor that each unit takes, and the small inputs from which they were made.

    Attributes:
        inputs: the encoder's own small inputs for this batch (token ids, masks), each with the batch first; empty
            where the context does not depend on the batch's content.
        batch_size: items in the batch.
        calls: one (args, kwargs) for each module call of the units, with None where the hidden tensor goes.
        signature: shapes and types of the encoder's inputs, the batch left out.
        rebuild: makes the context of another batch from its inputs, by the encoder's own forward.
        aside: parts of the encoder's output that the embedding alone decides; {} for a restored or regrouped state.
        dtype: that the floating-point arguments were brought to; None as the encoder's own forward made them.
        reads: numbers that the encoder's forward read from tensors on the way to the last unit.
    """

    inputs: dict[str, Tensor]
    batch_size: int
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    signature: tuple[Any, ...]
    rebuild: Callable[[Mapping[str, Tensor], int, tuple[Any, ...], torch.device], Context] = field(repr=False)
    aside: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    reads: tuple[HostRead, ...] = ()

    def to(self, device: torch.device | str) -> Context:
        """Return the context with every tensor on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        calls = map_tensors(self.calls, lambda t: t.to(device))
        aside = {path: tensor.to(device) for path, tensor in self.aside.items()}
        return dataclasses.replace(self, inputs=moved, calls=calls, aside=aside)

    def in_dtype(self, dtype: torch.dtype) -> Context:
        """Return the context with all floating-point arguments in `dtype`; numbers beyond its range are its limits."""
        calls = map_tensors(self.calls, lambda t: _cast(t, dtype) if t.is_floating_point() else t)
        return dataclasses.replace(self, calls=calls, dtype=dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """A batch at one boundary.

    Attributes:
        hidden: (B*T, L, D) for "NLC", (B*T, H, W, D) for "NHWC", (B*T, D, H, W) for "NCHW"; (B, L, D) where whole
            clips enter the encoder.
        layout: the order of the axes of `hidden`.
        boundary: the number of units that have run.
        context: what the later units take beside `hidden`.
        lengths: (B*T,) int64, tokens of each item; None where all tokens are real.
        num_prefix_tokens: tokens ahead of the grid (class, registers); 0 for feature maps and whole clips.
        clips: the time axis, where whole clips enter the encoder; else None.

    Example:
        >>> import numpy as np, talik
        >>> encoder = talik.load_encoder("timm:test_vit", modality="visual", weights="random", image_size=32)
        >>> state = encoder.embed(encoder.preprocess(np.zeros((2, 32, 32, 3), np.uint8)))
        >>> state.boundary, state.layout, tuple(state.hidden.shape)
        (0, 'NLC', (2, 5, 64))
        >>> encoder.run(state, 0, 3).boundary
        3
    """

    hidden: Tensor
    layout: Layout
    boundary: int
    context: Context
    lengths: Tensor | None = None
    num_prefix_tokens: int = 0
    clips: ClipAxis | None = None

    def __post_init__(self) -> None:
        if self.hidden.ndim != RANKS[self.layout]:
            raise TrunkError(
                f"hidden has shape {tuple(self.hidden.shape)}, expected {RANKS[self.layout]} axes ({self.layout})"
            )

    @property
    def batch_size(self) -> int:
        """Items in the batch: B*T, or B where whole clips enter the encoder."""
        return self.hidden.shape[0]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width in tokens, or None where tokens are a plain sequence."""
        shape = self.hidden.shape
        return {"NLC": None, "NHWC": (shape[1], shape[-2]), "NCHW": (shape[-2], shape[-1])}[self.layout]

    def replace(self, **changes: Any) -> State:
        """Return a copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def tokens(self) -> Tensor:
        """Return `hidden` as (B*T, N, D), prefix tokens first, the grid row by row; a view where that is possible.

        Of whole clips each segment's tokens; a class token of the whole clip belongs to none and is left out.
        """
        if self.clips is not None:
            return self.clips.tokens(self.hidden)
        if self.layout == "NHWC":
            return self.hidden.flatten(1, 2)
        if self.layout == "NCHW":
            return self.hidden.flatten(2).transpose(1, 2)
        return self.hidden

    def from_tokens(self, tokens: Tensor) -> State:
        """Return this state with `hidden` made from `tokens` (B*T, N, D), the exact inverse of `tokens()`.

        What `tokens()` left out is kept as it is.

        Raises:
            TrunkError: another shape than `tokens()` has.
        """
        expected = self.tokens().shape
        if tokens.shape != expected:
            raise TrunkError(f"tokens have shape {tuple(tokens.shape)}, expected {tuple(expected)}")
        hidden = tokens
        if self.clips is not None:
            hidden = self.clips.with_tokens(self.hidden, tokens)
        elif self.layout == "NHWC":
            hidden = tokens.reshape(self.hidden.shape)
        elif self.layout == "NCHW":
            hidden = tokens.transpose(1, 2).reshape(self.hidden.shape)
        return self.replace(hidden=hidden)

    def to(self, device: torch.device | str) -> State:
        """Return the state with hidden, lengths and context on `device`."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return self.replace(hidden=self.hidden.to(device), lengths=lengths, context=self.context.to(device))

    def split(self, sizes: int | Sequence[int]) -> list[State]:
        """Cut the batch into pieces of `sizes` items (an int: pieces of that many); each gets its own context."""
        wanted = sizes if isinstance(sizes, int) else list(sizes)
        pieces = torch.split(torch.arange(self.batch_size), wanted)
        return [self._rows(slice(int(piece[0]), int(piece[-1]) + 1) if len(piece) else slice(0)) for piece in pieces]

    def take(self, rows: Tensor) -> State:
        """Return the items at `rows` (n,) int64, in that order, an item as often as it is named, with their context."""
        return self._rows(rows)

    def _rows(self, rows: slice | Tensor) -> State:
        hidden = self.hidden.index_select(0, rows) if isinstance(rows, Tensor) else self.hidden[rows]
        inputs = {name: tensor[rows] for name, tensor in self.context.inputs.items()}
        context = self.context.rebuild(inputs, hidden.shape[0], self.context.signature, hidden.device)
        lengths = None if self.lengths is None else self.lengths[rows]
        return self.replace(hidden=hidden, lengths=lengths, context=context)

    @staticmethod
    def concat(states: Sequence[State], *, context: Context | None = None) -> State:
        """Join states along the batch; shorter texts are padded with zeros, and the context is rebuilt for the whole.

        Args:
            states: of one boundary.
            context: that of the whole, where it is known from states of the same items at another boundary.

        Raises:
            SettingsError: no states, or states of different boundaries or layouts.
        """
        if not states:
            raise SettingsError("State.concat: found no states, expected at least one")
        first = states[0]
        for state in states[1:]:
            if (state.boundary, state.layout) != (first.boundary, first.layout):
                found = f"boundary {state.boundary} {state.layout} beside {first.boundary} {first.layout}"
                raise SettingsError(f"State.concat: found {found}, expected one boundary and layout")
        hidden = _join([s.hidden for s in states])
        if context is None:
            inputs = {name: _join([s.context.inputs[name] for s in states]) for name in first.context.inputs}
            longest = max(states, key=lambda s: s.hidden.shape[1] if s.layout == "NLC" else 0)
            context = first.context.rebuild(inputs, hidden.shape[0], longest.context.signature, hidden.device)
        lengths = None
        if all(s.lengths is not None for s in states):
            lengths = torch.cat([s.lengths for s in states if s.lengths is not None])
        return first.replace(hidden=hidden, lengths=lengths, context=context)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # The lowest float32, which masks are filled with, would round to -inf in bfloat16, and a row of those give NaN.
    limits = torch.finfo(dtype)
    held = tensor.clamp(limits.min, limits.max) if limits.bits < torch.finfo(tensor.dtype).bits else tensor
    return held.to(dtype)


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the batch, zero-padding axis 1 to the longest."""
    if parts[0].ndim > 1 and len({p.shape[1] for p in parts}) > 1:
        longest = max(p.shape[1] for p in parts)
        padded = []
        for part in parts:
            missing = part.new_zeros(part.shape[0], longest - part.shape[1], *part.shape[2:])
            padded.append(torch.cat([part, missing], dim=1))
        parts = padded
    return torch.cat(list(parts))
