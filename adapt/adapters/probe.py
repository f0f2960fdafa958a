"""`probe`: no adapter at all; the head alone reads the frozen encoders' ends. The floor that an adapter must beat."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import SettingsError, unknown_name
from ...extract.encoders.options import MODALITIES
from .registry import register_adapter


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Which modalities the head reads.

    Args:
        modalities: any of "visual", "audio", "text". ["text"] is the question alone; ["visual", "text"] the question
            and the picture. Without "text" the head cannot know what is asked.
    """

    modalities: tuple[str, ...] = MODALITIES

    def __post_init__(self) -> None:
        for name in self.modalities:
            if name not in MODALITIES:
                raise SettingsError(f"modalities: {unknown_name('modality', name, MODALITIES)}")
        if not self.modalities:
            raise SettingsError("modalities: found none, expected at least one of visual, audio, text")


register_adapter("probe", ProbeSettings, None)
