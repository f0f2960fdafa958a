"""Stores in object storage: written shard by shard, owned by one process at a time; the server dies in between."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import pytest

from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.repair import repair
from talik.cache.maintenance.verify import verify
from talik.cache.object_storage import lease as object_lock
from talik.cache.object_storage import object_writer
from talik.cache.object_storage.address import ObjectAddress
from talik.cache.object_storage.client import Objects
from talik.cache.open import open_store
from talik.errors import BackendError, SettingsError, StoreError, StoreFormatError, StoreLockedError

MemoryStore = pytest.importorskip("obstore.store", reason="the extra object-storage is not installed").MemoryStore
QUICK = {"retry_seconds": 0.5}


def fill(sample, url, items, before=lambda shard: None, **more):
    """Write all that is missing and return the number of shards that were."""
    with sample.writer(FeatureStore.open(url, "a", **more), items) as writer:
        missing = writer.missing()
        for shard in missing:
            before(shard)
            writer.write(shard, sample.states(shard))
        assert writer.missing() == []
    return len(missing)


def check(sample, url, items, **more):
    """Read `items` and compare every value."""
    with FeatureStore.open(url, **more).reader(sample.spec.modality, 9) as reader:
        batch = reader.read([item.key for item in items])
    for i, item in enumerate(items):
        hidden, inputs = sample.state(item)
        whole = slice(0, len(hidden) if sample.spec.ragged else None)
        np.testing.assert_array_equal(batch.hidden[i][whole], sample.stored(hidden))
        for name, values in inputs.items():
            np.testing.assert_array_equal(batch.inputs[name][i][whole], values)


def objects_of(url):
    """Return every object of a store with its bytes."""
    objects = Objects(ObjectAddress(url=url))
    return {key: objects.get(key)[0] for key in objects.list()}


@pytest.mark.parametrize("name", ["dense-inputs", "ragged"])
def test_its_objects_are_the_files_of_a_store_in_a_folder(name, make_sample, s3, tmp_path, tree):
    sample = make_sample(name)
    url, items = f"{s3.bucket()}/a/s.zarr", sample.items(8)
    assert fill(sample, url, items[:5]) == 2
    assert fill(sample, url, items, cache_dir=str(tmp_path / "another machine")) == 1
    assert fill(sample, url, items) == 0
    check(sample, url, [*items[::-1], items[3]])
    sample.fill(tmp_path / "s.zarr", items[:5])
    sample.fill(tmp_path / "s.zarr", items)
    assert objects_of(url) == tree(tmp_path / "s.zarr")
    assert verify(open_store(url)) == []


def test_the_server_dies_while_shards_are_written(make_sample, s3, tmp_path, tree):
    sample = make_sample("ragged")
    url, items = f"{s3.bucket()}/s.zarr", sample.items(9)

    def dying(shard):
        for number, state in enumerate(sample.states(shard)):
            if shard.index == 1 and number == 1:
                s3.kill()
            yield state

    with sample.writer(FeatureStore.open(url, "a", storage_options=QUICK), items) as writer:
        first, second, *_ = writer.missing()
        writer.write(first, dying(first))
        with pytest.raises(StoreError, match=rf"{url}/.*{s3.endpoint} has not answered for 0.5 s.*run again"):
            writer.write(second, dying(second))
    s3.start()
    again = []
    fill(sample, url, items, lambda shard: again.append(shard.index))
    assert again == [2]  # the second was finished here, and is put without being computed again
    sample.fill(tmp_path / "s.zarr", items)
    assert objects_of(url) == tree(tmp_path / "s.zarr")


@pytest.mark.parametrize("same_machine", [True, False])
def test_the_storage_goes_away_at_any_request(same_machine, make_sample, tmp_path, tree, monkeypatch):
    sample = make_sample("ragged", inputs={})
    items = sample.items(5)
    sample.fill(tmp_path / "s.zarr", items[:2])
    sample.fill(tmp_path / "s.zarr", items)
    for number in itertools.count(int(same_machine), 2):  # the other half of the requests is the other case's
        memory, left = MemoryStore(), number
        monkeypatch.setattr("obstore.store.from_url", lambda *_, memory=memory, **__: memory)
        real = {name: getattr(Objects, name) for name in ("put", "put_file", "delete")}
        url, here = f"s3://bucket/{number}", str(tmp_path / f"{number}")
        first = {"cache_dir": here}
        fill(sample, url, items[:2], **first)

        def dying(name, real=real):
            def ask(*given, **more):
                nonlocal left
                left -= 1
                if left < 0:
                    raise StoreError("gone")
                return real[name](*given, **more)

            return ask

        ended = False
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(Objects, name, dying(name))
            with nullcontext() if number > 60 else suppress(StoreError):
                fill(sample, url, items, **first)
                ended = True
        again = {"cache_dir": here if same_machine else f"{here}-elsewhere"}
        if left < 0:
            fill(sample, url, items, **again)
        objects = Objects(ObjectAddress(url=url))
        assert {key: objects.get(key)[0] for key in objects.list()} == tree(tmp_path / "s.zarr"), number
        if ended and left >= 0:
            break
    assert number > 10


def test_the_server_comes_back_in_time(make_sample, s3, caplog):
    sample = make_sample()
    url, items = f"{s3.bucket()}/s.zarr", sample.items(6)
    back = threading.Timer(0.3, s3.start)

    def kill_at_second(shard):
        if shard.index == 1:
            s3.kill()
            back.start()

    fill(sample, url, items, kill_at_second)
    back.join()
    assert "does not answer; asking for 120 s" in caplog.text
    check(sample, url, items)


OWNER = """
import sys, time
sys.path[:0] = {path}
from talik.cache.feature_store import FeatureStore
from talik.cache.format.spec import BoundarySpec, Item
import numpy as np
spec = BoundarySpec(modality="visual", boundary=9, identity={{"size": 224}}, dtype="float16", shape=(2, 3, 4))
items = [Item(key=f"{{i + 1:064x}}", source=str(i)) for i in range(4)]
writer = FeatureStore.open("{url}", "a", cache_dir="{cache}").writer(spec, items, max_seconds_per_item=30.0)
writer.write(writer.missing()[0], [(np.full((2, 3, 4), i, np.float32), {{}}) for i in range(2)])
print("written", flush=True)
time.sleep(600)
"""


def test_one_owner_at_a_time(make_sample, s3, tmp_path):
    url = f"{s3.bucket()}/s.zarr"
    script = OWNER.format(path=sys.path, url=url, cache=tmp_path / "owner")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "written\n"
        for cache in ("owner", "elsewhere"):
            with pytest.raises(StoreLockedError, match=rf"process {owner.pid} on {os.uname().nodename} is writing"):
                FeatureStore.open(url, "a", cache_dir=str(tmp_path / cache))
        owner.kill()
    store = FeatureStore.open(url, "a", cache_dir=str(tmp_path / "elsewhere"))  # taken over: it ran here, and is dead
    assert [len(store.reader("visual", 9).items), len(store.sources(store.boundaries()[0]))] == [2, 4]


def test_an_owner_elsewhere_is_waited_for(make_sample, s3, monkeypatch):
    sample, url = make_sample(), f"{s3.bucket()}/s.zarr"
    fill(sample, url, sample.items(3))
    objects = Objects(ObjectAddress(url=url))
    for said in ({"host": "elsewhere", "pid": 12, "place": ""}, {"host": os.uname().nodename, "pid": 1, "place": "x"}):
        objects.put(object_lock.LOCK_KEY, json.dumps(said).encode())
        with pytest.raises(StoreLockedError, match=rf"process {said['pid']} on {said['host']} is writing.*wait 120 s"):
            FeatureStore.open(url, "a")
    monkeypatch.setattr(object_lock, "STALE_SECONDS", -1.0)  # as if nothing had been heard of it for so long
    assert fill(sample, url, sample.items(3)) == 0
    assert objects.head(object_lock.LOCK_KEY) is None


def test_who_lost_its_lock_changes_nothing(make_sample, s3, monkeypatch):
    monkeypatch.setattr(object_lock, "HEARTBEAT_SECONDS", 0.05)
    sample, url = make_sample("dense"), f"{s3.bucket()}/s.zarr"
    store = FeatureStore.open(url, "a")
    writer = sample.writer(store, sample.items(6))
    shard = writer.missing()[0]
    store._objects.put(object_lock.LOCK_KEY, b'{"host": "elsewhere", "pid": 12}')
    until = time.monotonic() + 20
    while not object_lock._held[url].lock._lost and time.monotonic() < until:
        time.sleep(0.02)
    with pytest.raises(StoreLockedError, match=r"process 12 on elsewhere has taken this store over"):
        object_lock.check(url)
    with pytest.raises(StoreLockedError, match="taken this store over"):
        writer.write(shard, sample.states(shard))
    with pytest.raises(StoreLockedError, match="taken this store over"):
        store.writer(make_sample("ragged").spec, sample.items(2), lengths=[1, 1])
    writer.close()
    assert store._objects.get(object_lock.LOCK_KEY)[0].startswith(b'{"host": "elsewhere"')
    store._objects.delete(object_lock.LOCK_KEY)


def test_metadata_that_another_wrote_is_not_written_over(make_sample, s3):
    sample, url = make_sample(), f"{s3.bucket()}/s.zarr"
    store = FeatureStore.open(url, "a")
    with sample.writer(store, sample.items(3)) as writer:
        key = f"{sample.spec.path}/zarr.json"
        store._objects.put(key, b"another owner's")
        (store.path / key).write_bytes(b"this one's")
        with pytest.raises(StoreError, match=r"somebody else has written it"):
            writer._mirror.push_changes()


def test_workers_of_other_machines(make_sample, s3, tmp_path, tree):
    sample, url = make_sample("ragged"), f"{s3.bucket()}/s.zarr"
    items = sample.items(9)
    with sample.writer(FeatureStore.open(url, "a"), items) as writer:
        shards, worker = writer.missing(), pickle.loads(pickle.dumps(writer.shard_writer))
        elsewhere = replace(
            worker, owner=("another host", 1), address=replace(worker.address, cache_dir=str(tmp_path / "elsewhere"))
        )
        receipts = [elsewhere.write(shard, sample.states(shard)) for shard in shards[:2]]
        np.testing.assert_array_equal(elsewhere.write(shards[0], iter(())), receipts[0])  # a second arrival
        assert [shard.index for shard in writer.missing()] == [shard.index for shard in shards[2:]]
        for shard in writer.missing():
            writer.write(shard, sample.states(shard))
    sample.fill(tmp_path / "s.zarr", items)
    assert objects_of(url) == tree(tmp_path / "s.zarr")


def test_what_is_finished_here_is_dropped_if_the_store_went_on(make_sample, s3, tmp_path, monkeypatch):
    sample, url = make_sample(), f"{s3.bucket()}/s.zarr"
    items = sample.items(6)
    with monkeypatch.context() as patch:
        patch.setattr(object_writer, "put_shard", lambda *_: (_ for _ in ()).throw(StoreError("no answer")))
        with pytest.raises(StoreError, match="no answer"):
            fill(sample, url, items)
    fewer = [items[0], *items[2:]]  # another machine gives the row of an item up, which is in the same shard
    fill(sample, url, fewer, cache_dir=str(tmp_path / "elsewhere"))
    fill(sample, url, fewer)
    check(sample, url, fewer)
    assert verify(open_store(url)) == []


def test_damage_is_found_and_repaired(make_sample, s3, tmp_path):
    sample, url = make_sample(), f"{s3.bucket()}/s.zarr"
    items = sample.items(6)
    fill(sample, url, items)
    objects = Objects(ObjectAddress(url=url))
    key = f"{sample.spec.path}/hidden/c.1.0.0.0"
    content = bytearray(objects.get(key)[0])
    content[5] ^= 1
    objects.put(key, bytes(content))
    findings = verify(open_store(url))
    assert [(f.shard, f.item) for f in findings] == [(1, "clips/3.mp4")]
    with pytest.raises(StoreError, match=rf"{url}: .*clips/3.mp4.*fails its CRC32C"):
        check(sample, url, items, cache_dir=str(tmp_path / "elsewhere"))
    assert repair(open_store(url, "a"), findings) == ([(sample.spec.path, 1)], [])
    assert fill(sample, url, items) == 1
    check(sample, url, items, cache_dir=str(tmp_path / "elsewhere"))
    assert verify(open_store(url)) == []


def test_large_objects_go_in_parts(s3, tmp_path):
    objects = Objects(ObjectAddress(url=f"{s3.bucket()}/s"))
    content = np.random.default_rng(0).bytes(17 << 20)
    (tmp_path / "large").write_bytes(content)
    objects.put_file("large", tmp_path / "large")
    with open(tmp_path / "back", "wb") as back:
        objects.get_file("large", objects.head("large"), back.fileno(), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_what_is_refused(make_sample, s3, tmp_path, monkeypatch):
    sample, bucket = make_sample(), s3.bucket()
    with pytest.raises(StoreFormatError, match="there is no store; run `talik extract`"):
        FeatureStore.open(f"{bucket}/none.zarr")
    with pytest.raises(SettingsError, match=r"s3://bucket/features\.zarr"):
        FeatureStore.open("s3://alone")
    with pytest.raises(SettingsError, match="secrets are not read from settings"):
        FeatureStore.open(f"{bucket}/s.zarr", storage_options={"secret_access_key": "x"})
    with pytest.raises(SettingsError, match=r"cannot be opened.*storage"):
        FeatureStore.open(f"{bucket}/s.zarr", storage_options={"endpoit": "x"})
    with pytest.raises(StoreError, match=r"refuses: .*404"):
        FeatureStore.open("s3://nobodys-bucket/s.zarr")
    fill(sample, f"{bucket}/s.zarr", sample.items(2))
    objects = Objects(ObjectAddress(url=f"{bucket}/s.zarr"))
    objects.put("zarr.json", b"{}")
    with pytest.raises(StoreFormatError, match="not a metadata file that talik wrote"):
        FeatureStore.open(f"{bucket}/s.zarr")
    fill(sample, f"{bucket}/t.zarr", sample.items(2))
    with pytest.raises(SettingsError, match="opened for reading"):
        FeatureStore.open(f"{bucket}/t.zarr").writer(sample.spec, sample.items(2))
    real = Objects.put
    monkeypatch.setattr(Objects, "put", lambda self, key, content, **_: real(self, key, content))
    object_lock._proven.clear()
    with pytest.raises(BackendError, match="ignores the condition"):
        FeatureStore.open(f"{bucket}/t.zarr", "a")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(BackendError, match=r"talik\[object-storage\]"):
        FeatureStore.open(f"{bucket}/t.zarr")
