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


_SHAPES = [(50, 60), (72, 128), (131, 50), (23, 17), (61, 171)]  # the last is wider than `longest_edge` leaves it
_SQUARE = {"height": 28, "width": 28}


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        (hf.CLIPImageProcessor(size={"shortest_edge": 33}, crop_size=_SQUARE), "image"),
        (hf.CLIPImageProcessor(size={"shortest_edge": 21}, crop_size=_SQUARE, resample=2), "image"),
        (hf.CLIPImageProcessor(size={"shortest_edge": 33, "longest_edge": 70}, crop_size=_SQUARE), "processor"),
        (hf.ViTImageProcessor(size=_SQUARE, resample=3), "image"),
        (hf.ViTImageProcessor(size=_SQUARE, resample=0), "processor"),
        (hf.ViTImageProcessor(size=_SQUARE, resample=1), "processor"),
        (hf.ViTImageProcessor(size=_SQUARE, do_normalize=False), "image"),
        (hf.ViTImageProcessor(size=_SQUARE, do_rescale=False, do_normalize=False), "image"),
        (hf.DINOv3ViTImageProcessor(size=_SQUARE), "image"),  # resizes fractions of grey levels, and ours whole ones
        (hf.MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size=_SQUARE), "processor"),  # BGR
        (hf.EfficientNetImageProcessor(size=_SQUARE, rescale_offset=True, rescale_factor=1 / 127.5), "processor"),
        (hf.DonutImageProcessor(size=_SQUARE), "processor"),  # pads
        (hf.SamImageProcessor(size={"longest_edge": 28}, pad_size=_SQUARE), "processor"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_pixels_are_the_processors_at_every_shape(own, kind, tiny_encoders, tmp_path):
    hf.AutoModel.from_pretrained(tiny_encoders["visual"]).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}", modality="visual")
    assert encoder.preprocess.describe()["kind"] == kind
    std = own.image_std if own.do_normalize else [1, 1, 1]
    level = (own.rescale_factor if own.do_rescale else 1) / torch.tensor(std).view(3, 1, 1)
    for shape in _SHAPES:
        frames = _frames(2, *shape)
        expected = own(list(frames), return_tensors="pt")["pixel_values"]
        found = encoder.preprocess(frames)["pixel_values"]
        assert float(((found - expected).abs() / level).max()) < (1.1 if kind == "image" else 1e-6), shape


def test_a_store_of_the_replica_goes_on_with_it(tiny_encoders, tmp_path):
    hf.AutoModel.from_pretrained(tiny_encoders["visual"]).save_pretrained(tmp_path)
    limits = {"shortest_edge": 33, "longest_edge": 70}  # which an earlier version took no notice of
    hf.CLIPImageProcessor(size=limits, crop_size=_SQUARE).save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}", modality="visual")
    now = encoder.identity(0)
    then = {"fit": "crop", "height": 28, "width": 28, "resize": 33, "kind": "image", "interpolation": "bicubic"}
    statistics = {"mean": now["preprocess"]["image_mean"], "std": now["preprocess"]["image_std"], "rescale": 1 / 255}
    assert not encoder.follow([now])
    assert encoder.follow([{**now, "preprocess": {**then, **statistics}}])
    assert encoder.identity(0)["preprocess"]["kind"] == "image"
    assert encoder.preprocess(_frames(2, 61, 171))["pixel_values"].shape == (2, 3, 28, 28)


def test_processors_that_give_no_one_shape_are_refused(tiny_encoders, tmp_path):
    hf.AutoModel.from_pretrained(tiny_encoders["visual"]).save_pretrained(tmp_path)
    for own in (
        hf.ViTImageProcessor(size={"shortest_edge": 56, "longest_edge": 112}),
        hf.GLPNImageProcessor(),
        hf.Swin2SRImageProcessor(),
    ):
        own.save_pretrained(tmp_path)
        with pytest.raises(
            EncoderError, match=rf"{type(own).__name__} makes pixel_values \(1, 3, .*expected one shape"
        ):
            load_encoder(f"hf:{tmp_path}", modality="visual")


def test_a_processor_that_is_named_and_cannot_be_opened(tiny_encoders, tmp_path):
    hf.AutoModel.from_pretrained(tiny_encoders["visual"]).save_pretrained(tmp_path)
    own = '{"image_processor_type": "TomorrowsImageProcessor", "auto_map": {"AutoImageProcessor": "own.Tomorrows"}}'
    (tmp_path / "preprocessor_config.json").write_text(own)
    with pytest.raises(EncoderError, match="its processor TomorrowsImageProcessor cannot be opened"):
        load_encoder(f"hf:{tmp_path}", modality="visual")


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
