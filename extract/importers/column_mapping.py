"""Meaning of a file or folder of features: its array, axes and the clip of each row; from TOML or by a preset's name.

    name = "vggish"                 # experiments say model = "features:vggish"
    modality = "audio"
    dataset = "avadataset"          # of the .h5 file; "*_features" finds the only one that fits
    ids = "ids"                     # a dataset of the same file that names each row, or …
    rows = "Annotations.txt"        # … a text file whose line i names row i: its field `column`, cut at `delimiter`
    delimiter = "&"
    column = 1
    id_map = ["video_map.json"]     # names of numeric ids: {"name": number}, or records with video_name and video_id
    order = ["train_order.h5"]      # import these rows alone
    axes = "THWD"                   # of one item: T segments, N tokens or H x W, D channels
    step = 6                        # keep every 6th time step, or segments = 10: those at the centres of 10 segments

The presets are how three data sets distribute theirs, read from their own loaders: AVE
(https://github.com/YapengTian/AVE-ECCV18, dataloader.py), AVQA (https://github.com/AlyssaYoung/AVQA, preprocess/) and
MUSIC-AVQA (https://github.com/GeWu-Lab/MUSIC-AVQA, net_grd_avst/dataloader_avst.py).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ...config import Count, CountOrZero, from_mapping, settings_class
from ...errors import SettingsError, unknown_name

AXES = "TNHWD"

PRESETS: dict[str, dict[str, Any]] = {
    # (4143, 10, 7, 7, 512) and (4143, 10, 128) under `avadataset`; row i is line i of Annotations.txt, of which the
    # data set's own copy has a header and the code's has not.
    "ave": {
        "dataset": "avadataset",
        "rows": "Annotations.txt",
        "delimiter": "&",
        "column": 1,
        "header": "VideoID",
        "axes": ("TD", "THWD"),
    },
    # resnet_features (N, 8, 16, 2048), resnext_features and claudio_features (N, 8, D), vlaudio_features (N, D).
    "avqa": {"dataset": "*_features", "ids": "ids", "axes": ("D", "TD", "TND")},
    # vggish (60, 128), res18 (60, 512), res18_14x14 (60, 512, 14, 14), one file a video; the loader takes [::6].
    "music-avqa": {"axes": ("TD", "TDHW"), "step": 6},
}


@settings_class
class FeatureMapping:
    """The mapping; paths count from the mapping's file, or from the features' folder for a preset.

    Args:
        name: what experiments call these features.
        modality: "visual" or "audio".
        axes: the letters of one item's axes in order, or several such of different lengths, of which the one with the
            array's number of axes is taken. T may be absent (one step); N, H, W are flattened to tokens, H before W.
        dataset: of an .h5 file: the array of all rows, `*` standing for any characters; without `ids` and `rows` the
            group (the whole file if absent) of which each dataset is one clip, named by its key.
        ids: the dataset that names each row.
        rows: the text file that names each row, with `delimiter` ("" takes the whole line), `column` from 0, and
            `header`, what that column says in a first line that is no row.
        id_map: JSON files that name the numbers in `ids`: an object {name: number}, or a list of annotations that hold
            `video_name` and `video_id`.
        order: .h5 files with an array `order` of row numbers; only these rows are imported.
        suffix: of a folder's files; the rest of a file's name is its clip's id.
        step: every how many time steps one is kept, from the first.
        segments: keep this many time steps, those at the centres of equal segments; in place of `step`.
        dtype: storage data type.
    """

    name: str
    modality: Literal["visual", "audio"]
    axes: str | tuple[str, ...]
    dataset: str | None = None
    ids: str | None = None
    rows: str | None = None
    delimiter: str = ""
    column: CountOrZero = 0
    header: str | None = None
    id_map: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    suffix: str = ".npy"
    step: Count = 1
    segments: Count | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise SettingsError(f"name: found {self.name!r}, expected letters, digits, '.', '_' and '-'")
        for axes in self.choices:
            letters = set(axes)
            if "D" not in letters or len(letters) < len(axes) or letters - set(AXES):
                raise SettingsError(f"axes: found {axes!r}, expected letters of {AXES}, each once, D among them")
            if "N" in letters and letters & {"H", "W"}:
                raise SettingsError(f"axes: found {axes!r}, expected either N or H and W, not both")
        if self.ids is not None and self.rows is not None:
            raise SettingsError("ids and rows: both name the rows; expected one of them")
        if self.segments is not None and self.step != 1:
            raise SettingsError("step and segments: both choose the time steps; expected one of them")

    @property
    def choices(self) -> tuple[str, ...]:
        """The orders of axes that an item may have, one for each number of axes."""
        return (self.axes,) if isinstance(self.axes, str) else self.axes

    def axes_for(self, num_axes: int) -> str:
        """Return the order of an item's axes.

        Raises:
            SettingsError: none has that many.
        """
        fitting = [axes for axes in self.choices if len(axes) == num_axes]
        if not fitting:
            raise SettingsError(f"axes: {' or '.join(self.choices)}, but an item has {num_axes} axes; name them all")
        return fitting[0]


def read_mapping(path: Path, changes: Mapping[str, Any] | None = None) -> FeatureMapping:
    """Read a mapping's TOML; `changes` take the place of its keys.

    Raises:
        SettingsError: no such file, not TOML, or keys and values that a mapping cannot have.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); expected a mapping's TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    try:
        return from_mapping(FeatureMapping, {**table, **(changes or {})}, where="")
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def preset_mapping(preset: str, changes: Mapping[str, Any]) -> FeatureMapping:
    """Return the mapping of a data set with known features; `changes` give name and modality.

    Raises:
        SettingsError: an unknown preset, or values that a mapping cannot have.
    """
    if preset not in PRESETS:
        raise SettingsError(f"layout: {unknown_name('layout of features', preset, PRESETS)}; or give a mapping's TOML")
    values = {**PRESETS[preset], **changes}
    if "segments" in changes and "step" not in changes:
        values.pop("step", None)
    return from_mapping(FeatureMapping, values, where="")
