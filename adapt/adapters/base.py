"""What an adapter is: the tokens that meet at an insertion, what is added to them, and the abstract class of all kinds.

Letters: B items, T segments, L text tokens, N tokens of a frame or window, D channels; v, a, t the modalities.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ...extract.encoders.encoder import Encoder


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
        """Return the tokens of one modality."""
        return {"visual": self.visual, "audio": self.audio, "text": self.text}[modality]


@dataclass(frozen=True)
class Deltas:
    """What is added to each modality's tokens, of their shapes; None adds nothing."""

    visual: Tensor | None = None
    audio: Tensor | None = None
    text: Tensor | None = None

    def get(self, modality: str) -> Tensor | None:
        """Return what is added to one modality."""
        return {"visual": self.visual, "audio": self.audio, "text": self.text}[modality]


Gates = dict[str, Tensor]  # by modality: (B, T) or, for text, (B, L), float32 in (0, 2)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The encoders and boundaries that an adapter is built for.

    Attributes:
        dims: for each insertion, the channels of each modality that meets there.
        ends: by modality, the channels of what the head reads.
        encoders: the frozen encoders by modality.
        units: by modality, the boundaries of the insertions in order; each names the unit above it.
    """

    dims: Sequence[dict[str, int]]
    ends: Mapping[str, int]
    encoders: Mapping[str, Encoder]
    units: Mapping[str, tuple[int, ...]]


class Adapter(nn.Module, ABC):
    """A trainable module between, beside or inside the frozen units of the encoders.

    A kind derives from it, or from one of the three below that do more of the work:

    - `AdapterPerInsertion`: a module at each insertion, which returns what is added to the tokens there;
    - `BesideAdapter`: a network that reads the frozen states and is added to the encoders' ends only;
    - `UnitTuner` (`unit_tuner`): trains copies of the units themselves.

    Attributes:
        beside: it derives from `BesideAdapter`.
        tunes_units: it derives from `UnitTuner`.
        has_gates: it can return the gates of its selection.
        num_replaced: trained parameters that take the place of one of the frozen encoder's own.
    """

    beside: ClassVar[bool] = False
    tunes_units: ClassVar[bool] = False
    has_gates: ClassVar[bool] = False
    num_replaced: int = 0

    @classmethod
    def for_site(cls, settings: Any, site: Site) -> Adapter:
        """Build the adapter for the encoders and boundaries of a variant."""
        return cls(settings, site.dims)

    def at(self, index: int) -> Callable[..., Deltas]:
        """Return the adapter of the index-th insertion: called with a `Triple`, it returns `Deltas`."""
        raise NotImplementedError(f"{type(self).__name__}.at: an adapter with insertions defines it")

    def reads_question_at(self, index: int) -> bool:
        """Whether the text reaches what is added to visual and audio; if not, a clip's rows need to run only once."""
        return True

    def second_at(self, index: int) -> Callable[[Triple], Deltas] | None:
        """Return the adapter beside the rest of a unit, where `at(index)` is added after the unit's attention."""
        return None

    def with_gates_at(self, index: int, tokens: Triple) -> tuple[Deltas, Gates]:
        """Return what the index-th insertion adds, and its gates; only of a kind with `has_gates`."""
        return cast("tuple[Deltas, Gates]", self.at(index)(tokens, return_gates=True))

    @property
    def mixes_questions(self) -> bool:
        """Whether the questions of a batch may influence each other; by default if there is an `extra_loss`."""
        return type(self).extra_loss is not Adapter.extra_loss

    def no_weight_decay(self) -> Iterable[str]:
        """Return the names of own parameters that are trained without weight decay; vectors never are decayed."""
        return ()

    def begin_training(self, total_steps: int) -> None:
        """Prepare for training, before the first of `total_steps` optimiser steps or when a run is resumed."""

    def extra_loss(self) -> Tensor | None:
        """Return a scalar to add to the loss of each batch, or None."""
        return None

    def after_step(self, step: int) -> None:
        """Act after optimiser step `step` (from 0), while its gradients are still set."""

    def training_state(self) -> dict[str, Tensor]:
        """Return what an exact resume needs beside parameters and buffers."""
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `training_state` returned."""

    def export(self, folder: Path) -> None:
        """Write other libraries' formats into a run's folder, beside adapter.safetensors."""


class InsertionModule(nn.Module):
    """The adapter of one insertion, of our own kinds.

    Attributes:
        question_enters: the text reaches what is added to visual and audio.
        second: the adapter beside the rest of a unit, where this one is added after the unit's attention; or None.
    """

    question_enters: bool = True
    second: InsertionModule | None

    def __init__(self) -> None:
        super().__init__()
        self.second = None


class AdapterPerInsertion(Adapter):
    """An adapter with a module of its own at every insertion.

    Args:
        settings: every choice of the kind.
        dims: for each insertion, the channels of each modality that meets there.
    """

    def __init__(self, settings: Any, dims: Sequence[dict[str, int]]) -> None:
        super().__init__()
        self.insertions = nn.ModuleList(self.make(settings, here) for here in dims)

    @staticmethod
    def make(settings: Any, dims: dict[str, int]) -> InsertionModule:
        """Build the adapter of one insertion: called with a `Triple`, it returns `Deltas`."""
        raise NotImplementedError

    def at(self, index: int) -> InsertionModule:
        """Return the adapter of the index-th insertion."""
        return cast("InsertionModule", self.insertions[index])

    def reads_question_at(self, index: int) -> bool:
        """Whether the text reaches what is added to visual and audio at an insertion."""
        return self.at(index).question_enters

    def second_at(self, index: int) -> InsertionModule | None:
        """Return the adapter beside the rest of a unit, or None."""
        return self.at(index).second


class BesideAdapter(Adapter):
    """A network that reads the encoders' frozen states and enters them nowhere.

    Attributes:
        residual: its output is added to the encoders' ends; false: the head reads its output alone.
        question_enters: the text reaches what it gives for visual and audio.
    """

    beside = True
    residual: bool = True
    question_enters: ClassVar[bool] = True

    @classmethod
    def for_site(cls, settings: Any, site: Site) -> Adapter:
        """Build the adapter from the channels at each insertion and at the ends."""
        return cls(settings, site.dims, site.ends)

    def reads_question_at(self, index: int) -> bool:
        """Whether the text reaches what it gives for visual and audio."""
        return self.question_enters

    @property
    def modalities_read(self) -> tuple[str, ...]:
        """The modalities whose states it reads; the head reads the frozen ends of the others."""
        raise NotImplementedError

    def forward(self, tokens: Sequence[Triple], num_tokens: Mapping[str, int]) -> dict[str, Tensor]:
        """Return what is added to the ends: (B, T, N, D) for visual and audio, (B, N, D) for text.

        Args:
            tokens: of every insertion, in order.
            num_tokens: by modality, N of its end.
        """
        raise NotImplementedError


def as_adapter(module: type[nn.Module]) -> type[Adapter]:
    """Return a user's plain module class as an `Adapter` with the defaults; an `Adapter` class as it is.

    A plain class defines `at(index)`, and any of `Adapter`'s methods and attributes that it wants other than the
    defaults. What `at` returns may have `question_enters = False`, and a `second`.
    """
    if issubclass(module, Adapter):
        return module
    base = BesideAdapter if getattr(module, "beside", False) else _Plain
    return type(module.__name__, (module, base), {"__module__": module.__module__, "__doc__": module.__doc__})


class _Plain(Adapter):
    """What a user's class that derives from `nn.Module` alone gets beside its own methods."""

    def reads_question_at(self, index: int) -> bool:
        return bool(getattr(self.at(index), "question_enters", True))

    def second_at(self, index: int) -> Callable[[Triple], Deltas] | None:
        found: Callable[[Triple], Deltas] | None = getattr(self.at(index), "second", None)
        return found
