"""Augmented views: drawn by seed, item and number alone, beside a plain view that nothing changes, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from talik.cache.feature_store import BoundarySpec, FeatureStore
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import SettingsError
from talik.extract.media.augment_settings import AugmentSettings, drawn_view, view_number
from talik.extract.media.clip_media import ClipMedia
from talik.extract.stage.augment import _spectrogram, augmented, masked
from talik.extract.stage.experiment_file import read_toml
from talik.extract.stage.extract import extract
from talik.extract.stage.maintenance import repair_store
from talik.extract.stage.settings import extract_settings

PICTURE = "views = 2\naugment = { crop = [0.3, 0.9], flip = 0.5, jitter = 0.4, seed = 3 }\n"
SOUND = "views = 1\naugment = { shift_seconds = 0.1, time_mask = 0.3, frequency_mask = 0.3 }\n"


@pytest.fixture
def with_views(write_experiment: Callable[..., Path]) -> Callable[..., Path]:
    def write(*changes: tuple[str, str], picture: str = PICTURE, sound: str = SOUND) -> Path:
        return write_experiment(
            ('fit = "stretch"\n', f'fit = "stretch"\n{picture}'),
            ("window_seconds = 0.4\n", f"window_seconds = 0.4\n{sound}"),
            ("[encoders.text]", "[encoders.other]"),
            *changes,
        )

    return write


def without_text(path: Path) -> Path:
    head, _, rest = path.read_text(encoding="utf-8").partition("[encoders.other]")
    path.write_text(head + "[store]" + rest.partition("[store]")[2], encoding="utf-8")
    return path


def values(store: Path) -> dict[tuple[str, int, int], tuple[BoundarySpec, np.ndarray]]:
    opened = FeatureStore.open(store)
    found = {}
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            keys = sorted(item.key for item in reader.items)
            found[spec.modality, spec.boundary, view_number(spec.identity)] = spec, reader.read(keys).hidden.copy()
    return found


def test_views_are_the_same_by_seed_and_view_0_is_the_plain_extraction(with_views: Any, tmp_path: Path) -> None:
    store = tmp_path / "features.zarr"
    extract(without_text(with_views()), progress=False)
    first = values(store)
    assert sorted(first) == [("audio", k, v) for k in (1, 3) for v in (0, 1)] + [
        ("visual", k, v) for k in (1, 3) for v in (0, 1, 2)
    ]
    shutil.rmtree(store)
    extract(without_text(with_views(picture="", sound="")), progress=False)
    plain = values(store)
    for place, (spec, hidden) in plain.items():
        assert spec == first[place][0]
        np.testing.assert_array_equal(hidden, first[place][1])
    more = PICTURE.replace("views = 2", "views = 3")
    report = extract(without_text(with_views(picture=more)), progress=False)
    assert {name.partition("/")[0] for name in report.items} == {"visual", "audio"}
    again = values(store)
    for place, (spec, hidden) in first.items():
        assert spec.key == again[place][0].key
        np.testing.assert_array_equal(hidden, again[place][1])
    assert ("visual", 1, 3) in again
    for modality, views in (("visual", 4), ("audio", 2)):
        several = [again[modality, 1, view][1] for view in range(views)]
        assert all(not np.array_equal(a, b) for i, a in enumerate(several) for b in several[:i])
    assert extract(without_text(with_views(picture=more)), progress=False).up_to_date


def test_another_seed_is_another_boundary(with_views: Any, tmp_path: Path) -> None:
    extract(without_text(with_views(sound="")), progress=False)
    first = values(tmp_path / "features.zarr")
    extract(without_text(with_views(sound="", picture=PICTURE.replace("seed = 3", "seed = 4"))), progress=False)
    specs = FeatureStore.open(tmp_path / "features.zarr").boundaries()
    assert len(specs) == len(first) + 4
    assert {s.identity["view"]["seed"] for s in specs if "view" in s.identity} == {3, 4}


def test_a_damaged_view_is_computed_again_to_the_same_bytes(with_views: Any, tmp_path: Path) -> None:
    path = without_text(with_views(sound=""))
    extract(path, progress=False)
    store = tmp_path / "features.zarr"
    (spec,) = [s for s in FeatureStore.open(store).boundaries() if s.boundary == 1 and view_number(s.identity) == 2]
    shard = store / spec.path / "hidden" / "c.0.0.0.0"
    before = shard.read_bytes()
    shard.write_bytes(before[:40] + bytes([before[40] ^ 4]) + before[41:])
    assert repair_store(store, path, progress=False).forgotten == ((spec.path, 0),)
    assert shard.read_bytes() == before
    assert verify(open_store(store)) == []


@pytest.mark.parametrize(
    ("picture", "sound", "message"),
    [
        ("augment = { flip = 0.5 }\n", "", "encoders.visual: augment: flip would change at random .* set views"),
        ("views = 2\n", "", "encoders.visual: views: found 2, but nothing in augment"),
        ("views = 2\naugment = { seed = 3 }\n", "", "nothing in augment"),
        ("views = -1\n", "", "views: found -1"),
        ("", PICTURE, "audio.augment: crop, flip, jitter do not apply; expected shift_seconds, time_mask"),
        (SOUND, "", "visual.augment: shift_seconds, time_mask, frequency_mask do not apply"),
        ("views = 1\naugment = { crop = [0.9, 0.3] }\n", "", "crop: found"),
        ("views = 1\naugment = { flip = 2.0 }\n", "", "flip: found 2.0, expected 0 to 1"),
        ("views = 1\naugment = { turn = 1 }\n", "", "unknown key 'turn'"),
    ],
)
def test_refusals_in_one_line(with_views: Any, picture: str, sound: str, message: str) -> None:
    path = without_text(with_views(picture=picture, sound=sound))
    with pytest.raises(SettingsError, match=message) as raised:
        extract_settings(read_toml(path), path=path)
    assert "\n" not in str(raised.value)


def clip(seed: int = 0) -> ClipMedia:
    random = np.random.default_rng(seed)
    return ClipMedia(
        frames=random.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8),
        waveforms=random.standard_normal((3, 100)).astype(np.float32),
        instants_seconds=np.arange(3.0),
        duration_seconds=3.0,
    )


def test_what_a_view_changes() -> None:
    source = clip()
    assert source.frames is not None
    assert source.waveforms is not None

    def view(modality: str, seed: int = 0, **settings: Any) -> ClipMedia:
        draw = np.random.default_rng(seed)
        return augmented(source, AugmentSettings(**settings), draw, modality=modality, rate_hz=100)

    mirrored = view("visual", flip=1.0)
    np.testing.assert_array_equal(mirrored.frames, source.frames[:, :, ::-1])
    assert mirrored.waveforms is source.waveforms
    shares = []
    for seed in range(50):
        frames = view("visual", seed, crop=(0.3, 0.9)).frames
        assert frames is not None
        windows = np.lib.stride_tricks.sliding_window_view(source.frames[0, ..., 0], frames.shape[1:3])
        assert (windows == frames[0, ..., 0]).all(axis=(2, 3)).any()
        shares.append(frames.shape[1] * frames.shape[2] / 600)
    assert 0.2 < min(shares) < 0.45 < 0.75 < max(shares) <= 1
    brighter = view("visual", jitter=0.5).frames
    assert brighter is not None
    assert brighter.shape == source.frames.shape
    assert not np.array_equal(brighter, source.frames)
    turned = view("audio", shift_seconds=0.3).waveforms
    assert turned is not None
    (by,) = [s for s in range(-30, 31) if np.array_equal(turned, np.roll(source.waveforms, s, axis=1))]
    assert by != 0


def test_masks_replace_one_stretch_of_each_axis_by_the_mean() -> None:
    values = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0))  # T, bands, frames
    settings = AugmentSettings(time_mask=0.5, frequency_mask=0.5)
    widths = []
    for seed in range(40):
        out = masked(values, 1, settings, np.random.default_rng(seed))
        kept = out == values
        bands, frames = kept[0].all(dim=1), kept[0].all(dim=0)
        assert torch.equal(kept[0], kept[1])
        hidden = ~kept
        mean = values.mean(dim=(1, 2), keepdim=True).expand_as(values)
        assert torch.equal(out[hidden], mean[hidden])
        widths.append((int((~kept[0].any(dim=1)).sum()), int((~kept[0].any(dim=0)).sum())))
        assert bands.shape == (8,)
        assert frames.shape == (40,)
    assert max(w for w, _ in widths) == 4
    assert 15 <= max(w for _, w in widths) <= 20


def test_masks_are_refused_where_there_is_no_spectrogram() -> None:
    encoder: Any = SimpleNamespace(
        modality="audio", spec="hf:wav2vec2", preprocess=SimpleNamespace(describe=lambda: {"feature_size": 1})
    )
    with pytest.raises(SettingsError, match=r"hf:wav2vec2 takes no spectrogram .*input_values"):
        _spectrogram(encoder, {"input_values": torch.zeros(2, 400)})


def test_each_view_is_drawn_as_often() -> None:
    drawn = [drawn_view(7, "visual", f"{i:064x}", 3) for i in range(4000)]
    assert np.bincount(drawn).tolist() == pytest.approx([1000] * 4, rel=0.1)
    assert drawn == [drawn_view(7, "visual", f"{i:064x}", 3) for i in range(4000)]
    assert drawn != [drawn_view(8, "visual", f"{i:064x}", 3) for i in range(4000)]
    assert drawn != [drawn_view(7, "audio", f"{i:064x}", 3) for i in range(4000)]
