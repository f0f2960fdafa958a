"""`talik store why` and `talik store gc` over real experiments: what is named, what is kept, what is never redone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.cli import app
from talik.errors import CorruptItemError, SettingsError, StoreFullError
from talik.extract.stage.extract import extract
from talik.extract.stage.maintenance import find_store_garbage, why_store

WriteExperiment = Callable[..., Path]
VISUAL_ONLY = """
[data]
dataset = "manifest"
root = "{root}"
segments = 2

[encoders.visual]
model = "hf:{visual}"
image_size = 28
fit = "stretch"
cut = [1]

[store]
dtype = "float16"
shard_items = 2
"""


@pytest.fixture
def clips(demo_set: Path, tmp_path: Path) -> Path:
    """A folder with five clips and a manifest of the first four."""
    root = tmp_path / "clips"
    root.mkdir()
    for number, video in enumerate(sorted((demo_set / "videos").glob("*.mp4"))[:5]):
        shutil.copy(video, root / f"{number}.mp4")
    name_clips(root, range(4))
    return root


def name_clips(root: Path, names: object) -> None:
    """Write the manifest anew."""
    lines = [f'{{"clip": "{name}.mp4", "answer": "yes"}}\n' for name in names]  # type: ignore[attr-defined]
    (root / "manifest.jsonl").write_text("".join(lines))


@pytest.fixture
def experiment(clips: Path, tmp_path: Path, tiny_encoders: dict[str, Path]) -> Path:
    """An experiment over `clips` with one boundary, float16, two clips a shard."""
    path = tmp_path / "exp.toml"
    path.write_text(VISUAL_ONLY.format(root=clips, **tiny_encoders))
    return path


def other(experiment: Path, *changes: tuple[str, str], name: str = "other.toml") -> Path:
    """A changed experiment beside the first."""
    text = experiment.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = experiment.with_name(name)
    path.write_text(text)
    return path


def values(store: Path) -> dict[str, bytes]:
    """The stored bytes of every item by key, in all boundaries."""
    opened, found = FeatureStore.open(store), {}
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            found.update({f"{spec.path} {i.key}": reader.read([i.key]).hidden.tobytes() for i in reader.items})
    return found


def change_unseen(path: Path) -> None:
    """Change a file but neither its size nor its time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_new_items_extend_a_store_and_moved_files_keep_their_states(experiment: Path, clips: Path) -> None:
    store = experiment.with_name("features.zarr")
    assert extract(experiment, progress=False).items.popitem()[1] == 4
    before = values(store)
    (clips / "1.mp4").rename(clips / "renamed.mp4")
    name_clips(clips, [0, "renamed", 2, 3, 4])
    (answer,) = why_store(store, experiment, progress=False).answers
    assert (answer.new, answer.moved, answer.changed, answer.gone) == (("4.mp4",), ("renamed.mp4",), (), ())
    assert answer.num_missing == 1
    report = extract(experiment, progress=False)
    assert list(report.items.values()) == [1]
    after = values(store)
    assert len(after) == 5
    assert {key: after[key] for key in before} == before
    assert extract(experiment, progress=False).up_to_date


def test_a_changed_clip_of_the_same_name_and_size_is_noticed(experiment: Path, clips: Path) -> None:
    store = experiment.with_name("features.zarr")
    extract(experiment, progress=False)
    change_unseen(clips / "2.mp4")
    os.utime(clips / "2.mp4")  # now its time tells
    (answer,) = why_store(store, experiment, progress=False).answers
    assert (answer.changed, answer.new, answer.gone, answer.num_missing) == (("2.mp4",), (), (), 1)
    assert list(extract(experiment, progress=False).items.values()) == [1]
    (answer,) = why_store(store, experiment, progress=False).answers
    assert answer.num_missing == 0


def test_deep_finds_a_change_that_size_and_time_hide(experiment: Path, clips: Path) -> None:
    store = experiment.with_name("features.zarr")
    extract(experiment, progress=False)
    change_unseen(clips / "3.mp4")
    (answer,) = why_store(store, experiment, progress=False).answers
    assert answer.changed == ()
    (answer,) = why_store(store, experiment, deep=True, progress=False).answers
    assert answer.changed == ("3.mp4",)
    assert extract(experiment, progress=False).up_to_date
    assert list(extract(experiment, progress=False, deep=True).items.values()) == [1]


def test_a_clip_that_only_got_another_time_is_not_computed_again(experiment: Path, clips: Path) -> None:
    extract(experiment, progress=False)
    os.utime(clips / "0.mp4")
    assert extract(experiment, progress=False).up_to_date


