"""Sources of models by the prefix of their name (`timm:`, `hf:`, `pip:`), and what each of them gives.

No torch at import: which source a prefix has is asked before anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ...registry import Registry
from .file_stamps import FileStamps
from .options import EncoderOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .preprocess import Preprocess

Inputs: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model's preprocessing, and what it declares of the raw items.

    Attributes:
        preprocess: raw items to inputs.
        earlier: the preprocessing of an earlier version of talik, where its numbers were others; a store that holds
            states of it goes on with it. None where there is none.
        image_size: (height, width) in pixels, of encoders that take pictures; None where the processor decides it.
        num_frames: F, frames of a clip that enter together; None where frames enter one by one.
        sample_rate_hz, window_seconds: of audio encoders.
        notes: what was changed on the model (a shortened position table), for the provenance.
    """

    preprocess: Preprocess
    earlier: Preprocess | None = None
    image_size: tuple[int, int] | None = None
    num_frames: int | None = None
    sample_rate_hz: int | None = None
    window_seconds: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenedModel(Prepared):
    """A model with its weights and preprocessing, ready to be cut into units.

    Attributes:
        model: the modules, with weights.
        forward: runs the model on a dict of inputs.
        wrapper: runs the model with what a library put around it (PEFT), which must give the same; None without one.
        config: what of the configuration a prefix's result may depend on (JSON).
        excluded: a classifier, in which no unit may lie.
        backbone: from inputs, the parameters that the units' share is taken of; None for the usual ones.
        is_random: the weights were drawn, not read.
        read_from: the files that all of this was read from, as they were before; None where that is not known, and then
            nothing is remembered of the model from one run to the next.
    """

    model: nn.Module
    forward: Callable[[Inputs], Any]
    wrapper: Callable[[Inputs], Any] | None = None
    config: dict[str, Any]
    excluded: tuple[nn.Module, ...] = ()
    backbone: Callable[[Inputs], Sequence[nn.Parameter] | None] = lambda inputs: None
    is_random: bool = False
    read_from: FileStamps | None = None


ModelSource = Callable[[EncoderOptions], OpenedModel]

MODEL_SOURCES: Registry[ModelSource] = Registry(
    "model source",
    "talik.model_sources",
    {"timm": f"{__package__}.timm:open_timm", "hf": f"{__package__}.hf:open_hf"},
)


def is_own_source(prefix: str) -> bool:
    """Return whether models of that prefix are opened by talik itself; no source is imported.

    Example:
        >>> is_own_source("timm"), is_own_source("unknown")
        (True, False)
    """
    return MODEL_SOURCES.module_of(prefix).startswith(f"{__package__.partition('.')[0]}.")


def register_model_source(prefix: str, source: ModelSource) -> None:
    """Make models known under `prefix`, so that `load_encoder("prefix:NAME", …)` opens them by `source`.

    Installed packages offer theirs by an entry point of the group `talik.model_sources`.

    Args:
        prefix: what stands before the colon.
        source: called with the options; returns the model with its weights, its preprocessing and its forward.

    Example:
        >>> from talik.extract.encoders.timm import open_timm
        >>> register_model_source("vit", open_timm)
        >>> MODEL_SOURCES.get("vit") is open_timm
        True
    """
    MODEL_SOURCES.register(prefix, source)
