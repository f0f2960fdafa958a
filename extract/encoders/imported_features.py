"""Imported features in an encoder's place: no units and no weights, so the only boundary, 0, is both cut and end.

Letters: B clips, T segments (the batch is B*T, t fastest), N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from ...cache.feature_store import FeatureStore
from ...cache.format.spec import BoundarySpec
from ...errors import MissingItemError, SettingsError, StoreMismatchError, TrunkError, unknown_name
from ..trunk.state import Context, State
from .encoder import Encoder, Identity
from .unit_replacement import CompiledUnits, UnitCopies


class FeatureEncoder(Encoder):
    """States read from imported features; an experiment's `model = "features:NAME"`.

    Methods that need the model itself raise a SettingsError.

    Args:
        spec: "features:NAME".
        stored: the boundary that holds the features.
        device: where the states go.
    """

    def __init__(self, spec: str, stored: BoundarySpec, *, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.modality = stored.modality
        self.dtype = torch.float32
        self.device = torch.device(device)
        self.model = nn.Module()
        self.units = ()
        self.num_units = 0
        self.preprocess = _NoPreprocess(self)
        self._stored = stored

    @property
    def stored(self) -> BoundarySpec:
        """The stored boundary that all states come from."""
        return self._stored

    @property
    def num_segments(self) -> int:
        """T: the time steps that each clip was imported with."""
        return self._stored.shape[0]

    @property
    def channels(self) -> Sequence[int]:
        """D of the features, at boundary 0 and at the end."""
        return (self._stored.shape[-1],) * 2

    def restore(
        self, hidden: Tensor, boundary: int, inputs: Mapping[str, Tensor], lengths: Tensor | None = None
    ) -> State:
        """Return the state of stored features (B*T, N, D), any float dtype."""
        self.boundary(boundary)
        hidden = hidden.to(device=self.device, dtype=self.dtype)
        if hidden.ndim != 3 or tuple(hidden.shape[1:]) != self._stored.shape[1:]:
            raise TrunkError(f"{self.spec}: found {tuple(hidden.shape)}, expected (B*T, *{self._stored.shape[1:]})")
        return State(hidden=hidden, layout="NLC", boundary=0, context=_context({}, len(hidden), (), self.device))

    def run(self, state: State, start: int, stop: int) -> State:
        """Return the state: there is no unit to run."""
        self.boundary(start)
        self.boundary(stop)
        return state

    def finish(self, state: State) -> Tensor:
        """Return the features (B*T, N, D)."""
        return state.hidden

    def features(self, output: Any) -> Tensor:
        """Return what `finish` gave."""
        features: Tensor = output
        return features

    def boundary(self, k: int | Literal["end"]) -> int:
        """Return 0, the only boundary."""
        if k not in (0, "end"):
            raise SettingsError(f"{self.spec}: found boundary {k}, expected 0: imported features have no units")
        return 0

    def identity(self, boundary: int) -> Identity:
        """Return what the import recorded: name, digest and mapping."""
        self.boundary(boundary)
        return self._stored.identity

    def provenance(self) -> Identity:
        """Return the name; the origin of the features is recorded in the store."""
        return {"spec": self.spec}

    def drop_above(self, boundary: int) -> None:
        """Do nothing: no weights are held."""

    def context_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {}: features need no context."""
        return {}

    def compiled(self, made: CompiledUnits, **options: Any) -> FeatureEncoder:
        """Return this encoder: it has no unit to compile."""
        return self

    def copy_units(self, units: Sequence[int]) -> UnitCopies:
        """Refuse: imported features have no units."""
        self.refuse()

    def probe(self) -> dict[str, Tensor]:
        """Refuse: imported features have no inputs."""
        self.refuse()

    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        """Refuse: imported features cannot be computed."""
        self.refuse()

    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """Refuse: imported features cannot be computed."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise the SettingsError of methods that need the model itself."""
        raise SettingsError(
            f"encoders.{self.modality}: {self.spec} are imported features, which cannot be computed from media; name "
            "an encoder to run live"
        )


def open_features_encoder(
    spec: str, store: FeatureStore, *, modality: str, num_segments: int, device: torch.device | str = "cpu"
) -> FeatureEncoder:
    """Find imported features in a store by "features:NAME", or "features:NAME#KEY" where several have that name.

    Raises:
        MissingItemError: none of that name.
        StoreMismatchError: several, or of another number of time steps than the experiment's segments.
    """
    name, _, key = spec.removeprefix("features:").partition("#")
    held = [s for s in store.boundaries() if s.modality == modality and "imported" in s.identity]
    found = [s for s in held if s.identity["imported"]["name"] == name and s.key.startswith(key)]
    if not found:
        names = {s.identity["imported"]["name"] + (f"#{s.key}" if key else "") for s in held}
        what = unknown_name("features", f"{name}#{key}" if key else name, names)
        raise MissingItemError(f"{store.path}: {modality}: {what}; run `talik store import` first")
    if len(found) > 1:
        raise StoreMismatchError(
            f"{store.path}: {modality} features {name!r} are stored {len(found)} times; name one: "
            + " or ".join(f"features:{name}#{s.key}" for s in found)
        )
    if found[0].shape[0] != num_segments:
        raise StoreMismatchError(
            f"{store.path}: {modality} features {name!r} have {found[0].shape[0]} time steps, data.segments is "
            f"{num_segments}; set segments to that, or import them again with segments = {num_segments}"
        )
    return FeatureEncoder(spec, found[0], device=device)


def imported_key(key_by_id: Mapping[str, str], clip_id: str) -> str | None:
    """Return the key of a clip's features: by its id, or where ids are paths by the file's name without ending."""
    return key_by_id.get(clip_id) or key_by_id.get(PurePosixPath(clip_id).stem)


class _NoPreprocess:
    """The preprocessing of imported features, which refuses raw items."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        self._encoder = encoder

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        self._encoder.refuse()

    def describe(self) -> dict[str, Any]:
        return {"kind": "imported"}


def _context(
    _inputs: Mapping[str, Tensor], batch_size: int, _signature: tuple[Any, ...], _device: torch.device
) -> Context:
    return Context(inputs={}, batch_size=batch_size, calls=(), signature=(), rebuild=_context)
