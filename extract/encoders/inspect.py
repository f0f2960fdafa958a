"""What an encoder looks like as a trunk: its units, the state at every boundary, parameters, operations, the proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .load import load_encoder
from .pretrained_encoder import PretrainedEncoder


@dataclass(frozen=True, kw_only=True)
class BoundaryReport:
    """One boundary, and the unit that follows it.

    Attributes:
        boundary: its number.
        layout, shape: of the hidden tensor of one item, the batch left out (texts: of the probe's length).
        num_prefix_tokens: tokens ahead of the grid.
        size_bytes: of one item's hidden tensor at the encoder's data type.
        unit: the name and class of the unit after it; "" at the end.
        num_params, flops: that unit's parameters, and floating-point operations for one item.
    """

    boundary: int
    layout: str
    shape: tuple[int, ...]
    num_prefix_tokens: int
    size_bytes: int
    unit: str
    num_params: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class EncoderReport:
    """An encoder seen as a trunk.

    Attributes:
        num_params: of the whole model; `share` of its backbone's lie in the units.
        num_boundaries: at how many of them the pieces were proven to equal the whole, bit for bit.
        aside: parts of the output that a restored state cannot give.
        context_inputs: what is stored beside the hidden tensor to rebuild the context.
        context_bytes: of these inputs of one item.
        whole_clips: (frames that enter together, time steps told apart); None where frames enter one by one.
        notes: what was changed on the model (a shortened position table).
    """

    spec: str
    model_class: str
    num_units: int
    num_params: int
    share: float
    num_boundaries: int
    aside: tuple[str, ...]
    context_inputs: tuple[str, ...]
    context_bytes: int
    whole_clips: tuple[int, int] | None
    notes: tuple[str, ...]
    boundaries: tuple[BoundaryReport, ...]

    def table(self) -> str:
        """Return the report as lines of text."""
        head = (
            f"{self.spec}: {self.model_class}, {self.num_units} units, {self.num_params:,d} parameters, "
            f"{self.share:.0%} of the backbone's in units; proven bit-exact at all {self.num_boundaries} boundaries"
        )
        lines = [head, *self.notes]
        if self.whole_clips is not None:
            frames, steps = self.whole_clips
            fits = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
            lines.append(f"an item is a whole clip of {frames} frames in {steps} time steps (segments: {fits})")
        if self.context_inputs:
            names = ", ".join(self.context_inputs)
            lines.append(f"stored beside the hidden tensor: {names} ({self.context_bytes:,d} bytes)")
        if self.aside:
            lines.append(f"not given by restored states: {', '.join(self.aside)}")
        lines.append(f"{'k':>3} {'layout':6} {'shape of one item':20} {'bytes':>12} {'params':>12} {'MFLOPs':>9}  unit")
        for row in self.boundaries:
            shape = "×".join(map(str, row.shape))
            cells = f"{row.boundary:3d} {row.layout:6} {shape:20} {row.size_bytes:12,d}"
            if row.unit:
                cells += f" {row.num_params:12,d} {row.flops / 1e6:9.1f}  {row.unit}"
            lines.append(cells)
        return "\n".join(lines)


def inspect(spec: str | PretrainedEncoder, **options: Any) -> EncoderReport:
    """Report on an encoder, loaded with `options` of `load_encoder` unless it is one already.

    Raises:
        EncoderError, TrunkError, SettingsError: as `load_encoder` does; a refusal is the report then.
    """
    encoder = spec if isinstance(spec, PretrainedEncoder) else load_encoder(spec, **{"device": "cpu", **options})
    trunk = encoder.trunk
    rows = []
    probe = encoder.probe()
    small = encoder.context_inputs(probe)
    with torch.no_grad():
        state = encoder.embed(probe)
        for k in range(encoder.num_units + 1):
            following: dict[str, Any] = {"unit": "", "num_params": 0, "flops": 0}
            shape, size_bytes = tuple(state.hidden.shape[1:]), state.hidden[0].numel() * state.hidden.element_size()
            layout, prefix = state.layout, state.num_prefix_tokens
            if k < encoder.num_units:
                with FlopCounterMode(display=False) as counter:
                    state = encoder.run(state, k, k + 1)
                links = trunk.links[trunk.bounds[k] : trunk.bounds[k + 1]]
                following = {
                    "unit": " + ".join(f"{link.name} ({type(link.module).__name__})" for link in links),
                    "num_params": sum(p.numel() for p in encoder.units[k].parameters()),
                    "flops": counter.get_total_flops() // state.batch_size,
                }
            rows.append(
                BoundaryReport(
                    boundary=k,
                    layout=layout,
                    shape=shape,
                    num_prefix_tokens=prefix,
                    size_bytes=size_bytes,
                    **following,
                )
            )
    return EncoderReport(
        spec=encoder.spec,
        model_class=type(encoder.model).__name__,
        num_units=encoder.num_units,
        num_params=sum(p.numel() for p in encoder.model.parameters()),
        share=encoder.proof.share,
        num_boundaries=encoder.proof.num_boundaries,
        aside=encoder.proof.aside,
        context_inputs=tuple(small),
        context_bytes=sum(tensor[0].numel() * tensor.element_size() for tensor in small.values()),
        whole_clips=None if encoder.clips is None else (encoder.clips.num_frames, encoder.clips.num_steps),
        notes=tuple(encoder.provenance()["notes"]),
        boundaries=tuple(rows),
    )
