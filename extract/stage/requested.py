"""What an experiment asks of a store, boundary by boundary; the room that it takes is known before the first byte."""

from __future__ import annotations

from collections.abc import Iterator

from ...cache.feature_store import FeatureStore
from ...cache.write.disk_space import Asked, bytes_missing
from ..datasets.load import load_manifest
from ..datasets.types import Manifest
from ..encoders.imported_features import open_features_encoder
from .clips import AskedClips, ask_clips
from .settings import ExtractSettings
from .texts import AskedTexts, ask_texts


def asked_of(
    settings: ExtractSettings, store: FeatureStore, *, deep: bool = False, device: str = "cpu", progress: bool = True
) -> list[Asked]:
    """Return what `extract` would write into `store`, were it empty.

    Args:
        settings: of the experiment; its own store's path does not matter.
        store: whose items' digests are taken over where a file has their size and time.
        deep: digest every file, whatever its size and time.
        device: where the encoders are opened.
        progress: show a tqdm bar over the digests.

    Raises:
        SettingsError, ManifestError, MissingMediaError, EncoderError: as `extract` does.
    """
    manifest = load_manifest(settings.manifest_settings, base=settings.base)
    clips = ask_clips(settings, manifest, store, device=device, progress=progress, deep=deep)
    return list(_boundaries(clips, ask_texts(settings, trainable(settings, manifest), device=device)))


def trainable(settings: ExtractSettings, manifest: Manifest) -> Manifest:
    """Return the part of the data set whose questions can be trained on: imported features need no files."""
    imported = any(encoder.is_imported for _, encoder in settings.encoders.items())
    return manifest if imported else manifest.present()


def imported_boundaries(settings: ExtractSettings, store: FeatureStore) -> list[str]:
    """Return the paths of the imported features that an experiment reads from `store`.

    Raises:
        MissingItemError, StoreMismatchError: features that are not there, or are not those.
    """
    live = {modality for modality, _ in settings.encoders.live()}
    named = [(m, s) for m, s in settings.encoders.items() if m not in live]
    segments = settings.data.segments
    return [open_features_encoder(s.model, store, modality=m, num_segments=segments).stored.path for m, s in named]


def refuse_what_cannot_fit(store: FeatureStore, clips: AskedClips | None, texts: AskedTexts | None) -> None:
    """Refuse an extraction for which the disk has no room.

    Raises:
        StoreFullError: all its boundaries together do not fit; nothing was written.
    """
    asked = list(_boundaries(clips, texts))
    missing = [size for size in (bytes_missing(store.path, one) for one in asked) if size]
    store.refuse_if_full(sum(missing), what=f"{len(missing)} boundaries", num_boundaries=len(missing))


def _boundaries(clips: AskedClips | None, texts: AskedTexts | None) -> Iterator[Asked]:
    for spec in clips.specs if clips else ():
        assert clips is not None
        yield Asked(spec=spec, items=tuple(clips.items))
    for spec in texts.specs if texts else ():
        assert texts is not None
        yield Asked(spec=spec, items=tuple(texts.items), lengths=tuple(texts.lengths))
