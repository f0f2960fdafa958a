"""Encoders that take whole clips: their time axis, tokens regrouped by segment, and the way from clips to a variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from talik.cache.feature_store import FeatureStore
from talik.errors import SettingsError, TrunkError
from talik.extract.encoders.load import load_encoder
from talik.extract.stage.experiment_file import read_toml
from talik.extract.stage.extract import extract
from talik.extract.stage.settings import ExtractSettings, extract_settings
from talik.extract.trunk.clip_axis import find_clip_axis

_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a tiny VideoMAE (6 frames, two a step), TimeSformer (4 frames) and ViViT (4 frames, two a step)."""
    root = tmp_path_factory.mktemp("clips")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = {
            "videomae": hf.VideoMAEModel(hf.VideoMAEConfig(**_SIZES, num_frames=6, tubelet_size=2)),
            "timesformer": hf.TimesformerModel(hf.TimesformerConfig(**_SIZES, num_frames=4)),
            "vivit": hf.VivitModel(hf.VivitConfig(**_SIZES, num_frames=4, tubelet_size=[2, 8, 8])),
        }
        for model in models.values():  # zero tables would hide what they do
            for parameter in model.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
    for name, model in models.items():
        model.save_pretrained(root / name)
    square = {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}
    for name in ("videomae", "timesformer"):
        hf.VideoMAEImageProcessor(**square).save_pretrained(root / name)
    hf.VivitImageProcessor(**square).save_pretrained(root / "vivit")
    return root


def _frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "num_frames", "num_steps", "num_shared"),
    [("videomae", 6, 3, 0), ("timesformer", 4, 4, 1), ("vivit", 4, 2, 1)],
)
def test_tokens_are_regrouped_by_time_and_back(folders, name, num_frames, num_steps, num_shared):
    encoder = load_encoder(f"hf:{folders / name}", modality="visual")
    axis = encoder.clips
    assert (axis.num_frames, axis.num_steps, axis.num_segments) == (num_frames, num_steps, num_steps)
    assert (encoder.num_frames, axis.num_shared, encoder.rows_per_clip(num_steps)) == (num_frames, num_shared, 1)
    inputs = encoder.preprocess(_frames(3 * num_frames))
    assert inputs["pixel_values"].shape == (3, num_frames, 3, 16, 16)
    whole = encoder(inputs)
    for k in range(encoder.num_units + 1):
        state = encoder.run(encoder.embed(inputs), 0, k)
        tokens = state.tokens()
        assert tokens.shape == (3 * num_steps, 4, 24)
        assert state.batch_size == 3
        assert torch.equal(state.from_tokens(tokens.clone()).hidden, state.hidden)
        fresh = torch.randn_like(tokens)
        changed = state.from_tokens(fresh)
        assert torch.equal(changed.tokens(), fresh)
        assert torch.equal(changed.hidden[:, :num_shared], state.hidden[:, :num_shared])
        restored = encoder.restore(state.hidden.clone(), k, {})
        output = encoder.finish(encoder.run(restored, k, encoder.num_units))
        assert torch.equal(output.last_hidden_state, whole.last_hidden_state)
    assert encoder.features(whole).shape == (3 * num_steps, 4, 24)


