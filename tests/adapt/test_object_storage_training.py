"""Stage 1 into object storage and stage 2 out of it, with the server killed in between; the CLI on its URL."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from typer.testing import CliRunner

import talik
from talik.cache.feature_store import FeatureStore
from talik.cache.object_storage.client import Objects
from talik.cache.object_storage.mirror import is_data
from talik.cli import app
from talik.errors import SettingsError, StoreError
from talik.extract.stage.experiment_file import read_toml
from talik.extract.stage.settings import extract_settings


@pytest.fixture
def experiment(s3, write_experiment):
    """The experiment with its store in a new bucket; the URL."""
    url = f"{s3.bucket()}/features.zarr"
    store = f'path = "{url}"\nstorage = {{ endpoint_url = "{s3.endpoint}", retry_seconds = 0.5 }}\ncache_dir = "cache"'
    return write_experiment(("[store]", f"[store]\nshard_items = 3\n{store}")), url


def predictions(run):
    return (run.folder / "predictions.jsonl").read_text()


def test_the_server_is_killed_while_extracting_and_while_training(experiment, s3, monkeypatch, tmp_path, extracted):
    path, url = experiment
    puts = threading.Semaphore(9)
    real = Objects.put

    def counted(self, key, content, **more):
        if is_data(key) and not puts.acquire(blocking=False):
            s3.kill()
        return real(self, key, content, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "put", counted)
        with pytest.raises(StoreError, match=rf"{url}.*has not answered for 0.5 s"):
            talik.extract(path, progress=False)
    s3.start()
    report = talik.extract(path, progress=False)
    local, there = FeatureStore.open(extracted.parent / "features.zarr"), FeatureStore.open(url)
    assert local.boundaries() == there.boundaries()
    all_items = 0
    for spec in local.boundaries():
        with local.reader(spec.modality, spec.boundary) as here, there.reader(spec.modality, spec.boundary) as away:
            keys = [item.key for item in here.items]
            all_items += len(keys)
            np.testing.assert_array_equal(here.read(keys).hidden, away.read(keys).hidden)

    assert 0 < sum(report.items.values()) < all_items  # what was put before the server died was not computed again
    shards = list((tmp_path / "cache").rglob("read/features.zarr/*/*/hidden/c.*"))
    assert shards  # what extraction put, readers of this machine have
    for shard in shards:
        shard.unlink()
    get = Objects.get_file
    gets = threading.Semaphore(2)

    def dying(self, key, *more):
        if not gets.acquire(blocking=False):
            s3.kill()
        return get(self, key, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "get_file", dying)
        with pytest.raises(StoreError, match=rf"{url}.*has not answered for 0.5 s"):
            talik.adapt(path, variant="probe", seed=3, progress=False)
    s3.start()
    run = talik.adapt(path, variant="probe", seed=3, resume=True, progress=False)
    assert predictions(run) == predictions(talik.adapt(extracted, variant="probe", seed=3, progress=False))


def test_settings_of_object_storage(write_experiment, tmp_path):
    def settings(store):
        path = write_experiment(("[store]", f"[store]\n{store}"))
        return extract_settings(read_toml(path), path=path)

    at = settings('path = "s3://bucket/a.zarr"\ncache_dir = "cache"\ncache_gb = 3')
    assert at.store_path.is_relative_to(tmp_path / "cache")
    assert at.store_path.name == "a.zarr"
    for store, says in (
        ('path = "s3://bucket"', r"store: s3://bucket: expected a bucket and a name"),
        ('path = "s3://b/a"\ncache_gb = 0.0', r"cache_gb: found 0.0, expected more than 0"),
        ('path = "s3://b/a"\nstorage = { secret_access_key = "x" }', r"storage.secret_access_key: secrets"),
        ('path = "a.zarr"\ncache_gb = 3', r"'a.zarr' is no object storage; remove the keys"),
    ):
        with pytest.raises(SettingsError, match=says):
            settings(store)


def test_store_commands(experiment, tmp_path):
    path, url = experiment
    talik.extract(path, progress=False)

    def said(*words, code=0):
        result = CliRunner().invoke(app, ["store", *map(str, words)])
        assert result.exit_code == code, (words, result.output, result.exception)
        return result.output if code == 0 else str(result.exception)

    listed = said("ls", url)
    name = listed.split()[0]
    assert listed.count("items") == 6
    assert '"identity"' in said("show", url, name)
    assert said("verify", url) == "every checksum holds\n"
    assert "nothing to repair" in said("repair", url)
    assert "is stored" in said("why", url, path, "--quiet")
    said("export", url, tmp_path / "s.h5")
    assert "items imported" in said("import", tmp_path / "s.h5", f"{url}2")
    assert said("ls", f"{url}2") == listed
    assert "gc works on a store in a folder" in said("gc", url, path, code=1)
