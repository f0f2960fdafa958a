"""Digests of a model's weights, taken once for the files that they are read from and remembered.

They are kept in the user's cache folder with the stamps of these files, the options that the model was opened with and
the versions of what opened it. They count only while all of them are as they were, before the model was loaded and
after.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from .cache_folder import keep_record, kept_record, record_digest
from .file_stamps import FileStamps
from .fingerprint import named_weights, weight_digests
from .options import EncoderOptions
from .software import software

_KIND, _VERSION = "weights", 1


def known_weight_digests(model: nn.Module, options: EncoderOptions, read_from: FileStamps | None) -> dict[str, str]:
    """Return the digest of every weight by name: remembered, or taken now and kept.

    Args:
        model: with its weights.
        options: that it was opened with.
        read_from: the files that it was read from, as they were before; None where nothing is to be remembered.
    """
    if read_from is None:
        return weight_digests(model)
    record = {"software": software(), "read_from": read_from.to_json()}
    key = record_digest([_VERSION, _plain(options)])
    kept = kept_record(_KIND, key) or {}
    digests: dict[str, str] = kept.get("digests", {})
    if (
        kept == {**record, "digests": digests}
        and digests.keys() == named_weights(model).keys()
        and read_from.still_hold()
    ):
        return digests
    digests = weight_digests(model)
    keep_record(_KIND, key, {**record, "digests": digests})
    return digests


def _plain(options: EncoderOptions) -> dict[str, str]:
    """Return the options as text, without where the model runs and what is computed in: weights are digested before."""
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: str(value) for name, value in fields.items() if name not in ("device", "model", "compute")}
