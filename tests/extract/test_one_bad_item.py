"""One item without a state that can be stored: it is left out, named, and costs the others nothing."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from talik.cache.feature_store import BoundarySpec, FeatureStore
from talik.cache.format.dtypes import checked
from talik.errors import MediaError, NumericsError
from talik.extract.encoders.pretrained_encoder import PretrainedEncoder
from talik.extract.stage import clip_worker, text_worker
from talik.extract.stage.extract import extract
from talik.extract.stage.host_states import HostStates
from talik.extract.stage.run_records import read_failed_clips
from talik.extract.stage.sampling import Sampling
from talik.extract.trunk.state import State

SOUND = """
[data]
dataset = "manifest"
root = "."
segments = 2
{data}

[encoders.audio]
model = "hf:{audio}#encoder"
window_seconds = 0.4
cut = [1, 3]
batch_size = 4

[store]
dtype = "{dtype}"
shard_items = 3
"""


def write_tone(path: Path, step: float, level: int = 20000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(12000) * step) * level).astype("<i2").tobytes())


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Five tones beside the experiment, and their manifest."""
    paths = [tmp_path / f"{name}.wav" for name in "abcde"]
    for number, path in enumerate(paths):
        write_tone(path, 0.1 + 0.05 * number)
    lines = [json.dumps({"clip": path.name, "answer": "yes"}) + "\n" for path in paths]
    (tmp_path / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return paths


@pytest.fixture
def experiment(clips: list[Path], tmp_path: Path, tiny_encoders: dict[str, Path]) -> Callable[..., Path]:
    def write(*, dtype: str = "float16", data: str = "") -> Path:
        path = tmp_path / "exp.toml"
        path.write_text(SOUND.format(dtype=dtype, data=data, audio=tiny_encoders["audio"]), encoding="utf-8")
        return path

    return write


def held(store: Path, dtype: str) -> dict[int, set[str]]:
    """The sources whose states are stored at each boundary."""
    found, opened = {}, FeatureStore.open(store)
    for spec in opened.boundaries():
        if spec.dtype == dtype:
            with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
                assert np.isfinite(reader.read([item.key for item in reader.items]).hidden.astype(np.float64)).all()
                found[spec.boundary] = {item.source for item in reader.items}
    return found


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, clips: list[Path]) -> list[str]:
    """The clips that are computed; the state of c.wav at boundary 3, and there alone, is beyond float16."""
    sources: list[str] = []

    class Watched(HostStates):
        def __init__(self, hidden: Tensor, num_items: int, spec: BoundarySpec) -> None:
            super().__init__(hidden, num_items, spec)
            self.spec = spec

        def item(self, number: int, source: str) -> NDArray[Any]:
            sources.append(source)
            found = super().item(number, source)
            if (source, self.spec.boundary) == ("c.wav", 3):
                return checked(np.full(found.shape, 1e5, np.float32), self.spec, source)
            return found

    monkeypatch.setattr(clip_worker, "HostStates", Watched)
    return sources


def test_a_state_beyond_the_storage_type_at_one_boundary(
    experiment: Callable[..., Path], computed: list[str], tmp_path: Path
) -> None:
    store, others = tmp_path / "features.zarr", {f"{name}.wav" for name in "abde"}
    with pytest.raises(NumericsError, match=r"1 clip whose states cannot be stored.*'c\.wav': reaches 1") as error:
        extract(experiment(), progress=False)
    assert "\n" not in str(error.value)
    assert held(store, "float16") == {1: others, 3: others}
    (entry,) = read_failed_clips(store)
    assert (entry.source, entry.boundary.split("-")[0]) == ("c.wav", "audio/b03")

    computed.clear()
    with pytest.raises(NumericsError, match=r"c\.wav"):
        extract(experiment(), progress=False)
    report = extract(experiment(data="allow_missing = true"), progress=False)
    assert (report.up_to_date, [source for source, _ in report.skipped]) == (True, ["c.wav"])
    assert computed == []

    assert extract(experiment(dtype="bfloat16"), progress=False).skipped == ()
    assert held(store, "bfloat16") == {1: others | {"c.wav"}, 3: others | {"c.wav"}}
    computed.clear()
    assert extract(experiment(data="allow_missing = true"), progress=False).up_to_date
    assert computed == []


def test_what_fails_for_different_reasons_is_named_together(
    experiment: Callable[..., Path], computed: list[str], clips: list[Path], tmp_path: Path
) -> None:
    for path in (clips[0], clips[4]):
        path.write_bytes(b"nothing" + path.name.encode())
    with pytest.raises(MediaError, match=r"2 of 5 clips could not be decoded and 1 clip whose states") as error:
        extract(experiment(), progress=False)
    assert all(name in str(error.value) for name in ("a.wav", "c.wav", "e.wav"))
    assert held(tmp_path / "features.zarr", "float16") == {k: {"b.wav", "d.wav"} for k in (1, 3)}


