"""What is chosen when an encoder is loaded: one frozen object that every opener takes. No torch at import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ...config import Count, Positive, settings_class
from ...errors import SettingsError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

Fit = Literal["crop", "stretch"]
Compute = Literal["float32", "tf32", "bfloat16"]
"""What a frozen prefix is computed in; see `EncoderOptions`."""
Modality = Literal["visual", "audio", "text"]
MODALITIES: tuple[Modality, ...] = ("visual", "audio", "text")


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Which encoder to open, with which weights and preprocessing, and where it runs; see `load_encoder`.

    Attributes:
        spec: "PREFIX:NAME", the prefix naming the model source.
        modality: "visual", "audio" or "text".
        weights: None for the model's own, a path, or "random".
        image_size: side, or (height, width), in pixels; None for the model's own.
        fit: how frames of another aspect are fitted; None for the model's own way.
        num_frames: F, frames of a clip that enter together; None for the model's own.
        num_segments: T, by which a whole-clip encoder's tokens are regrouped; None for every time step.
        window_seconds: length of a window of sound; None for the model's own.
        picture: the log-mel front end of an image model that hears; None for the usual one.
        dtype: of weights and hidden tensors; None for float32.
        compute: "float32", "tf32" (float32 weights, whose products a GPU computes in TensorFloat-32) or "bfloat16"
            (weights held and states computed in it); part of the identity unless it is "float32".
        device: where the encoder runs.
        model: modules made by the caller, in place of those that `spec` names.
        trust_remote_code: let transformers run code that comes with the model.
        base: the folder that relative paths of models and weights count from; the working directory by default.

    Raises:
        SettingsError: an unknown modality, or a model given with weights beside it.

    Example:
        >>> options = EncoderOptions(spec="timm:test_vit", modality="visual", image_size=32)
        >>> options.prefix, options.name, options.size
        ('timm', 'test_vit', (32, 32))
    """

    spec: str
    modality: str
    weights: str | Path | None = None
    image_size: int | tuple[int, int] | None = None
    fit: Fit | None = None
    num_frames: int | None = None
    num_segments: int | None = None
    window_seconds: float | None = None
    picture: PictureSettings | None = None
    dtype: torch.dtype | None = None
    compute: Compute = "float32"
    device: torch.device | str = "cpu"
    model: nn.Module | None = None
    trust_remote_code: bool = False
    base: str | Path = ""

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise SettingsError(f"modality: found {self.modality!r}, expected one of {', '.join(MODALITIES)}")
        if self.model is not None and self.weights is not None:
            raise SettingsError("model: found weights beside it, expected a model with its own weights")
        if self.compute not in get_args(Compute):
            raise SettingsError(f"compute: {unknown_name('type', self.compute, get_args(Compute))}")
        if self.compute != "float32" and str(self.dtype) not in ("None", "torch.float32"):
            raise SettingsError(f"compute: found {self.compute!r} with weights of {self.dtype}; leave one of them out")

    @property
    def prefix(self) -> str:
        """The model source's name: what stands before the colon."""
        return self.spec.partition(":")[0]

    @property
    def name(self) -> str:
        """The model's name in its source: what stands behind the colon."""
        return self.spec.partition(":")[2]

    @property
    def folder(self) -> Path:
        """`base` as an absolute path."""
        return Path(self.base).expanduser().resolve()

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, or None for the model's own."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def is_plain(self) -> bool:
        """Whether the model is made by talik from files: no modules of the caller's, no code that comes with it."""
        return self.model is None and not self.trust_remote_code

    @property
    def own_weights(self) -> tuple[str | Path, ...]:
        """The file or folder of weights that was named; () for the model's own, or random ones."""
        return () if self.weights is None or self.is_random else (self.weights,)

    @property
    def is_random(self) -> bool:
        """Whether weights are drawn instead of read."""
        return self.weights == "random"


@settings_class
class PictureSettings:
    """The front end of an image model that hears: how a window of sound becomes a picture.

    LAVISH's pictures of MUSIC-AVQA (16 kHz, 192 mel bands by 192 frames) are `{ front_end = "kaldi", rows = "time",
    num_mel_bins = 192, num_frames = 192, min_hz = 20, mean = -5.385333, std = 7.185728, fill = -5.385333 }` with
    `image_size = 192` and `window_seconds = 1.95`.

    Args:
        front_end: "log-mel": Hann windows, mel bands of equal area on Slaney's scale. "kaldi": Kaldi's filter banks as
            torchaudio computes them (`torchaudio.compliance.kaldi.fbank` with `window_type="hanning"`, without energy
            and dither): each frame without its mean, pre-emphasis 0.97, triangular bands on the HTK scale.
        rows: "frequency": bands in rows, the highest at the top, time from left to right. "time": a frame a row, the
            first at the top, bands from left to right, the lowest first. None for "frequency", of models of square
            pictures in colour; of others it has to be said.
        sample_rate_hz: of the sound.
        num_mel_bins: mel bands, the picture's height (with rows of time its width) before it is resized.
        num_frames: its other side before it is resized: more frames are cut off, fewer filled up; None for those
            of the whole window.
        fill: the natural logarithm of the power of frames that fill up; None for silence's.
        frame_seconds, hop_seconds: length of a frame, and from one frame's beginning to the next's.
        min_hz, max_hz: the lowest and the highest band's outer edges; None for half the sample rate. Kaldi's own
            lowest is 20.
        mean, std: what the natural logarithm of the power is shifted by and divided by; AudioSet's, as in the Audio
            Spectrogram Transformer (Gong et al., Interspeech 2021), by default.
    """

    front_end: Literal["log-mel", "kaldi"] = "log-mel"
    rows: Literal["frequency", "time"] | None = None
    fill: float | None = None
    sample_rate_hz: Count = 16000
    num_mel_bins: Count = 128
    num_frames: Count | None = None
    frame_seconds: Positive = 0.025
    hop_seconds: Positive = 0.01
    min_hz: float = 0.0
    max_hz: float | None = None
    mean: float = -4.2677393
    std: Positive = 2 * 4.5689974

    def __post_init__(self) -> None:
        half = self.sample_rate_hz / 2
        if not 0 <= self.min_hz < (half if self.max_hz is None else self.max_hz) <= half:
            raise SettingsError(
                f"min_hz, max_hz: found {self.min_hz:g}, {self.max_hz}, expected 0 ≤ min_hz < max_hz ≤ {half:g}"
            )
