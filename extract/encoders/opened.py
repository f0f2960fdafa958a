"""Opening a named model: its modules with their weights, its preprocessing, and how it is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .preprocess import Fit, Preprocess
from .spectrogram_settings import PictureSettings

MODALITIES = ("visual", "audio", "text")


@dataclass(kw_only=True)
class Opened:
    """A model ready to be cut.

    Attributes:
        model: the modules, with weights.
        forward: runs the model on a dict of inputs.
        wrapper: runs the model with what a library put around it (PEFT), which must give the same; None without one.
        preprocess: raw items to inputs.
        config: what of the configuration a prefix's result may depend on (JSON).
        excluded: a classifier, in which no unit may lie.
        backbone: from inputs, the parameters that the units' share is taken of; None for the usual ones.
        sample_rate_hz, window_seconds: of audio encoders.
        image_size: height and width in pixels, of visual encoders.
        num_frames: frames of a clip that enter together; None where frames enter one by one.
        is_random: the weights were drawn, not read.
        notes: what was changed on the model (a shortened position table), for the provenance.
    """

    model: nn.Module
    forward: Callable[[dict[str, Tensor]], Any]
    preprocess: Preprocess
    wrapper: Callable[[dict[str, Tensor]], Any] | None = None
    config: dict[str, Any]
    excluded: tuple[nn.Module, ...] = ()
    backbone: Callable[[dict[str, Tensor]], Sequence[nn.Parameter] | None] = lambda inputs: None
    sample_rate_hz: int | None = None
    window_seconds: float | None = None
    image_size: tuple[int, int] | None = None
    num_frames: int | None = None
    is_random: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the caller of `load_encoder` asked for."""

    spec: str
    modality: str
    weights: str | Path | None = None
    image_size: int | tuple[int, int] | None = None
    fit: Fit | None = None
    num_frames: int | None = None
    window_seconds: float | None = None
    picture: PictureSettings | None = None
    model: nn.Module | None = None
    trust_remote_code: bool = False


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports while a model loads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
