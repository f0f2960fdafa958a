"""Opening a transformers model: from a folder, from the hub by name, or with random weights from its configuration."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...cache.format.digests import digest_json
from ...errors import EncoderError, SettingsError, TalikError
from .audio_windows import fit_window
from .checkpoint_file import load_weights
from .file_stamps import FileStamps
from .hf_video import native_size, prepare_frames
from .model_folders import find_model, hub_refusal, place_of
from .model_sources import OpenedModel, Prepared
from .options import EncoderOptions
from .peft_weights import is_adapter_folder, load_adapter, unwrapped
from .plain_json import plain_json
from .preprocess import AudioPreprocess, BytePreprocess, Preprocess, TextPreprocess
from .spectrogram import prepare_spectrogram
from .text_length import declared_length, longest_text, set_padding, shorter

# names of a configuration that say nothing about what a prefix computes
_SILENT = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id",
    "num_labels", "problem_type", "finetuning_task", "return_dict", "output_hidden_states", "output_attentions",
    "use_cache", "chunk_size_feed_forward", "initializer_range", "initializer_factor", "gradient_checkpointing",
    "_attn_implementation", "attn_implementation", "auto_map", "bos_token_id", "eos_token_id", "sep_token_id",
    "num_hidden_layers", "encoder_layers", "num_layers", "depth", "n_layers", "decoder_layers", "use_bfloat16",
    "stage_names", "out_features", "out_indices", "is_encoder_decoder", "tie_word_embeddings",
}  # fmt: skip


def open_hf(options: EncoderOptions, *, model_class: str | None = None) -> OpenedModel:
    """Open `hf:NAME-or-folder[#part]`.

    Args:
        options: which model, with which weights and preprocessing.
        model_class: the transformers class to load instead of the automatic one.

    Raises:
        EncoderError: no such folder or model, weights that do not fit the model exactly, or remote code not allowed.
    """
    written, _, part = options.name.partition("#")
    name = find_model(f"hf:{written}", written, options.folder, whole=options.model is None)
    read_from = FileStamps.of([name, *options.own_weights]) if options.is_plain and Path(name).is_dir() else None
    with quiet_transformers():
        model, wrapper = unwrapped(_load(name, options, model_class) if options.model is None else options.model)
        model, wrapper = (_part(model, part, name), None) if part else (model, wrapper)
        prepared = _prepare(model, name, options)
    forward = caller(model, prepared.image_size)
    return OpenedModel(
        model=model,
        forward=forward,
        wrapper=None if wrapper is None else caller(model, prepared.image_size, run=wrapper),
        config=relevant_config(model.config),
        is_random=options.is_random,
        read_from=read_from,
        **vars(prepared),
    )


def _load(name: str, options: EncoderOptions, model_class: str | None) -> Any:
    import transformers

    remote: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    kind = getattr(transformers, model_class, None) if model_class else transformers.AutoModel
    if kind is None:
        from transformers.models.whisper import modeling_whisper

        kind = getattr(modeling_whisper, str(model_class))
    try:
        if not model_class:
            kind = _named_class(transformers, name, remote) or kind
        if options.is_random:
            return _from_config(transformers, kind, name, remote)
        if options.weights is not None and Path(options.weights).is_file():
            model = _from_config(transformers, kind, name, remote)
            load_weights(model, options.weights)
            return model
        adapted = is_adapter_folder(options.weights)
        source = name if options.weights is None or adapted else str(options.weights)
        extra = remote if kind is transformers.AutoModel else {}
        model, info = kind.from_pretrained(source, output_loading_info=True, dtype=torch.float32, **extra)
    except TalikError:
        raise
    except Exception as error:  # whatever the library, or code that comes with the model, raises
        raise EncoderError(f"hf:{name}: cannot be opened: {_reason(error, options)}") from None
    absent = sorted(info["missing_keys"]) + sorted(str(k) for k in info.get("mismatched_keys", ()))
    if absent:
        raise EncoderError(
            f"hf:{name}: {len(absent)} weights are not in the file, the first {absent[0]!r}; expected all"
        )
    return load_adapter(model, str(options.weights)) if adapted else model


def _reason(error: Exception, options: EncoderOptions) -> str:
    """Return one line that says why a model could not be loaded."""
    refused = hub_refusal(error)
    if refused is not None:
        folder = place_of(options.name.partition("#")[0], options.folder)
        return f"there is no folder {folder}, and {refused}"
    line = " ".join(str(error).split())[:300]
    return line if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {line}"


def _named_class(transformers: Any, name: str, remote: dict[str, Any]) -> Any:
    """Return the class that a configuration names, where the automatic one does not know it (a part saved alone).

    So too where the model's own code has it: the automatic class would keep the code that it loaded first, edits aside.
    """
    config = transformers.AutoConfig.from_pretrained(name, **remote)
    own = (getattr(config, "auto_map", None) or {}).get("AutoModel")
    if own is not None and remote["trust_remote_code"]:
        return transformers.dynamic_module_utils.get_class_from_dynamic_module(own, name)
    if type(config) in transformers.AutoModel._model_mapping or hasattr(config, "auto_map"):
        return None
    return next((getattr(transformers, n) for n in config.architectures or () if hasattr(transformers, n)), None)


def _from_config(transformers: Any, kind: Any, name: str, remote: dict[str, Any]) -> Any:
    """Make the model from its configuration alone, with random weights (drawn without touching the global state)."""
    config = transformers.AutoConfig.from_pretrained(name, **remote)
    config.architectures = config.architectures or []  # which transformers iterates over
    named = kind is not transformers.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config) if named else kind.from_config(config, **remote)


def _part(model: Any, part: str, name: str) -> Any:
    for attribute in (part, f"{part}_model"):
        found = getattr(model, attribute, None)
        if isinstance(found, nn.Module):
            return found
    known = [n for n, m in model.named_children()]
    raise EncoderError(f"hf:{name}: has no part {part!r}; expected one of {', '.join(known)}")


def relevant_config(config: Any) -> dict[str, Any]:
    """Return the configuration without what cannot change a prefix's numbers (depth, labels, paths, versions)."""
    plain = plain_json(config.to_dict())
    silent_ends = ("dropout", "layerdrop", "_dropout_prob", "drop_path_rate")
    return {
        name: value
        for name, value in plain.items()
        if name not in _SILENT
        and not name.endswith(silent_ends)
        and not name.startswith(("decoder_", "mask_time", "mask_feature"))
    }


