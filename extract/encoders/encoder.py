"""The interface of a frozen encoder: what extraction and training use of one, whether computed or imported.

Letters: B clips, T segments (the encoder's batch is B*T, t fastest), N tokens, L tokens of a text, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ...cache.format.digests import digest_json
from ...cache.format.spec import BoundarySpec
from ...errors import counted
from ..trunk.clip_axis import ClipAxis
from ..trunk.state import State
from .file_stamps import FileStamps
from .preprocess import Preprocess

if TYPE_CHECKING:
    from .unit_replacement import CompiledUnits, UnitCopies

Identity = dict[str, Any]
"""A JSON object that names everything that stored states depend on."""


class Encoder(ABC):
    """A frozen encoder as a sequence of units, with a boundary before, between and after them.

    Attributes:
        spec: the name that it was opened by.
        modality: "visual", "audio" or "text".
        dtype: of weights and hidden tensors.
        device: where it runs, or where its states go.
        model: the modules, frozen and in eval mode.
        units: the modules between boundaries; units[k] runs from boundary k to k + 1.
        num_units: how many units there are.
        preprocess: raw items to a dict of inputs, each with the batch first: frames (B*T, H, W, 3) uint8, waveforms
            (B*T, S) float32 at `sample_rate_hz`, or a list of str.
        sample_rate_hz, window_seconds: of audio encoders, else None.
        image_size: (height, width) in pixels of encoders that take pictures, else None.
        num_frames: F, frames of a clip that enter together; None where frames enter one by one. `preprocess` then takes
            frames (B*F, H, W, 3), and the batch of its inputs and of `State.hidden` is B.
        clips: the time axis, where whole clips enter; else None.
        channels: D of the tokens at boundaries 0 … num_units, and last that of `features`.
    """

    spec: str
    modality: str
    dtype: torch.dtype
    device: torch.device
    model: nn.Module
    units: Sequence[nn.Module]
    num_units: int
    preprocess: Preprocess
    sample_rate_hz: int | None = None
    window_seconds: float | None = None
    image_size: tuple[int, int] | None = None
    num_frames: int | None = None
    clips: ClipAxis | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec}: {self.modality}, {counted(self.num_units, 'unit')}, {self.device})"

    def _repr_html_(self) -> str:
        """Return a table of the units with the channels of the tokens that each takes and gives."""
        names = [type(unit).__name__ for unit in self.units]
        rows = [
            f"<tr><td>{k}</td><td>{escape(name)}</td><td>{self.channels[k]}</td><td>{self.channels[k + 1]}</td></tr>"
            for k, name in enumerate(names)
        ]
        head = "<tr><th>k</th><th>unit</th><th>channels in</th><th>channels out</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{''.join(rows)}</table>"

    @property
    def full(self) -> Encoder:
        """The encoder with all weights as they were loaded; this one, unless it was made by `held_in`."""
        return self

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the states that units take and return; `dtype`, unless this encoder was made by `held_in`."""
        return self.dtype

    @property
    @abstractmethod
    def channels(self) -> Sequence[int]:
        """D of the tokens at boundaries 0 … num_units, and last that of `features`."""

    @property
    def stored(self) -> BoundarySpec | None:
        """The stored boundary that all states come from; None where they can be computed from media or texts."""
        return None

    @property
    def read_from(self) -> FileStamps | None:
        """The files that alone decide `identity`; None where more does, or where that is not known."""
        return None

    def rows_per_clip(self, num_segments: int) -> int:
        """Return how many rows of a batch a clip of `num_segments` segments makes: as many, or one whole clip."""
        return num_segments if self.num_frames is None else 1

    @abstractmethod
    def boundary(self, k: int | Literal["end"]) -> int:
        """Return boundary `k` as 0 … num_units; negative numbers count from num_units, "end" is num_units itself.

        Raises:
            SettingsError: out of range.
        """

    def token_names(self, text: str) -> list[str]:
        """Return the tokens of `text` as strings; [] where no tokenizer names them."""
        return []

    # running

    @abstractmethod
    def probe(self) -> dict[str, Tensor]:
        """Return inputs of a small batch of noise, such as the trunk was found with."""

    @abstractmethod
    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        """Return the state at boundary 0 of a batch that `preprocess` made."""

    @abstractmethod
    def run(self, state: State, start: int, stop: int) -> State:
        """Run units `start` to `stop` (exclusive) on a state at boundary `start`; its hidden tensor is left as it is.

        Raises:
            TrunkError: the state is at another boundary, or units were dropped.
            SettingsError: boundaries out of range.
        """

    def enter(self, state: State) -> State:
        """Return a state, its context too, in the type that the units run in; the same object if it is so already."""
        same = state.hidden.dtype == self.state_dtype
        return state if same else state.replace(hidden=state.hidden.to(self.state_dtype))

    @abstractmethod
    def finish(self, state: State) -> Any:
        """Run what follows the last unit on a state at boundary `num_units`; return the model's own output.

        Raises:
            TrunkError: the state is at another boundary, or units were dropped.
        """

    @abstractmethod
    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model's own forward on inputs that `preprocess` made."""

    @abstractmethod
    def features(self, output: Any) -> Tensor:
        """Return the tokens of an output of `finish`, (B*T, N, D): the last hidden state, or a pooled vector as N = 1.

        Of an encoder that takes whole clips each segment's tokens; a pooled vector is the same for every segment.

        Raises:
            TrunkError: an output without either.
        """

    # storing and restoring

    @abstractmethod
    def context_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the small inputs from which the context is rebuilt (token ids, masks); {} when none is needed.

        Those that are the same for every window of sound are known here and left out.

        Raises:
            TrunkError: one of them differs in this batch.
        """

    @abstractmethod
    def restore(
        self, hidden: Tensor, boundary: int, inputs: Mapping[str, Tensor], lengths: Tensor | None = None
    ) -> State:
        """Return the state of a stored hidden tensor.

        Args:
            hidden: (B*T, …) as `State.hidden` was, zero-padded along the tokens; any float dtype.
            boundary: where it was stored.
            inputs: what `context_inputs` gave, padded with zeros likewise.
            lengths: (B*T,) int64, tokens of each item, for texts.

        Raises:
            TrunkError: a shape that this encoder does not have at that boundary, or inputs missing.
        """

    @abstractmethod
    def drop_above(self, boundary: int) -> None:
        """Free the weights of the units from `boundary` up; `run` beyond it and `finish` are refused from now on."""

    # other modules in the units' places

    @abstractmethod
    def copy_units(self, units: Sequence[int]) -> UnitCopies:
        """Return copies of some units, to be trained in the places of the frozen ones.

        Args:
            units: indices, ascending.

        Raises:
            SettingsError: units that cannot be trained apart from the others, or no units at all.
        """

    @abstractmethod
    def compiled(self, made: CompiledUnits, **options: Any) -> Encoder:
        """Return an encoder that runs its units through torch.compile and shares everything else with this one.

        Args:
            made: compiled units, by the module's id; used where there is one, filled where not.
            options: of torch.compile.
        """

    def held_in(self, dtype: torch.dtype) -> Encoder:
        """Return an encoder whose units run on states of `dtype` with weights held in it; itself if it has no units.

        The weights of each unit, and of the end, are converted when it first runs, beside those of this encoder; its
        embedding and its identity are this one's. What cannot run so by its own code keeps its weights and runs under
        autocast.

        Args:
            dtype: torch.bfloat16, or that of the weights, for the encoder as it is.
        """
        return self

    # identity

    @abstractmethod
    def identity(self, boundary: int) -> Identity:
        """Return, as JSON, all that the hidden tensor at `boundary` depends on, but for the raw item itself."""

    def end_digest(self) -> str | None:
        """Return the SHA-256 of the weights that only `finish` uses, on which no state depends; None without any."""
        return None

    @abstractmethod
    def provenance(self) -> Identity:
        """Return what moves only the last bits, or only tells: names, versions, device, attention implementation."""

    def fingerprint(self, boundary: int) -> str:
        """Return the SHA-256 of what makes up the prefix: class, configuration, weights up to the boundary."""
        return digest_json(self.identity(boundary))