def test_two_names_of_one_content_are_digested_once_for_all(
    experiment: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(clips / "0.mp4", clips / "twin.mp4")
    name_clips(clips, [0, "twin", 1])
    assert list(extract(experiment, progress=False).items.values()) == [2]

    def never(media: object) -> str:
        raise AssertionError(media)

    monkeypatch.setattr("talik.extract.stage.items.digest_media", never)
    assert extract(experiment, progress=False).up_to_date


def test_why_names_every_field(experiment: Path, clips: Path) -> None:
    store = experiment.with_name("features.zarr")
    extract(experiment, progress=False)
    asked = other(experiment, ('dtype = "float16"', 'dtype = "bfloat16"'), ("segments = 2", "segments = 3"))
    result = CliRunner().invoke(app, ["store", "why", str(store), str(asked), "--quiet"])
    assert result.exit_code == 0, result.output
    fields = [line.split(":")[0].strip() for line in result.output.splitlines() if ": requested " in line]
    assert fields == ["dtype", "sampling.num_segments", "shape"]
    assert "4 items are to be computed" in result.output
    assert "this experiment does not ask for it" in result.output
    deeper = other(experiment, ("cut = [1]", "cut = [2]"))
    assert "nothing is stored of visual boundary 2" in "\n".join(why_store(store, deeper, progress=False).lines())


def test_gc_lists_asks_and_keeps_what_is_needed(experiment: Path, clips: Path) -> None:
    store = experiment.with_name("features.zarr")
    extract(experiment, progress=False)
    second = other(experiment, ("cut = [1]", "cut = [2]"))
    extract(second, progress=False)
    assert find_store_garbage(store, [experiment, second], progress=False).garbage == ()
    name_clips(clips, [0, 2, 3])
    before = values(store)
    command = ["store", "gc", str(store), str(experiment), "--quiet"]
    refused = CliRunner().invoke(app, command, input="n\n")
    assert values(store) == before
    assert "1 item needed by no experiment given (1.mp4)" in refused.output
    assert "visual/b02-" in refused.output
    agreed = CliRunner().invoke(app, command, input="y\n")
    assert agreed.exit_code == 0, agreed.output
    assert "MB deleted" in agreed.output
    after = values(store)
    assert len(after) == 3
    assert after.items() <= before.items()
    assert verify(open_store(store)) == []
    assert extract(experiment, progress=False).up_to_date
    assert CliRunner().invoke(app, command).output.startswith("nothing to delete")


def test_gc_wants_an_experiment(experiment: Path) -> None:
    extract(experiment, progress=False)
    with pytest.raises(SettingsError, match="no experiment given"):
        find_store_garbage(experiment.with_name("features.zarr"), [], progress=False)


def test_a_clip_changed_while_it_is_read_is_not_stored(
    experiment: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from talik.extract.media.decode_pool import ThreadDecoder

    real = ThreadDecoder.outcomes

    def slow(self: ThreadDecoder, requests: object) -> object:
        for outcome in real(self, requests):  # type: ignore[arg-type]
            change_unseen(clips / "1.mp4")
            os.utime(clips / "1.mp4")
            yield outcome

    monkeypatch.setattr(ThreadDecoder, "outcomes", slow)
    with pytest.raises(OSError, match=r"1\.mp4: was changed while it was read"):
        extract(experiment, progress=False)
    monkeypatch.undo()
    store = experiment.with_name("features.zarr")
    assert len(values(store)) == 3
    assert list(extract(experiment, progress=False).items.values()) == [1]


def test_all_boundaries_together_must_fit(
    write_experiment: WriteExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from talik.cache import atomic_io as durable

    path = write_experiment()
    extract(path, progress=False)
    sizes = [sum(f.stat().st_size for f in spec.rglob("hidden/c.*")) for spec in tmp_path.glob("features.zarr/*/b*")]
    shutil.rmtree(tmp_path / "features.zarr")
    monkeypatch.setattr(durable, "free_bytes", lambda _: 2_000_000 + max(sizes))  # room for each, not for all
    with pytest.raises(StoreFullError, match=rf"{len(sizes)} boundaries to write need"):
        extract(path, progress=False)
    assert [p.name for p in (tmp_path / "features.zarr").iterdir()] == ["zarr.json"]


def test_gc_stops_at_a_corrupt_item_before_it_deletes(experiment: Path, clips: Path) -> None:
    store = experiment.with_name("features.zarr")
    extract(experiment, progress=False)
    name_clips(clips, [1, 2, 3])
    report = find_store_garbage(store, [experiment], progress=False)
    file = next(store.glob("*/b*/hidden/c.0.*"))
    content = bytearray(file.read_bytes())
    content[len(content) * 5 // 8] ^= 1  # in clip 1, which is to be moved
    file.write_bytes(content)
    with pytest.raises(CorruptItemError, match="run `talik store repair`; nothing was deleted of this boundary"):
        report.collect()
    assert [f.shard for f in verify(open_store(store))] == [0]
