"""What boundaries an experiment's settings stand for, remembered from the last time that its models were opened.

The specification of a boundary (identity, shapes) follows from the settings, from the files that the models are read
from, and from the software. It is kept in the user's cache folder with the stamps of these files and the versions of
this software, and counts only while all of them are as they were. Nothing is remembered of models of which more than
that decides: those of a hub, with code of their own, or opened by another package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.feature_store import BoundarySpec
from ..encoders.cache_folder import keep_record, kept_record, record_digest
from ..encoders.file_stamps import FileStamps
from ..encoders.model_folders import place_of
from ..encoders.model_sources import is_own_source
from ..encoders.software import software
from ..media.decoder_versions import decoder_versions
from .settings import EncodersSettings, ExtractSettings

_KIND, _VERSION = "boundaries", 1


@dataclass(frozen=True, kw_only=True)
class KnownBoundary:
    """One boundary as extraction planned it.

    Attributes:
        spec: its specification.
        provenance: of states that would be computed now.
        stand_ins: what stands for the stream of its modality in films that lack it; see `missing_streams`.
    """

    spec: BoundarySpec
    provenance: dict[str, Any]
    stand_ins: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return {"spec": self.spec.to_json(), "provenance": self.provenance, "stand_ins": self.stand_ins}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> KnownBoundary:
        """Return the boundary that `to_json` described."""
        spec = BoundarySpec.from_json(fields["spec"])
        return cls(spec=spec, provenance=fields["provenance"], stand_ins=fields["stand_ins"])


def remember_boundaries(
    settings: ExtractSettings, boundaries: Mapping[str, Sequence[KnownBoundary]], read_from: Sequence[FileStamps]
) -> None:
    """Keep the boundaries of clips and of texts that the settings stand for; a folder that refuses costs time only.

    Args:
        settings: of the experiment.
        boundaries: by "clips" and "texts"; what was not looked at is left out.
        read_from: the files that the models were read from.
    """
    record = {
        "software": _software(),
        "read_from": [stamps.to_json() for stamps in read_from],
        "boundaries": {kind: [one.to_json() for one in found] for kind, found in boundaries.items()},
    }
    keep_record(_KIND, _key(settings), record)


def known_boundaries(settings: ExtractSettings) -> dict[str, list[KnownBoundary]] | None:
    """Return the boundaries of clips and of texts that the settings stand for; None where that is not known for sure.

    No model is opened, and no network library imported.
    """
    live = settings.encoders.live()
    if not all(is_own_source(one.model.partition(":")[0]) and not one.trust_remote_code for _, one in live):
        return None
    record = kept_record(_KIND, _key(settings))
    if record is None or record["software"] != _software():
        return None
    if not all(FileStamps.from_json(fields).still_hold() for fields in record["read_from"]):
        return None
    found = record["boundaries"].items()
    return {kind: [KnownBoundary.from_json(fields) for fields in boundaries] for kind, boundaries in found}


def _key(settings: ExtractSettings) -> str:
    """Return the digest of all settings that boundaries depend on."""
    data = settings.data
    chosen: dict[str, Any] = {
        "encoders": dataclasses.asdict(settings.encoders),
        "places": _places(settings.encoders, settings.base),
        "data": [
            data.segments,
            data.missing_sound,
            data.missing_picture,
            data.stride_seconds,
            data.deinterlace,
            data.channels,
            data.instants,
            data.instants_fps,
        ],
        "dtype": settings.store.dtype,
        "base": str(settings.base.resolve()),
    }
    return record_digest([_VERSION, chosen])


def _places(encoders: EncodersSettings, base: Path) -> list[list[str]]:
    """Return what the names of models and weights lead to as paths, links resolved."""
    names = [(one.model.partition(":")[2].partition("#")[0], one.weights or "") for _, one in encoders.items()]
    return [[str(place_of(name, base.resolve())) for name in pair] for pair in names]


def _software() -> dict[str, str]:
    return {**software(), **decoder_versions("visual"), **decoder_versions("audio")}
