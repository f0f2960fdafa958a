"""Writes an experiment file for a data set and a preset: commented, with its estimate of disk and time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache import atomic_io as durable
from ...errors import SettingsError, unknown_name
from ...formats import readable_seconds
from .datasets import DATA, DataPart
from .encoders import PRESETS, Preset

#: What the estimates of time count with: a GPU's sustained rate, and one core's time for one clip's frames and sound.
GPU_TFLOPS, DECODE_SECONDS, DECODE_CORES = 20.0, 0.5, 8

_BYTES = 2  # of a number as float16


SCHEMA_FILE = "experiment.schema.json"  # named in the experiment file's first line, for editors


def init(
    dataset: str, folder: Path | str, *, preset: str = "small", schema: Mapping[str, Any] | None = None
) -> list[str]:
    """Write `folder`/experiment.toml, and return what there is to say of it, one line each.

    Args:
        dataset: music-avqa, ave, avqa, manifest, demo or evaluation.
        folder: made where it is not there.
        preset: lavish, trimodal or small.
        schema: the JSON Schema of experiment files, written beside it and named in its first line, so that editors
            complete and check it; None for neither.

    Raises:
        SettingsError: an unknown data set or preset, or a file that is there already.
        StoreError: the disk refuses.
    """
    if dataset not in DATA:
        raise SettingsError(unknown_name("data set", dataset, DATA))
    if preset not in PRESETS:
        raise SettingsError(unknown_name("preset", preset, PRESETS))
    path = Path(folder) / "experiment.toml"
    if path.exists():
        raise SettingsError(f"{path}: is there already; remove it, or name another folder")
    durable.make_folder(path.parent.absolute())
    text = preset_text(dataset, preset)
    if schema is not None:
        durable.write_file(
            path.with_name(SCHEMA_FILE), f"{json.dumps(schema, indent=1, ensure_ascii=False)}\n".encode()
        )
        text = f"#:schema ./{SCHEMA_FILE}\n{text}"
    durable.write_file(path, text.encode())
    return [f"{path}: {dataset}, preset {preset}", *estimate(DATA[dataset], PRESETS[preset])]


def preset_text(dataset: str, preset: str) -> str:
    """Return the experiment file of a data set and a preset."""
    data, chosen = DATA[dataset], PRESETS[preset]
    segments = chosen.segments or data.segments
    modalities = '"visual", "audio", "text"' if data.asks else '"visual", "audio"'
    window = min(10.0, data.seconds / segments)
    words = {
        "window": max(window, 1.0),
        "modalities": modalities,
        "sound": chosen.sound(dataset),
    }
    parts = [
        f"# Written by `talik init {dataset} --preset {preset}`. Change what you like: unknown keys are refused.",
        chosen.about.rstrip("\n"),
        "#",
        *(f"# {line}" for line in estimate(data, chosen)),
        "",
        f"{data.table}segments = {segments}                     # T: a frame and a window of sound each",
        data.instants + chosen.instants(dataset),
        chosen.clips.format(**words),
        *([chosen.text] if data.asks else []),
        _REST.format(kind=data.kind, batch_size=chosen.batch_size),
        chosen.variants.format(**words),
    ]
    return "\n".join(parts)


def estimate(data: DataPart, preset: Preset) -> list[str]:
    """Return the disk and the time that a preset takes on a data set, with what is counted."""
    segments = preset.segments or data.segments
    sizes = {c: data.num_clips * segments * c.numbers * _BYTES / 1e9 for c in preset.cached}
    parts = ", ".join(f"{c.modality} {c.boundary}: {size:.3g}" for c, size in sizes.items())
    seconds = data.num_clips * segments * preset.gflops / (GPU_TFLOPS * 1e3)
    decoding = data.num_clips * DECODE_SECONDS / DECODE_CORES
    return [
        f"Estimated for {data.num_clips} clips of {segments} segments, stored as float16:",
        f"  disk: {sum(sizes.values()):.3g} GB (GB by boundary: {parts}); texts are small beside it",
        f"  time of stage 1: {readable_seconds(max(seconds, decoding))}, the longer of",
        f"    encoders {readable_seconds(seconds)} at {GPU_TFLOPS:g} TFLOP/s ({preset.gflops:g} GFLOP a segment), and",
        f"    decoding {readable_seconds(decoding)} on {DECODE_CORES} cores at {DECODE_SECONDS:g} s of one core a clip",
        "  both are counted, not measured: `talik plan` measures this machine",
    ]


_REST = """\
[store]
path = "features.zarr"
dtype = "float16"

[task]
kind = "{kind}"

[train]
epochs = 10
batch_size = {batch_size}
lr = 5e-4                         # of adapters
head_lr = 1e-3

[sweep]
seeds = [0, 1, 2]
"""
