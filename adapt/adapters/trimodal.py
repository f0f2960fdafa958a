"""`trimodal`: long-term semantic selection, then short-term semantic interaction, at every insertion.

Source: Liu, Chen, Zeng, *Tri-modal adapter based on selective state space*, Journal of Computer Applications 2025,
45(2): 411-420, of which the abstract is what we have; `selection` and `interaction` say what is our reading.
Either module can be taken out, which is the paper's ablation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ...cache.errors import SettingsError
from .interaction import Interaction
from .registry import register_adapter
from .selection import Selection
from .triple import Deltas, Triple


@dataclass(frozen=True, kw_only=True)
class TrimodalSettings:
    """Every choice of the tri-modal adapter.

    Args:
        selection: "ssm" (the selective scan), "attention" (self-attention on the same line) or "none".
        interaction: "windowed" (within `window` segments), "global" (all segments) or "none".
        center: the modality at the centre of the interaction.
        window: radius in segments, 0 for the segment alone.
        num_latents: latent tokens a segment.
        d_model: width of the adapter, channels.
        d_state, d_conv, expand: of the Mamba block, Mamba's names.
        bidirectional: scan the line in both directions.
        num_heads: of the attentions.
        scale: of what the zero-initialised projections give; smaller is gentler to the frozen features.
        share_across_insertions: one adapter serves all insertions.
    """

    selection: Literal["ssm", "attention", "none"] = "ssm"
    interaction: Literal["windowed", "global", "none"] = "windowed"
    center: Literal["visual", "audio"] = "visual"
    window: int = 1
    num_latents: int = 8
    d_model: int = 64
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    bidirectional: bool = True
    num_heads: int = 4
    scale: float = 1.0
    share_across_insertions: bool = False

    def __post_init__(self) -> None:
        if self.selection == "none" and self.interaction == "none":
            raise SettingsError('selection and interaction are both "none"; expected at least one (or kind = "probe")')
        if self.window < 0:
            raise SettingsError(f"window: found {self.window}, expected 0 or more segments")
        for name in ("num_latents", "d_model", "d_state", "d_conv", "expand", "num_heads"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.scale <= 0:
            raise SettingsError(f"scale: found {self.scale}, expected more than 0")
        if self.d_model % self.num_heads:
            raise SettingsError(f"d_model: found {self.d_model}, expected a multiple of num_heads = {self.num_heads}")


class TrimodalInsertion(nn.Module):
    """The two modules at one insertion; the identity at initialisation."""

    def __init__(self, settings: TrimodalSettings, dims: dict[str, int]) -> None:
        super().__init__()
        self.selection = None
        self.interaction = None
        if settings.selection != "none":
            self.selection = Selection(
                dims,
                kind=settings.selection,
                d_model=settings.d_model,
                d_state=settings.d_state,
                d_conv=settings.d_conv,
                expand=settings.expand,
                bidirectional=settings.bidirectional,
                num_heads=settings.num_heads,
                scale=settings.scale,
            )
        if settings.interaction != "none":
            self.interaction = Interaction(
                dims,
                center=settings.center,
                window=settings.window if settings.interaction == "windowed" else None,
                num_latents=settings.num_latents,
                d_model=settings.d_model,
                num_heads=settings.num_heads,
                scale=settings.scale,
            )

    def forward(self, triple: Triple) -> Deltas:
        """Return what is to be added to each modality's tokens."""
        deltas: dict[str, Tensor] = {}
        selected = triple
        if self.selection is not None:
            for modality, gate in self.selection(triple).items():
                tokens = triple.get(modality)
                assert tokens is not None
                deltas[modality] = tokens * gate
            selected = Triple(
                text_mask=triple.text_mask,
                **{m: x if m not in deltas else x + deltas[m] for m in _NAMES if (x := triple.get(m)) is not None},
            )
        if self.interaction is not None:
            for modality, delta in self.interaction(selected).items():
                deltas[modality] = deltas[modality] + delta if modality in deltas else delta
        return Deltas(**deltas)


_NAMES = ("visual", "audio", "text")


class Trimodal(nn.Module):
    """The adapters of all insertions.

    Args:
        settings: every choice.
        dims: for each insertion, the channels of each modality that takes part.
    """

    def __init__(self, settings: TrimodalSettings, dims: Sequence[dict[str, int]]) -> None:
        super().__init__()
        for here in dims:
            if settings.interaction != "none" and settings.center not in here:
                raise SettingsError(f"center: {settings.center!r} takes no part; the insertion has {', '.join(here)}")
        if settings.share_across_insertions and any(here != dims[0] for here in dims):
            raise SettingsError("share_across_insertions: the insertions differ in channels; expected equal ones")
        own = dims[:1] if settings.share_across_insertions else dims
        self.insertions = nn.ModuleList(TrimodalInsertion(settings, here) for here in own)

    def at(self, index: int) -> nn.Module:
        """The adapter of the index-th insertion."""
        return self.insertions[index % len(self.insertions)]


register_adapter("trimodal", TrimodalSettings, Trimodal)
