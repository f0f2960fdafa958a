"""The versions of what decodes media, for the provenance of states."""

from __future__ import annotations

import av

_PARTS = {"visual": ("libavcodec", "libswscale"), "audio": ("libavcodec", "libswresample")}


def decoder_versions(modality: str) -> dict[str, str]:
    """Return the versions of PyAV and of the parts of FFmpeg inside it that decode for a modality; {} for texts.

    Example:
        >>> sorted(decoder_versions("audio"))
        ['av', 'libavcodec', 'libswresample']
        >>> decoder_versions("text")
        {}
    """
    if modality not in _PARTS:
        return {}
    inside = {name: ".".join(map(str, av.library_versions[name])) for name in _PARTS[modality]}
    return {"av": av.__version__, **inside}
