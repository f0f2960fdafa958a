"""`probe`: no adapter at all; the head alone reads the frozen encoders' ends. The floor that an adapter must beat."""

from __future__ import annotations

from ...config import settings_class
from ...errors import SettingsError
from ...extract.encoders.options import MODALITIES, Modality
from .registry import register_adapter


@settings_class
class ProbeSettings:
    """Which modalities the head reads.

    Args:
        modalities: any of "visual", "audio", "text". ["text"] is the question alone; ["visual", "text"] the question
            and the picture. Without "text" the head does not know the question.
    """

    modalities: tuple[Modality, ...] = MODALITIES

    def __post_init__(self) -> None:
        if not self.modalities:
            raise SettingsError("modalities: found none, expected at least one of visual, audio, text")


register_adapter("probe", ProbeSettings, None)