def caller(model: Any, image_size: tuple[int, int] | None, *, run: Callable[..., Any] | None = None) -> Any:
    """Return how to run the model on a dict of inputs; other image sizes ask it to interpolate its positions.

    `run` is what is called in its place: a wrapper around it.
    """
    accepted = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {}
    native = getattr(model.config, "image_size", None)
    if (
        image_size is not None
        and "interpolate_pos_encoding" in accepted
        and native not in (image_size[0], list(image_size))
    ):
        extra["interpolate_pos_encoding"] = True
    extra.update({name: False for name in ("use_cache", "use_mems") if name in accepted})  # no memory between calls

    def forward(inputs: dict[str, Tensor]) -> Any:
        return (run or model)(**inputs, **extra)

    return forward


def _prepare(model: Any, name: str, options: EncoderOptions) -> Prepared:
    if options.modality == "visual":
        return prepare_frames(model, name, options, lambda size: caller(model, size))
    if options.modality == "audio" and getattr(model, "main_input_name", "") == "pixel_values":
        if options.picture is None and _has_sound_extractor(name):
            return _prepare_sound(model, name, options)
        num_channels = int(getattr(model.config, "num_channels", 3))
        return prepare_spectrogram(options, size=native_size(model.config), num_channels=num_channels)
    if options.picture is not None:
        raise SettingsError("picture: found settings, expected none: the model takes sound, or frames, as they are")
    if options.modality == "audio":
        return _prepare_sound(model, name, options)
    return Prepared(preprocess=_texts(model, name, options))


def _has_sound_extractor(name: str) -> bool:
    """Whether a model that takes pictures brings what makes them of sound."""
    from transformers import AutoFeatureExtractor, SequenceFeatureExtractor

    try:
        return isinstance(AutoFeatureExtractor.from_pretrained(name), SequenceFeatureExtractor)
    except (OSError, ValueError, KeyError, ImportError):
        return False


def _prepare_sound(model: Any, name: str, options: EncoderOptions) -> Prepared:
    from transformers import AutoFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError):
        raise EncoderError(f"hf:{name}: has no feature extractor for sound (preprocessor_config.json)") from None
    except ImportError as error:  # of a library that it is written in
        line = " ".join(str(error).split())
        raise EncoderError(f"hf:{name}: its feature extractor cannot be opened: {line[:200]}") from None
    audio, notes = fit_window(model, extractor, options.window_seconds)
    _check_repeats(audio, name)
    return Prepared(
        preprocess=audio,
        sample_rate_hz=audio.sample_rate_hz,
        window_seconds=audio.window_seconds,
        notes=tuple(notes),
    )


def _check_repeats(audio: AudioPreprocess, name: str) -> None:
    """Raise an EncoderError unless the extractor gives the same for the same sound (dither draws at random)."""
    samples = round(audio.window_seconds * audio.sample_rate_hz)
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, samples), dtype=np.float32)
    first, second = (audio(noise) for _ in range(2))
    drawn = [key for key, value in first.items() if not torch.equal(value, second[key])]
    if drawn:
        raise EncoderError(
            f"hf:{name}: {type(audio.extractor).__name__} draws {drawn[0]} at random; expected the same for the "
            "same sound (set its dither to 0 in preprocessor_config.json)"
        )


def _texts(model: Any, name: str, options: EncoderOptions) -> Preprocess:
    from transformers import AutoTokenizer

    longest = longest_text(model)
    folder = Path(name)
    has_tokenizer = not folder.is_dir() or any(folder.glob("*token*")) or any(folder.glob("vocab*"))
    if not has_tokenizer:
        if not options.is_random:
            raise EncoderError(f"hf:{name}: has no tokenizer files; expected tokenizer.json beside config.json")
        if not isinstance(getattr(model.config, "vocab_size", None), int):
            raise EncoderError(f"hf:{name}: takes no texts; expected a text encoder, or its part: hf:NAME#text")
        return BytePreprocess(vocab_size=model.config.vocab_size, max_length=longest)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=options.trust_remote_code)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    set_padding(tokenizer, model)
    return TextPreprocess(
        tokenizer,
        max_length=shorter(longest, tokenizer),
        declared_length=shorter(declared_length(model.config), tokenizer),
        digest=digest_json([type(tokenizer).__name__, content]),
    )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports while a model loads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
