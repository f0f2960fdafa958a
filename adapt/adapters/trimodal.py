"""`trimodal`: long-term semantic selection, then short-term semantic interaction, at every insertion.

Source: Liu, Chen, Zeng, *Tri-modal adapter based on selective state space*, Journal of Computer Applications 2025,
45(2): 411-420, https://www.joca.cn/CN/10.11772/j.issn.1001-9081.2024010130, of which the abstract is what we have.
Its sentences (in Chinese; ours here), and what of this package answers each:

1. The adapter "can freeze the pre-trained model, fine-tunes only a small number of additional parameters, and
   accomplishes dense interaction among the three modalities": `joint` runs the encoders frozen; what `forward` below
   returns is added to the tokens of all three, and is zero until something is learned.
2. "A long-term semantic selection module based on a selective state space and a short-term semantic interaction module
   centred on vision or audio": `Selection` and `Interaction`; `center` says which.
3. "The two modules are inserted, in this order, between the sequential encoders": the interaction reads what the
   selection let through. That the place is any boundary between an encoder's units, named by a variant's `insertion`,
   is our reading; so is that one adapter may serve several boundaries (`share_across_insertions`).
4. "Long-term semantic selection aims to suppress redundant information in the three modalities": `selection` says how
   we read it. 5. "Short-term semantic interaction models the interaction of local features within a short time":
   `interaction` says how.

Either module can be taken out ("none"), or replaced by the choice that it is to be compared with ("attention" for the
scan, "global" for the window).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from ...config import Count, CountOrZero, Positive, settings_class
from ...errors import SettingsError
from ...extract.encoders.options import MODALITIES
from .base import AdapterPerInsertion, Deltas, Gates, InsertionModule, Triple
from .interaction import Interaction
from .registry import register_adapter
from .selection import Selection, mean_gate


@settings_class
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
        selection_scale: of the gates' arguments; smaller lets the gates learn slower than what they act on.
        interaction_scale: of what the interaction adds to the tokens.
        scale: both in one, in place of the two above; what runs made before the two were apart have.
        share_across_insertions: one adapter serves all insertions.
    """

    selection: Literal["ssm", "attention", "none"] = "ssm"
    interaction: Literal["windowed", "global", "none"] = "windowed"
    center: Literal["visual", "audio"] = "visual"
    window: CountOrZero = 1
    num_latents: Count = 8
    d_model: Count = 64
    d_state: Count = 16
    d_conv: Count = 4
    expand: Count = 2
    bidirectional: bool = True
    num_heads: Count = 4
    selection_scale: Positive = 1.0
    interaction_scale: Positive = 1.0
    scale: Positive | None = None
    share_across_insertions: bool = False

    def __post_init__(self) -> None:
        if self.selection == "none" and self.interaction == "none":
            raise SettingsError('selection and interaction are both "none"; expected at least one (or kind = "probe")')
        if self.d_model % self.num_heads:
            raise SettingsError(f"d_model: found {self.d_model}, expected a multiple of num_heads = {self.num_heads}")


class TrimodalInsertion(InsertionModule):
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
                scale=settings.scale or settings.selection_scale,
            )
        if settings.interaction != "none":
            self.interaction = Interaction(
                dims,
                center=settings.center,
                window=settings.window if settings.interaction == "windowed" else None,
                num_latents=settings.num_latents,
                d_model=settings.d_model,
                num_heads=settings.num_heads,
                scale=settings.scale or settings.interaction_scale,
            )

    @overload
    def forward(self, triple: Triple) -> Deltas: ...
    @overload
    def forward(self, triple: Triple, *, return_gates: Literal[True]) -> tuple[Deltas, Gates]: ...

    def forward(self, triple: Triple, *, return_gates: bool = False) -> Deltas | tuple[Deltas, Gates]:
        """Return what is to be added to each modality's tokens.

        Args:
            triple: the tokens.
            return_gates: also return the selection's gates, the mean over channels: (B, T) for visual and audio, one a
                segment, and (B, L) for text, one a token; float32, each in (0, 2), 1 where nothing is selected. What
                stands at padding tokens means nothing. {} without a selection.
        """
        deltas: dict[str, Tensor] = {}
        selected = triple
        shown: Gates = {}
        if self.selection is not None:
            gates = self.selection(triple)
            if return_gates:
                shown = {m: mean_gate(gate, m) for m, gate in gates.items()}
            for modality, gate in gates.items():
                tokens = triple.get(modality)
                assert tokens is not None
                deltas[modality] = tokens * gate
            selected = Triple(
                text_mask=triple.text_mask,
                **{m: x if m not in deltas else x + deltas[m] for m in MODALITIES if (x := triple.get(m)) is not None},
            )
        if self.interaction is not None:
            for modality, delta in self.interaction(selected).items():
                deltas[modality] = deltas[modality] + delta if modality in deltas else delta
        return (Deltas(**deltas), shown) if return_gates else Deltas(**deltas)


class Trimodal(AdapterPerInsertion):
    """The adapters of all insertions.

    Args:
        settings: every choice.
        dims: for each insertion, the channels of each modality that takes part.
    """

    has_gates = True
    make = TrimodalInsertion

    def __init__(self, settings: TrimodalSettings, dims: Sequence[dict[str, int]]) -> None:
        for here in dims:
            if settings.interaction != "none" and settings.center not in here:
                raise SettingsError(f"center: {settings.center!r} takes no part; the insertion has {', '.join(here)}")
        if settings.share_across_insertions and any(here != dims[0] for here in dims):
            raise SettingsError("share_across_insertions: the insertions differ in channels; expected equal ones")
        super().__init__(settings, dims[:1] if settings.share_across_insertions else dims)

    def at(self, index: int) -> InsertionModule:
        """The adapter of the index-th insertion."""
        return super().at(index % len(self.insertions))


register_adapter("trimodal", TrimodalSettings, Trimodal)
