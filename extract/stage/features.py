"""`features`: what a layer of a pretrained encoder gives for a folder of files, without an experiment."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ...cache.feature_store import FeatureStore
from ...cache.format.digests import digest_text
from ...cache.open import open_store
from ...cache.read.boundary_reader import BoundaryReader
from ...errors import SettingsError, counted, unknown_name
from ..datasets.settings import DataSettings
from ..datasets.types import Manifest
from ..encoders.options import MODALITIES, Compute, Modality
from ..media.frame_folder import IMAGE_SUFFIXES
from .extract import extract
from .feature_file import FORMATS, Pool, pooled, write_features
from .items import ClipDigests, clip_items
from .media_files import SUFFIXES, files_manifest, guess_modality, named_files
from .settings import Cut, EncoderSettings, EncodersSettings, ExtractSettings, StoreSettings

if TYPE_CHECKING:
    import pandas as pd

SEGMENTS = 10  # of a film or sound, as [data] segments has it; a picture is one


class Features(Mapping[str, NDArray[np.float32]]):
    """Features by file name, read from the store when they are asked for; a mapping.

    An array is (T, N, D): T segments, N tokens of each, D channels; of a text (L, D): L tokens. With `pool="mean"` the
    tokens' mean is taken: (T, D), of a text (D,).

    Attributes:
        keys_by_name: the item key of each file in the store.
        spec: the boundary in the store.
        skipped: files that could not be decoded, with the reason; only where that was allowed.
    """

    def __init__(
        self,
        reader: BoundaryReader,
        keys_by_name: Mapping[str, str],
        *,
        pool: Pool,
        skipped: tuple[tuple[str, str], ...],
        resources: ExitStack,
    ) -> None:
        """Use `talik.features`; `resources`, the reader among them, are closed with this object."""
        self.spec = reader.spec
        self.keys_by_name = dict(keys_by_name)
        self.skipped = skipped
        self._pool: Pool = pool
        self._reader = reader
        self._resources = resources

    def __repr__(self) -> str:
        shape = " x ".join(self.axes)
        return f"Features({counted(len(self), 'file')}, {self.spec.path}, each {shape})"

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return the features of one file.

        Raises:
            KeyError: no file of that name.
        """
        import ml_dtypes

        key = self.keys_by_name[name]
        with self._reader.read([key]) as batch:
            hidden = batch.hidden[0]
            if batch.dtype == "bfloat16":
                hidden = hidden.view(ml_dtypes.bfloat16)
            return pooled(hidden.astype(np.float32), self._pool)

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in the order of the files."""
        return iter(self.keys_by_name)

    def __len__(self) -> int:
        """Return how many files have features."""
        return len(self.keys_by_name)

    def batches(self, size: int = 64) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Yield names and features of `size` files at a time, (size, T, N, D); the last may be fewer.

        Raises:
            SettingsError: files whose features differ in shape, such as texts that are not pooled.
        """
        names = list(self)
        for start in range(0, len(names), size):
            part = names[start : start + size]
            yield part, _stacked({name: self[name] for name in part})

    def to_numpy(self) -> NDArray[np.float32]:
        """Return the features of all files as one array, (files, T, N, D), in the order of the names.

        Raises:
            SettingsError: files whose features differ in shape, such as texts that are not pooled.
        """
        return _stacked(dict(self))

    def to_pandas(self) -> pd.DataFrame:
        """Return a table: a row for each token of each segment of each file, a column for each channel.

        With `pool="mean"` a row is a segment, or a text. The index names file, segment and token.
        """
        import pandas as pd

        named = {name: array.reshape(-1, array.shape[-1]) for name, array in self.items()}
        axes = [a for a in self.axes if a != "channel"]
        index = [(name, *place) for name, array in self.items() for place in np.ndindex(array.shape[:-1])]
        rows = np.concatenate(list(named.values()))
        return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(index, names=["file", *axes]))

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes of an array stand for: of ("segment", "token", "channel") those that it has."""
        segment = () if self.spec.modality == "text" else ("segment",)
        return (*segment, *(() if self._pool == "mean" else ("token",)), "channel")

    def save(self, path: Path | str) -> None:
        """Write all features to a file: `.npz`, `.h5` or `.parquet`.

        Raises:
            SettingsError: another ending, or pyarrow missing for `.parquet`.
        """
        write_features(self, Path(path), axes=self.axes)

    def close(self) -> None:
        """Close the store's files; a temporary store is deleted."""
        self._resources.close()

    def __enter__(self) -> Features:
        """Return the features."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self.close()


def features(
    paths: str | Path | Iterable[str | Path],
    *,
    encoder: str,
    layer: Cut,
    out: str | Path | None = None,
    modality: Modality | None = None,
    weights: str | None = None,
    segments: int | None = None,
    pool: Pool = "none",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    compute: Compute = "float32",
    allow_missing: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Features:
    """Compute what one layer of a pretrained encoder gives for files: videos, sounds, pictures or texts.

    An interrupted call goes on where it was: states lie in a store, `out` itself or one in the folder `out` +
    ".partial" beside it, which is deleted once `out` is whole.

    Args:
        paths: files and folders; folders are searched. A text file is one text.
        encoder: "timm:NAME", "hf:NAME-or-folder" or "pip:NAME".
        layer: the boundary: what crosses between unit `layer - 1` and unit `layer`; 0 is the embedding, negative
            numbers count from the number of units n, and n, or "end", is what the last unit gives.
        out: where the features go: a store (`.zarr`) or a file (`.npz`, `.h5`, `.parquet`). None for a temporary store
            that the result deletes when it is closed.
        modality: what of the files the encoder reads: "visual", "audio" or "text"; by default by their endings.
        weights: a file in place of the model's own weights, or "random".
        segments: T, equal parts of a film or sound that one frame or window each is taken from; 10 by default, and 1
            where all files are still pictures.
        pool: "mean" averages the tokens of each segment; "none" keeps them.
        dtype: that states are stored in; arrays are float32 in any case.
        compute: what they are computed in: "float32", "tf32" or "bfloat16"; see `EncoderSettings`.
        allow_missing: go on without files that cannot be decoded; they are in `Features.skipped`.
        device: where the encoder runs; "auto" is a GPU where there is one.
        progress: show tqdm bars.

    Returns:
        The features, by file name.

    Raises:
        SettingsError: a value outside its range, an ending that is not known, files of several kinds.
        MissingMediaError: a path that does not exist.
        MediaError: files that cannot be decoded, all of them named; the others are kept for the next call.
        EncoderError, TrunkError: a model that cannot be opened, or cut there.

    Example:
        >>> import talik
        >>> vision = {"encoder": "timm:test_vit", "weights": "random", "progress": False}
        >>> with talik.features("data/clips/video.mp4", layer=-1, segments=2, **vision) as found:
        ...     list(found), found["video.mp4"].shape
        (['video.mp4'], (2, 101, 64))
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    modality = modality or guess_modality(given)
    if modality not in MODALITIES:
        raise SettingsError(f"modality: {unknown_name('modality', modality, MODALITIES)}")
    if pool not in ("none", "mean"):
        raise SettingsError(f'pool: found {pool!r}, expected "none" or "mean"')
    files = named_files(given, SUFFIXES[modality])
    manifest = files_manifest(files, modality)
    still = all(path.suffix.lower() in IMAGE_SUFFIXES for path in files.values())
    segments = segments or (1 if still else SEGMENTS)
    with ExitStack() as stack:
        if out is None:
            target = Path(stack.enter_context(TemporaryDirectory(prefix="talik-features-"))) / "features.zarr"
        else:
            target = _target(out)
        folder = _store_of(target)
        chosen = EncoderSettings(model=encoder, cut=layer, weights=weights, compute=compute)
        settings = ExtractSettings(
            data=DataSettings(dataset="manifest", root=".", segments=segments, allow_missing=allow_missing),
            encoders=EncodersSettings(**{modality: chosen}),
            store=StoreSettings(path=str(folder.resolve()), dtype=dtype),
        )
        report = extract(settings, manifest=manifest, device=device, progress=progress)
        (spec,) = report.boundaries
        store = open_store(folder)
        reader = stack.enter_context(store.reader(spec.modality, spec.boundary, identity=spec.identity))
        stored = {item.key for item in reader.items}
        keys = {name: key for name, key in _item_keys(manifest, store).items() if key in stored}
        found = Features(reader, keys, pool=pool, skipped=report.skipped, resources=stack.pop_all())
    if folder != target:
        found.save(target)
        found.close()
        shutil.rmtree(folder.parent)
    return found


def _item_keys(manifest: Manifest, store: FeatureStore) -> dict[str, str]:
    """The item key of each file by name; of clips, as extraction has just left it in the store's memory."""
    texts = {question.id: digest_text(question.text) for question in manifest.questions}
    clips = clip_items(manifest, ClipDigests(store, manifest), progress=False).items
    return texts | {name: item.key for name, item in clips.items()}


def _target(out: str | Path) -> Path:
    if Path(out).suffix not in (".zarr", *FORMATS):
        raise SettingsError(f"out: {out}: expected an ending of {', '.join(('.zarr', *FORMATS))}")
    return Path(out)


def _store_of(target: Path) -> Path:
    """The store that is `target`, or the one in a folder beside it that lasts until `target` is whole."""
    return target if target.suffix == ".zarr" else target.with_name(f"{target.name}.partial") / "features.zarr"


def _stacked(arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        first, other = next(iter(shapes)), next(n for n, s in shapes.items() if s != next(iter(shapes.values())))
        raise SettingsError(
            f'{first} has features {shapes[first]}, {other} {shapes[other]}: not one array; set pool = "mean", or take '
            "them one by one"
        )
    return np.stack(list(arrays.values()))
