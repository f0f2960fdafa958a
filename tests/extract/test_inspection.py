"""What `talik encoders inspect` says: units, shapes and bytes, parameters, operations, the proof's outcome."""

from __future__ import annotations

import pytest
import transformers as hf
from typer.testing import CliRunner

from talik.cli import app
from talik.extract.encoders.inspect import inspect
from talik.extract.encoders.load import load_encoder

_SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_every_number_of_a_text_encoder(tiny_encoders):
    encoder = load_encoder(f"hf:{tiny_encoders['text']}", modality="text")
    report = inspect(encoder)
    length, width, inner = encoder.probe()["input_ids"].shape[1], 16, 32
    unit = 4 * (width + 1) * width + (width + 1) * inner + (inner + 1) * width + 4 * width
    linear, attention = 2 * length * (4 * width * width + 2 * width * inner), 4 * length * length * width
    assert (report.num_units, report.num_boundaries, len(report.boundaries)) == (3, 4, 4)
    for k, row in enumerate(report.boundaries):
        assert (row.boundary, row.layout, row.shape, row.num_prefix_tokens) == (k, "NLC", (length, width), 0)
        assert row.size_bytes == length * width * 4
        last = k == 3
        assert (row.num_params, row.flops) == ((0, 0) if last else (unit, linear + attention))
        assert row.unit == ("" if last else f"encoder.layer.{k} (BertLayer)")
    assert report.num_params == sum(p.numel() for p in encoder.model.parameters())
    assert set(report.context_inputs) == {"input_ids", "attention_mask"}
    assert report.context_bytes == 2 * 8 * length
    held = 3 * unit / (3 * unit + 2 * width + (width + 1) * width)  # beside them: a norm, and the pooler
    assert report.share == pytest.approx(held)
    assert "proven bit-exact at all 4 boundaries" in report.table()


def test_feature_maps_and_models_of_several_sizes():
    report = inspect("timm:test_convnext", modality="visual", weights="random", image_size=64)
    first, last = report.boundaries[0], report.boundaries[-1]
    assert (first.layout, first.shape[1:]) == ("NCHW", (16, 16))
    assert last.shape[1] < first.shape[1]
    assert all(row.flops > 0 and row.num_params > 0 for row in report.boundaries[:-1])
    assert first.size_bytes == 4 * first.shape[0] * 256


def test_whole_clips_say_so(tmp_path):
    config = hf.VideoMAEConfig(**_SIZES, image_size=16, patch_size=8, num_frames=4, tubelet_size=2)
    config.save_pretrained(tmp_path)
    report = inspect(f"hf:{tmp_path}", modality="visual", weights="random")
    assert report.whole_clips == (4, 2)
    assert "an item is a whole clip of 4 frames in 2 time steps (segments: 1, 2)" in report.table()
    assert report.boundaries[0].shape == (8, 24)


def test_the_command_prints_the_table_and_refuses_in_one_line(tiny_encoders, tmp_path):
    run = CliRunner()
    shown = run.invoke(app, ["encoders", "inspect", f"hf:{tiny_encoders['text']}", "--modality", "text"])
    assert shown.exit_code == 0
    assert "3 units" in shown.output
    assert "encoder.layer.2 (BertLayer)" in shown.output
    hf.XLNetConfig(d_model=24, n_layer=4, n_head=2, d_inner=48, vocab_size=80).save_pretrained(tmp_path)
    refused = run.invoke(app, ["encoders", "inspect", f"hf:{tmp_path}", "--modality", "text", "--weights", "random"])
    assert refused.exit_code != 0
    assert "XLNetModel: boundary 0" in str(refused.exception)