def test_texts_whose_states_are_nan(
    tiny_encoders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = text_worker.boundary_states

    def states(encoder: object, inputs: object, cuts: list[int]) -> Iterator[State]:
        for state in real(encoder, inputs, cuts):
            state.hidden[state.lengths > 7] = torch.nan
            yield state

    monkeypatch.setattr(text_worker, "boundary_states", states)
    asked = ("is it ?", "how many instruments are in the video ?", "left", "is the left one sounding first ?")
    lines = [json.dumps({"clip": "x", "question": text, "answer": "yes"}) + "\n" for text in asked]
    (tmp_path / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")

    def write(data: str = "") -> Path:
        model = tiny_encoders["text"]
        data = f'[data]\ndataset = "manifest"\nroot = "."\n{data}\n'
        text = f'[encoders.text]\nmodel = "hf:{model}"\ncut = [1, 3]\n[store]\ndtype = "float16"\n'
        (tmp_path / "exp.toml").write_text(data + text, encoding="utf-8")
        return tmp_path / "exp.toml"

    with pytest.raises(NumericsError, match=r"2 texts whose states cannot be stored.*how many inst.*left one"):
        extract(write(), progress=False)
    report = extract(write("allow_missing = true"), progress=False)
    assert report.up_to_date
    with FeatureStore.open(tmp_path / "features.zarr").reader("text", 3) as reader:
        assert {item.source for item in reader.items} == {"is it ?", "left"}
        assert np.isfinite(reader.read([item.key for item in reader.items]).hidden).all()


@pytest.mark.parametrize("where", ["preprocess", "embed", "decode"])
def test_any_error_names_the_clip_in_hand(
    where: str, experiment: Callable[..., Path], clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, inputs = PretrainedEncoder.embed, Sampling.inputs

    def refuse(media: list) -> bool:
        return any(np.abs(clip.waveforms).max() > 0.9 for clip in media)

    write_tone(clips[3], 0.2, level=32000)  # d.wav is the loud one
    if where == "preprocess":

        def fails(self: Sampling, encoder: object, media: list, **more: object) -> object:
            if refuse(media):
                raise ValueError("a plug-in's own message")
            return inputs(self, encoder, media, **more)

        monkeypatch.setattr(Sampling, "inputs", fails)
    elif where == "embed":
        bad: list[bool] = []

        def noted(self: Sampling, encoder: object, media: list, **more: object) -> object:
            bad[:] = [refuse(media)]
            return inputs(self, encoder, media, **more)

        def stops(self: PretrainedEncoder, given: object) -> object:
            if bad and bad[0]:
                raise RuntimeError("a plug-in's own message")
            return embed(self, given)

        monkeypatch.setattr(Sampling, "inputs", noted)
        monkeypatch.setattr(PretrainedEncoder, "embed", stops)
    else:
        from talik.extract.media import decode

        decoded = decode.decode_segments

        def breaks(path: Path, *others: object) -> object:
            if path.name == "d.wav":
                raise IndexError("a plug-in's own message")
            return decoded(path, *others)

        monkeypatch.setattr(decode, "decode_segments", breaks)
    with pytest.raises((ValueError, RuntimeError, IndexError), match=r"d\.wav: a plug-in's own message") as error:
        extract(experiment(), progress=False)
    assert not any(name in str(error.value) for name in ("a.wav", "b.wav", "c.wav", "e.wav"))


def without_sound(path: Path) -> None:
    """Replace a film by one that has a picture alone."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * level, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.fixture
def silent(clips: list[Path], tmp_path: Path) -> None:
    """One of the clips, b, has no sound."""
    clips[1].unlink()
    without_sound(tmp_path / "b.mkv")
    text = (tmp_path / "manifest.jsonl").read_text(encoding="utf-8")
    (tmp_path / "manifest.jsonl").write_text(text.replace("b.wav", "b.mkv"), encoding="utf-8")


def test_what_stands_for_a_missing_stream_belongs_to_the_films_that_lack_it(
    silent: None, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    store, others = tmp_path / "features.zarr", {f"{name}.wav" for name in "acde"}
    with pytest.raises(MediaError, match=r'b\.mkv.*missing_sound = "silence" in .data.'):
        extract(experiment(), progress=False)
    assert held(store, "float16") == {1: others, 3: others}
    silence = 'missing_sound = "silence"'
    assert list(extract(experiment(data=silence), progress=False).items.values()) == [1, 1]
    assert held(store, "float16") == {k: others | {"b.mkv"} for k in (1, 3)}
    assert extract(experiment(data=silence), progress=False).up_to_date
    with pytest.raises(MediaError, match=r"1 of 5 clips could not be decoded.*b\.mkv"):  # silence is not for this one
        extract(experiment(), progress=False)
    assert extract(experiment(data="allow_missing = true"), progress=False).up_to_date
    assert extract(experiment(data=silence), progress=False).up_to_date


def test_a_store_made_with_the_stand_in_in_its_identity_is_used_as_it_is(
    silent: None, experiment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, silence = Sampling.identity, 'missing_sound = "silence"'
    with monkeypatch.context() as before:  # as it was written then
        before.setattr(Sampling, "identity", lambda self, m, **_: identity(self, m, stand_ins=True))
        before.setattr("talik.extract.stage.plan.item_keys", lambda *_: {})
        assert list(extract(experiment(data=silence), progress=False).items.values()) == [5, 5]
    assert extract(experiment(data=silence), progress=False).up_to_date
    write_tone(tmp_path / "f.wav", 0.5)
    with (tmp_path / "manifest.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"clip": "f.wav", "answer": "yes"}\n')
    assert list(extract(experiment(data=silence), progress=False).items.values()) == [1, 1]
    assert len(FeatureStore.open(tmp_path / "features.zarr").boundaries()) == 2
