"""The joint model: frozen trunks run in lockstep from their cuts, adapters where they meet, a head at the end."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor, nn

from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ..adapters.base import Adapter, BesideAdapter, Gates
from ..adapters.unit_tuner import UnitTuner
from ..data.batch import Batch
from .forward_state import ForwardState, Stop
from .insertion import ResolvedInsertions
from .precision import Precision
from .structure import structure_of


class JointModel(nn.Module):
    """Frozen encoders above their cuts, the adapters between their units, and the head.

    The encoders are not submodules: `parameters()` and `state_dict()` hold what is trained and nothing else.

    Args:
        encoders: by modality; frozen.
        insertions: where the adapters sit.
        adapter: an adapter, or None without insertions.
        head: called with the features and the text's mask.
        placement: "between" adds at the boundary; "parallel" adds to the output of the unit after it; "inside" is that
            of an adapter that trains inside units.
        precision: what everything runs in; the encoders hold their units in it (see `Encoder.held_in`).

    Attributes:
        stops: the places where the frozen units pause for the adapter, in order.
        ends: by modality, the boundary that the units run up to after the last stop.
        recompute_units: run units again in the backward pass instead of keeping their activations.

    Raises:
        SettingsError: an adapter after the units' attention that is not placed in parallel to units.
    """

    encoders: dict[str, Encoder]
    places_after_attention: dict[tuple[str, int], nn.Module]  # by modality and unit, found when first needed

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        insertions: ResolvedInsertions,
        adapter: Adapter | None,
        head: nn.Module,
        *,
        placement: str = "between",
        precision: Precision | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.head = head
        self.insertions = insertions
        self.placement = placement
        self.precision = precision or Precision()
        self.recompute_units = False
        object.__setattr__(self, "encoders", dict(adapter.encoders if isinstance(adapter, UnitTuner) else encoders))
        object.__setattr__(self, "places_after_attention", {})
        self.stops = tuple(self._stops())
        self.ends = {m: e.num_units for m, e in self.encoders.items() if self._reads_end_of(m)}

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (B, C), or (B, T, C) of a head that classifies segments.

        Args:
            batch: states at or below `starts()`. Where it holds each clip's rows once, all that lies below the first
                adapter that reads the question, or else below the head, runs once a clip.
        """
        with self.precision.autocast(batch.device):
            return self.head(self.features(batch), batch.text_mask)

    def features(self, batch: Batch, *, gates: list[Gates] | None = None) -> dict[str, Tensor]:
        """Return what the head reads: visual and audio (B, T, N, D), text (B, L, D); append each insertion's gates."""
        with self.precision.autocast(batch.device):
            state = ForwardState(self, batch, gates)
            for stop in self.stops:
                state.advance_to(stop.boundaries)
                state.apply_adapter(stop)
            state.advance_to(self.ends)
            return state.features()

    def with_gates(self, batch: Batch) -> tuple[Tensor, list[Gates]]:
        """Return the logits, and the adapter's gates at each insertion: (B, T), for text (B, L), in (0, 2).

        Raises:
            SettingsError: an adapter without gates.
        """
        if self.adapter is None or not self.adapter.has_gates:
            raise SettingsError("gates: this adapter has none; expected one with a selection, for instance trimodal")
        gates: list[Gates] = []
        with self.precision.autocast(batch.device):
            return self.head(self.features(batch, gates=gates), batch.text_mask), gates

    def structure(self) -> Hashable:
        """Return a key that is equal for models that compute the same, with other numbers, on the same states."""
        stops = tuple((s.insertion, s.action, tuple(sorted(s.boundaries.items()))) for s in self.stops)
        encoders = tuple((m, id(e)) for m, e in self.encoders.items())
        parts = (structure_of(self.adapter), structure_of(self.head))
        return (*parts, stops, tuple(sorted(self.ends.items())), encoders, self.precision)

    @property
    def tunes_units(self) -> bool:
        """Whether what is trained lies inside the units."""
        return isinstance(self.adapter, UnitTuner)

    def starts(self) -> dict[str, int]:
        """Return the highest boundary that each trunk may start from: below it nothing is trainable."""
        return {m: self.insertions.first(m, e.num_units) for m, e in self.encoders.items()}

    def reads(self) -> dict[str, tuple[int, ...]]:
        """Return the boundaries whose stored states spare units: of an adapter beside the encoders, else none."""
        if not isinstance(self.adapter, BesideAdapter):
            return {}
        read: dict[str, list[int]] = {m: [] for m in self.encoders}
        for boundaries in (*(stop.boundaries for stop in self.stops), self.ends):
            for modality, boundary in boundaries.items():
                read[modality].append(boundary)
        return {m: tuple(ks) for m, ks in read.items()}

    def trains_units_of(self, modality: str) -> bool:
        """Whether units of this modality are trained themselves."""
        return self.tunes_units and bool(self.insertions.of(modality))

    def _stops(self) -> list[Stop]:
        if self.adapter is None or self.tunes_units:
            return []
        stops = []
        for index, insertion in enumerate(self.insertions.insertions):
            here = insertion.boundaries
            if isinstance(self.adapter, BesideAdapter):
                read = {m: k for m, k in here.items() if m in self.adapter.modalities_read}
                stops.append(Stop(index, read, "read"))
            elif self.adapter.second_at(index) is not None:
                if self.placement != "parallel":
                    raise SettingsError(f'after_attention: found placement = "{self.placement}", expected "parallel"')
                stops.append(Stop(index, here, "within unit"))
            elif self.placement == "parallel":
                above = {m: k + 1 for m, k in here.items()}
                stops += [Stop(index, here, "before unit"), Stop(index, above, "after unit")]
            else:
                stops.append(Stop(index, here, "add"))
        return stops

    def _reads_end_of(self, modality: str) -> bool:
        """Whether the head reads the encoder's end: always but where an adapter beside it takes the end's place."""
        adapter = self.adapter
        return not isinstance(adapter, BesideAdapter) or adapter.residual or modality not in adapter.modalities_read
