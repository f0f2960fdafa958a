"""Settings of augmented views: which random changes, how strong, drawn from which seed. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...config import Amount, Share, settings_class
from ...errors import SettingsError

VISUAL = ("crop", "flip", "jitter")
AUDIO = ("shift_seconds", "time_mask", "frequency_mask")


@settings_class
class AugmentSettings:
    """What an augmented view changes of a clip; the same draw holds for all its frames or windows.

    Args:
        crop: smallest and largest share of the frame's area that is kept, each more than 0 and at most 1; the box is a
            random place, its aspect relative to the frame's 3/4 to 4/3 (visual).
        flip: probability of a mirrored picture, 0 to 1 (visual).
        jitter: brightness, contrast and saturation each times 1 - jitter to 1 + jitter, 0 to 1 (visual).
        shift_seconds: each window of sound is turned round by up to this much, either way (audio).
        time_mask, frequency_mask: largest share of a spectrogram's frames or bands replaced by its mean, 0 to 1, as
            SpecAugment (Park et al. 2019) with one mask each (audio).
        seed: of all draws.
    """

    crop: tuple[float, float] | None = None
    flip: Share = 0.0
    jitter: Share = 0.0
    shift_seconds: Amount = 0.0
    time_mask: Share = 0.0
    frequency_mask: Share = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise SettingsError(
                f"crop: found {list(self.crop)}, expected [smallest, largest] share, above 0, at most 1"
            )

    def active(self) -> dict[str, Any]:
        """The changes that are not left out, as JSON."""
        values = {**asdict(self), "crop": None if self.crop is None else list(self.crop)}
        return {name: values[name] for name in (*VISUAL, *AUDIO) if values[name]}

    def view_identity(self, plain: Mapping[str, Any], view: int) -> dict[str, Any]:
        """What identifies the states of augmented view `view` (from 1), as JSON: the plain identity, and the draw."""
        return {**plain, "view": {"number": view, "seed": self.seed, **self.active()}}


def check_views(views: int, augment: AugmentSettings | None) -> None:
    """Refuse random changes without stored views of them, and views that would all be the plain one.

    Raises:
        SettingsError: either.
    """
    active = list(augment.active()) if augment is not None else []
    if active and not views:
        raise SettingsError(
            f"augment: {', '.join(active)} would change at random what is cached once; set views to the number of "
            "augmented views to store, or remove augment"
        )
    if views and not active:
        raise SettingsError(f"views: found {views}, but nothing in augment; each view would be the plain one")


def check_modality(modality: str, augment: AugmentSettings | None) -> None:
    """Refuse changes that a modality cannot have.

    Raises:
        SettingsError: changes of sound for a picture, of a picture for sound, any for texts.
    """
    fitting = {"visual": VISUAL, "audio": AUDIO}.get(modality, ())
    strange = [name for name in (augment.active() if augment is not None else ()) if name not in fitting]
    if strange:
        known = ", ".join(fitting) or "nothing"
        raise SettingsError(f"{modality}.augment: {', '.join(strange)} do not apply; expected {known}")


def view_number(identity: Mapping[str, Any]) -> int:
    """The number of the view that an identity is of, 0 for the plain one."""
    return int(identity.get("view", {}).get("number", 0))


def kind_of(identity: Mapping[str, Any]) -> str:
    """What a person is to know of a boundary: "view 2", "features:NAME", or "" for plain states."""
    if "imported" in identity:
        return f"features:{identity['imported']['name']}"
    view = view_number(identity)
    return f"view {view}" if view else ""


def drawn_view(view_seed: int, modality: str, key: str, num_views: int) -> int:
    """The view of an item in an epoch that `view_seed` stands for: 0 (plain) to `num_views`, each as likely."""
    return draw_seed(view_seed, modality, key) % (num_views + 1)


def draw_seed(seed: int, *parts: object) -> int:
    """A seed of its own for each item and purpose, so that no draw depends on another or on their order."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big")