@pytest.mark.parametrize("name", ["videomae", "timesformer", "vivit"])
def test_a_segment_has_the_tokens_of_its_own_frames(folders, name):
    encoder = load_encoder(f"hf:{folders / name}", modality="visual")
    axis, raw = encoder.clips, _frames(encoder.num_frames)
    before = encoder.embed(encoder.preprocess(raw)).tokens()
    assert axis.num_steps > 1
    for step in range(axis.num_steps):
        other = raw.copy()
        other[step * axis.num_frames // axis.num_steps] //= 2
        after = encoder.embed(encoder.preprocess(other)).tokens()
        assert (after != before).any(dim=(1, 2)).tolist() == [s == step for s in range(axis.num_steps)]


def test_timesformers_tokens_run_through_time_first(folders):
    encoder = load_encoder(f"hf:{folders / 'timesformer'}", modality="visual", num_segments=2)
    assert encoder.clips.places.tolist() == [1, 2, 5, 6, 9, 10, 13, 14, 3, 4, 7, 8, 11, 12, 15, 16]
    state = encoder.embed(encoder.preprocess(_frames(4)))
    assert torch.equal(state.tokens()[1, 0], state.hidden[0, 3])


def test_gradients_go_through_the_regrouping(folders):
    encoder = load_encoder(f"hf:{folders / 'vivit'}", modality="visual")
    state = encoder.embed(encoder.preprocess(_frames(4)))
    added = torch.zeros_like(state.tokens(), requires_grad=True)
    live = state.from_tokens(state.tokens() + added)
    encoder.features(encoder.finish(encoder.run(live, 0, encoder.num_units))).square().sum().backward()
    assert (added.grad.abs().sum(dim=2) > 0).all()


def test_segments_that_the_time_steps_cannot_be_shared_among(folders):
    spec = f"hf:{folders / 'timesformer'}"
    with pytest.raises(SettingsError, match=r"segments: found 3, expected one of 1, 2, 4: the encoder takes 4 frames"):
        load_encoder(spec, modality="visual", num_segments=3)
    with pytest.raises(SettingsError, match="expected a multiple of the 4 of a clip"):
        load_encoder(spec, modality="visual").preprocess(_frames(6))


def test_other_numbers_of_frames_where_the_models_own_code_takes_them(folders):
    longer = load_encoder(f"hf:{folders / 'timesformer'}", modality="visual", num_frames=6, num_segments=3)
    assert longer.embed(longer.preprocess(_frames(12))).tokens().shape == (6, 8, 24)
    plain = load_encoder(f"hf:{folders / 'timesformer'}", modality="visual")
    assert longer.identity(1) != plain.identity(1)
    with pytest.raises(SettingsError, match="num_frames: found 8, expected 6: the model takes no other number"):
        load_encoder(f"hf:{folders / 'videomae'}", modality="visual", num_frames=8)


def test_frames_are_prepared_as_the_models_own_processor_does(folders):
    for name, kind in (("videomae", hf.VideoMAEImageProcessor), ("vivit", hf.VivitImageProcessor)):
        encoder = load_encoder(f"hf:{folders / name}", modality="visual")
        smooth = torch.nn.functional.interpolate(torch.rand(encoder.num_frames, 3, 4, 5) * 255, (40, 50))
        frames = smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy()
        own = kind.from_pretrained(folders / name)([list(frames)], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(encoder.preprocess(frames)["pixel_values"], own, rtol=0, atol=0.05)


def test_tokens_that_see_several_time_steps_are_refused():
    with pytest.raises(TrunkError, match="mix time steps"):
        find_clip_axis(lambda frames: frames.cumsum(1).mean((3, 4)), torch.randn(1, 4, 3, 2, 2), None)
    with pytest.raises(TrunkError, match="expected \\(B, L, D\\)"):
        find_clip_axis(lambda frames: frames, torch.randn(1, 4, 3, 2, 2), None)


def _experiment(write_experiment, tiny_encoders, folder, segments=3):
    return write_experiment(
        (f'model = "hf:{tiny_encoders["visual"]}"\nimage_size = 28\nfit = "stretch"\ncut = [1, 3]',
         f'model = "hf:{folder}"\ncut = [1, 3]'),
        ("segments = 3", f"segments = {segments}"),
    )  # fmt: skip


def test_clips_are_stored_whole_and_trained_on(folders, write_experiment, tiny_encoders):
    from talik.adapt.config.experiment import load_experiment
    from talik.adapt.training.adapt import adapt
    from talik.adapt.training.experiment_context import ExperimentContext

    path = _experiment(write_experiment, tiny_encoders, folders / "videomae")
    assert extract(path, progress=False).items["visual/" + _stored(path, 1)[0].name] == 8
    assert [spec.shape for spec in _stored(path, 1) + _stored(path, 3)] == [(1, 12, 24), (1, 12, 24)]
    assert extract(path, progress=False).up_to_date
    context = ExperimentContext(load_experiment(path))
    variant = next(v for v in context.experiment.variants if v.name == "trimodal")
    model = context.build(variant, seed=0).eval()
    asked = [context.questions("train")[:5]]
    (cached,), (live,) = (list(source.batches(asked)) for source in (context.cached(model), context.live(model)))
    assert cached.states["visual"].tokens().shape == (15, 4, 24)
    hidden = [batch.states["visual"].hidden for batch in (cached, live)]
    torch.testing.assert_close(*hidden, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(cached), model(live), rtol=1e-4, atol=1e-5)
    assert adapt(path, variant="trimodal", progress=False).folder.is_dir()


def test_an_experiment_whose_segments_do_not_fit_is_refused_at_once(folders, write_experiment, tiny_encoders):
    path = _experiment(write_experiment, tiny_encoders, folders / "videomae", segments=4)
    with pytest.raises(SettingsError, match="segments: found 4, expected one of 1, 3"):
        extract(path, progress=False)
    path = _experiment(write_experiment, tiny_encoders, folders / "timesformer", segments=2)
    assert not extract(path, progress=False).up_to_date


def _stored(path, boundary):
    settings: ExtractSettings = extract_settings(read_toml(path), path=path)
    found = FeatureStore.open(settings.store_path, mode="r").boundaries()
    return [s for s in found if s.modality == "visual" and s.boundary == boundary]
