"""Converters of packaged weights into Hugging Face folders: an ONNX DINOv2, a CTranslate2 Whisper, a sentence BERT.

Each takes the file inside the package and an empty folder, and writes config.json, model.safetensors (float32, the
names of the published checkpoints) and the processor's or tokenizer's files there.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..errors import EncoderError

Array = NDArray[np.generic]

_DINOV2_CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "use_mask_token": False,
}
# the published facebook/dinov2-small preprocessor
_DINOV2_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}
_WHISPER_CONFIG: dict[str, Any] = {
    "architectures": ["WhisperEncoder"],
    "model_type": "whisper",
    "vocab_size": 51864,
    "num_mel_bins": 80,
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "activation_function": "gelu",
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "scale_embedding": False,
}
_WHISPER_PROCESSOR: dict[str, Any] = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
    "padding_value": 0.0,
    "dither": 0.0,
    "return_attention_mask": False,
}
_CTRANSLATE2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def convert_dinov2_onnx(source: Path, folder: Path) -> None:
    """Write the DINOv2 ViT-S/14 inside an ONNX graph as a Dinov2Model folder.

    Raises:
        EncoderError: the onnx package is missing, or the graph holds other tensors than expected.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise EncoderError(f"{source.name}: reading ONNX needs the onnx package; run: pip install onnx") from None
    graph = onnx.load(str(source)).graph
    arrays = {t.name: t for t in graph.initializer}
    tensors: dict[str, Array] = {}
    for name in arrays:
        if name.startswith("backbone."):
            tensors[name.removeprefix("backbone.")] = numpy_helper.to_array(arrays[name])
    for node in graph.node:  # linear weights lost their names; the node that uses one still has it, transposed
        match = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.*)/MatMul", node.name)
        if match and len(node.input) == 2 and node.input[1] in arrays:
            name = match[1].replace("/", ".") + ".weight"
            tensors[name] = numpy_helper.to_array(arrays[node.input[1]]).T
    tensors["embeddings.position_embeddings"] = np.concatenate(_position_tables(arrays, numpy_helper), axis=1)
    expected = 5 + 12 * 18 + 1  # class token, projection, final norm; the units; positions
    if len(tensors) != expected:
        raise EncoderError(f"{source.name}: found {len(tensors)} DINOv2 tensors, expected {expected}")
    _save(folder, tensors, _DINOV2_CONFIG)
    _write_json(folder / "preprocessor_config.json", _DINOV2_PROCESSOR)


def _position_tables(arrays: dict[str, Any], numpy_helper: Any) -> list[Array]:
    """Return the position of the class token (1, 1, 384) and those of the 37 x 37 patches (1, 1369, 384)."""
    found = []
    for shape in ([1, 1, 384], [1, 1369, 384]):
        names = [n for n, t in arrays.items() if list(t.dims) == shape and not n.startswith("backbone.")]
        if len(names) != 1:
            raise EncoderError(f"ONNX graph: found {len(names)} tables of shape {shape}, expected 1")
        found.append(numpy_helper.to_array(arrays[names[0]]))
    return found


def convert_whisper_ctranslate2(source: Path, folder: Path) -> None:
    """Write the encoder of a CTranslate2 Whisper model as a WhisperEncoder folder.

    Raises:
        EncoderError: another specification than Whisper's, or other shapes than tiny.en's.
    """
    variables = read_ctranslate2(source)
    tensors: dict[str, Array] = {"embed_positions.weight": variables["encoder/position_encodings/encodings"]}
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            tensors[f"{conv}.{kind}"] = variables[f"encoder/{conv}/{kind}"]
    _put_norm(tensors, variables, "encoder/layer_norm", "layer_norm")
    for i in range(_WHISPER_CONFIG["encoder_layers"]):
        old, new = f"encoder/layer_{i}", f"layers.{i}"
        _put_norm(tensors, variables, f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
        _put_norm(tensors, variables, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
        weights = np.split(variables[f"{old}/self_attention/linear_0/weight"], 3)
        biases = np.split(variables[f"{old}/self_attention/linear_0/bias"], 3)
        for part, weight, bias in zip("qkv", weights, biases, strict=True):
            tensors[f"{new}.self_attn.{part}_proj.weight"] = weight
            if part != "k":
                tensors[f"{new}.self_attn.{part}_proj.bias"] = bias
            elif np.any(bias):
                raise EncoderError(f"{source.name}: Whisper's key projection has no bias, found one in layer {i}")
        for ours, theirs in (
            ("self_attn.out_proj", "self_attention/linear_1"),
            ("fc1", "ffn/linear_0"),
            ("fc2", "ffn/linear_1"),
        ):
            for kind in ("weight", "bias"):
                tensors[f"{new}.{ours}.{kind}"] = variables[f"{old}/{theirs}/{kind}"]
    _save(folder, tensors, _WHISPER_CONFIG)
    _write_json(folder / "preprocessor_config.json", _WHISPER_PROCESSOR)


def _put_norm(tensors: dict[str, Array], variables: dict[str, Array], old: str, new: str) -> None:
    tensors[f"{new}.weight"] = variables[f"{old}/gamma"]
    tensors[f"{new}.bias"] = variables[f"{old}/beta"]


def read_ctranslate2(path: Path) -> dict[str, Array]:
    """Read the variables of a CTranslate2 model file, as stored (`save` in ctranslate2/specs/model_spec.py).

    Raises:
        EncoderError: not a CTranslate2 Whisper file of binary version 6, or cut short.
    """
    try:
        with path.open("rb") as file:
            (version,) = _unpack(file, "<I")
            spec = _string(file)
            if version != 6 or spec != "WhisperSpec":
                raise EncoderError(f"{path}: found CTranslate2 version {version} {spec}, expected 6 WhisperSpec")
            _revision, count = _unpack(file, "<II")
            return dict(_variable(file) for _ in range(count))
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        if isinstance(error, EncoderError):
            raise
        raise EncoderError(f"{path}: not a whole CTranslate2 file ({error}); install its package again") from None


def _variable(file: BinaryIO) -> tuple[str, Array]:
    name = _string(file)
    (rank,) = _unpack(file, "<B")
    shape = _unpack(file, f"<{rank}I")
    (dtype_id,) = _unpack(file, "<B")
    (num_bytes,) = _unpack(file, "<I")
    return name, np.frombuffer(file.read(num_bytes), dtype=_CTRANSLATE2_DTYPES[dtype_id]).reshape(shape)


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<H")
    return file.read(length)[:-1].decode("utf-8")  # the last byte is a zero


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def copy_sentence_bert(source: Path, folder: Path) -> None:
    """Copy a sentence-transformers BERT: weights, config and tokenizer (the pooling on top is not part of it)."""
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ):
        shutil.copyfile(source.parent / name, folder / name)


def _save(folder: Path, tensors: dict[str, Array], config: dict[str, Any]) -> None:
    plain = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in sorted(tensors.items())}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
