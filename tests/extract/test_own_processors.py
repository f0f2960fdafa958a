"""Models whose own processor gives more than plain pictures, or others than ours; models refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from talik.errors import EncoderError, SettingsError, TrunkError
from talik.extract.encoders.hf_processor import ProcessorPreprocess
from talik.extract.encoders.load import load_encoder
from talik.extract.stage.extract import extract
from talik.extract.trunk.state import State

_SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 96}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def naflex(tmp_path_factory):
    """A folder of a tiny SigLIP 2 vision model that takes pictures of any aspect, at most 16 patches."""
    folder = tmp_path_factory.mktemp("naflex")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = hf.Siglip2VisionConfig(**_SIZES, num_patches=16, patch_size=8)
        hf.Siglip2VisionModel(config).save_pretrained(folder)
    hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return folder


def _frames(num, height, width):
    return np.random.default_rng(height).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def test_pictures_of_any_aspect_with_their_masks(naflex):
    encoder = load_encoder(f"hf:{naflex}", modality="visual")
    assert (encoder.num_units, encoder.image_size) == (4, None)
    parts = [encoder.preprocess(_frames(2, 40, 40)), encoder.preprocess(_frames(1, 30, 70))]
    inputs = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    real = inputs["pixel_attention_mask"].sum(1).tolist()
    assert real[:2] == [16, 16]
    assert real[2] < 16
    whole = encoder(inputs)
    small = encoder.context_inputs(inputs)
    assert set(small) == {"pixel_attention_mask", "spatial_shapes"}
    for k in range(5):
        state = encoder.run(encoder.embed(inputs), 0, k)
        for start in (state, encoder.restore(state.hidden.clone(), k, small), State.concat(state.split([1, 2]))):
            output = encoder.finish(encoder.run(start, k, 4))
            assert torch.equal(output.last_hidden_state, whole.last_hidden_state)
            assert torch.equal(output.pooler_output, whole.pooler_output)
    kept = encoder.preprocess.describe()
    assert (kept["class"], kept["max_num_patches"]) == ("Siglip2ImageProcessor", 16)
    with pytest.raises(SettingsError, match="Siglip2ImageProcessor prepares frames in its own way"):
        load_encoder(f"hf:{naflex}", modality="visual", image_size=32)


def test_their_masks_are_stored_and_read(naflex, write_experiment, tiny_encoders):
    from talik.adapt.config.experiment import load_experiment
    from talik.adapt.training.experiment_context import ExperimentContext

    path = write_experiment(
        (f'model = "hf:{tiny_encoders["visual"]}"\nimage_size = 28\nfit = "stretch"\n', f'model = "hf:{naflex}"\n')
    )
    extract(path, progress=False)
    context = ExperimentContext(load_experiment(path))
    variant = next(v for v in context.experiment.variants if v.name == "trimodal")
    model = context.build(variant, seed=0).eval()
    asked = [context.questions("train")[:3]]
    (cached,), (live,) = (list(source.batches(asked)) for source in (context.cached(model), context.live(model)))
    assert cached.states["visual"].context.inputs["spatial_shapes"].shape == (9, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(cached), model(live), rtol=1e-4, atol=1e-5)


def test_a_model_that_needs_its_processor_and_has_none(tmp_path):
    hf.Siglip2VisionConfig(**_SIZES, num_patches=16, patch_size=8).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="its forward takes pixel_attention_mask, spatial_shapes too"):
        load_encoder(f"hf:{tmp_path}", modality="visual", weights="random")


def test_a_processor_with_a_geometry_of_its_own_runs_itself(tiny_encoders, tmp_path):
    hf.AutoModel.from_pretrained(tiny_encoders["visual"]).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    own = hf.LevitImageProcessor(**size)  # resizes to 256/224 of the edge that it names
    own.save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}", modality="visual")
    assert isinstance(encoder.preprocess, ProcessorPreprocess)
    frames = _frames(2, 50, 60)
    expected = own(list(frames), return_tensors="pt")["pixel_values"]
    assert torch.equal(encoder.preprocess(frames)["pixel_values"], expected)
    stretched = load_encoder(f"hf:{tmp_path}", modality="visual", fit="stretch", image_size=28)
    assert stretched.identity(0)["preprocess"]["kind"] == "image"
    with pytest.raises(SettingsError, match="LevitImageProcessor prepares frames in its own way"):
        load_encoder(f"hf:{tmp_path}", modality="visual", image_size=56)


def test_models_that_cannot_be_cut_or_run_are_refused_in_one_line(tmp_path):
    wide = {**_SIZES, "image_size": 16, "patch_size": 8}
    hf.ViTMAEConfig(**wide).save_pretrained(tmp_path / "mae")
    with pytest.raises(TrunkError, match="draws at random"):
        load_encoder(f"hf:{tmp_path / 'mae'}", modality="visual", weights="random")
    hf.PixtralVisionConfig(**wide, head_dim=12).save_pretrained(tmp_path / "pixtral")
    with pytest.raises(TrunkError, match="expected them along its first axis"):
        load_encoder(f"hf:{tmp_path / 'pixtral'}", modality="visual", weights="random")
    text = {**_SIZES, "vocab_size": 80, "max_position_embeddings": 70, "attention_window": [8] * 4}
    hf.LongformerConfig(**text).save_pretrained(tmp_path / "long")
    with pytest.raises(TrunkError, match="expected one row a token"):
        load_encoder(f"hf:{tmp_path / 'long'}", modality="text", weights="random")
    hf.XLNetConfig(d_model=24, n_layer=4, n_head=2, d_inner=48, vocab_size=80).save_pretrained(tmp_path / "xlnet")
    with pytest.raises(TrunkError, match="expected them along its first axis"):
        load_encoder(f"hf:{tmp_path / 'xlnet'}", modality="text", weights="random")
