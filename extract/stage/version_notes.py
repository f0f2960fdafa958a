"""Says where stored states were decoded or preprocessed by other versions than those at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# of a provenance, the versions of what decodes and preprocesses
_VERSIONS = (
    "av", "libavcodec", "libswscale", "libswresample", "torchvision", "pillow", "tokenizers", "timm", "transformers",
)  # fmt: skip


def version_notes(modality: str, now: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line if stored states were decoded or preprocessed by other versions than this process has.

    Args:
        modality: of the states.
        now: their provenance, would this process compute them.
        before: the provenances of those that are stored.
    """
    stored = {name: sorted({str(p[name]) for p in before if name in p}) for name in _VERSIONS if name in now}
    differing = {name: found for name, found in stored.items() if found and found != [now[name]]}
    if not differing:
        return []
    then = ", ".join(f"{name} {' and '.join(found)}" for name, found in differing.items())
    here = ", ".join(f"{name} {now[name]}" for name in differing)
    return [f"{modality}: states are stored that were made with {then}; this environment has {here}"]
