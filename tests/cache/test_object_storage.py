"""Stores in object storage: written shard by shard, owned by one process at a time; the server dies in between."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import pytest

from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.repair import repair
from talik.cache.maintenance.verify import verify
from talik.cache.object_storage import object_writer
from talik.cache.object_storage.address import ObjectAddress
from talik.cache.object_storage.client import Objects
from talik.cache.open import open_store
from talik.errors import BackendError, ObjectChangedError, SettingsError, StoreError, StoreFormatError, StoreLockedError

obstore = pytest.importorskip("obstore", reason="obstore is not installed: pip install 'talik[object-storage]'")
MemoryStore = obstore.store.MemoryStore
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
        real = {name: getattr(Objects, name) for name in ("put", "delete")}
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


def test_one_process_at_a_time_writes_through_a_folder_of_this_machine(make_sample, s3, tmp_path):
    url = f"{s3.bucket()}/s.zarr"
    script = OWNER.format(path=sys.path, url=url, cache=tmp_path / "owner")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "written\n"
        with pytest.raises(StoreLockedError, match=rf"{url}: process {owner.pid} on {os.uname().nodename} is writing"):
            FeatureStore.open(url, "a", cache_dir=str(tmp_path / "owner"))
        owner.kill()
    store = FeatureStore.open(url, "a", cache_dir=str(tmp_path / "owner"))
    assert [len(store.reader("visual", 9).items), len(store.sources(store.boundaries()[0]))] == [2, 4]


def test_a_store_with_the_lock_of_an_older_version_beside_it(make_sample, s3):
    sample, url = make_sample(), f"{s3.bucket()}/s.zarr"
    fill(sample, url, sample.items(3))
    Objects(ObjectAddress(url=url)).put(".lock", b'{"host": "elsewhere", "pid": 12, "place": ""}')
    assert fill(sample, url, sample.items(6)) == 1
    check(sample, url, sample.items(6))


def two_machines(tmp_path):
    """Two folders of two machines."""
    return {"cache_dir": str(tmp_path / "here")}, {"cache_dir": str(tmp_path / "there")}


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """Give a function that makes storage in memory and returns a URL of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    numbers = itertools.count()

    def make():
        storage = make.storage = MemoryStore()
        monkeypatch.setattr("obstore.store.from_url", lambda *_, **__: storage)
        return f"s3://bucket/{next(numbers)}"

    return make


def test_two_machines_write_different_boundaries_at_once(make_sample, s3, tmp_path):
    dense, ragged = make_sample("dense"), make_sample("ragged")
    url, (here, there) = f"{s3.bucket()}/s.zarr", two_machines(tmp_path)
    with (
        dense.writer(FeatureStore.open(url, "a", **here), dense.items(6)) as one,
        ragged.writer(FeatureStore.open(url, "a", **there), ragged.items(7)) as other,
    ):
        for first, second in itertools.zip_longest(one.missing(), other.missing()):
            if first is not None:
                one.write(first, dense.states(first))
            other.write(second, ragged.states(second))
    check(dense, url, dense.items(6))
    check(ragged, url, ragged.items(7))
    assert verify(open_store(url)) == []


def test_two_machines_share_the_shards_of_a_boundary(sample, memory, tmp_path, tree):
    url, (here, there), items = memory(), two_machines(tmp_path), sample.items(11)
    computed = []

    def states(shard):
        computed.append(shard.index)
        return sample.states(shard)

    with (
        sample.writer(FeatureStore.open(url, "a", **here), items) as one,
        sample.writer(FeatureStore.open(url, "a", **there), items) as other,
    ):
        shards = one.missing()
        assert shards == other.missing()
        other.write(shards[0], states(shards[0]))
        for shard in shards:
            one.write(shard, states(shard))  # the first is not computed again
        assert other.missing() == []
        for shard in shards:
            other.write(shard, iter(()))
    assert objects_of(url) == {**objects_of(url), **tree_of(sample, items, tmp_path, tree)}


def tree_of(sample, items, tmp_path, tree):
    """The files of the same store in a folder."""
    sample.fill(tmp_path / "same.zarr", items)
    return tree(tmp_path / "same.zarr")


@pytest.mark.parametrize("held", ["boundary", "extension"])
def test_a_writer_that_sleeps_while_another_extends_changes_nothing(held, sample, memory, tmp_path):
    """One has planned its rows and sleeps, another writes others and ends; the one that wakes hears of it."""
    url, (here, there), items = memory(), two_machines(tmp_path), sample.items(9)
    if held == "extension":
        fill(sample, url, items[:2], **there)
    sleeper = sample.writer(FeatureStore.open(url, "a", **here), items[:5], commit=False)
    fill(sample, url, items[3:], **there)
    before = objects_of(url)
    with sleeper, pytest.raises(ObjectChangedError, match="somebody else has written it meanwhile; run again"):
        sleeper.commit()
    assert objects_of(url) == before
    assert fill(sample, url, items, **here) == 1
    check(sample, url, items)
    assert verify(open_store(url)) == []


def test_a_writer_that_sleeps_with_shards_to_write(sample, memory, tmp_path):
    url, (here, there), items = memory(), two_machines(tmp_path), sample.items(9)
    with sample.writer(FeatureStore.open(url, "a", **here), items[:6]) as sleeper:
        shards = sleeper.missing()
        sleeper.write(shards[0], sample.states(shards[0]))
        fill(sample, url, items, **there)
        before = objects_of(url)
        for shard in shards:
            sleeper.write(shard, iter(()))  # finished by the other; nothing is computed
        assert sleeper.missing() == []
    assert objects_of(url) == before
    check(sample, url, items)


def interrupted(instant, monkeypatch, meanwhile):
    """Have `meanwhile` done before a put or deletion; return the list that each of them is noted in."""
    real, asked = {name: getattr(Objects, name) for name in ("put", "delete")}, []

    def sleeping(name):
        def ask(objects, key, *given, **more):
            asked.append((name, kind_of(key)))
            if is_at(instant, asked):
                meanwhile()
            return real[name](objects, key, *given, **more)

        return ask

    for name in real:
        monkeypatch.setattr(Objects, name, sleeping(name))
    return asked


def kind_of(key):
    """Of an object: the array that it is a chunk of, or its name without what is drawn."""
    return (key.rpartition("/c.")[0] or key).rpartition("/")[2].partition("-")[0]


def instants(kinds, every):
    """Every number of a request; or the first of each kind, and the last of all."""
    return range(len(kinds)) if every else [*dict.fromkeys(kinds), len(kinds) - 1]


def is_at(instant, kinds):
    """Whether the last of these requests is the one of that number, or the first of that kind."""
    number = len(kinds) - 1
    return number == instant or (kinds[number] == instant and instant not in kinds[:number])


# Quickly the first request of each kind (their order is that of several threads), with -m slow each.
EVERY = pytest.mark.parametrize(
    "every", [pytest.param(False, id="kinds"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)


@EVERY
@pytest.mark.parametrize(
    ("name", "extends", "same"), [("dense", False, False), ("dense-inputs", True, True), ("ragged", True, False)]
)
def test_a_writer_sleeps_before_any_put_while_another_writes(
    name, extends, same, every, make_sample, memory, tmp_path, monkeypatch
):
    """Whatever a sleeping writer finds when it wakes, all that was finished is kept and every value is right."""
    sample = make_sample(name)
    items = sample.items(10)
    others = items[:6] if same else items[4:]

    def sleeps(instant):
        url = memory()
        here, there = two_machines(tmp_path / url.rpartition("/")[2])
        if extends:
            fill(sample, url, items[:2], **there)
        done = []
        with monkeypatch.context() as patch:
            asked = interrupted(instant, patch, lambda: done.append(fill(sample, url, others, **there)))
            with suppress(ObjectChangedError):
                fill(sample, url, items[:6], **here)
        return url, here, done, asked

    *_, puts = sleeps(None)
    assert len(puts) > 10
    for instant in instants(puts, every):
        url, here, done, _ = sleeps(instant)
        assert done, instant
        check(sample, url, others)
        fill(sample, url, items, **here)
        assert verify(open_store(url)) == [], instant
        left = {meta["path"] for chunk in obstore.list(memory.storage) for meta in chunk}
        assert len(left) == len(objects_of(url)), (instant, left)  # nothing beside the store


@EVERY
def test_answers_get_lost(every, make_sample, memory, tmp_path, monkeypatch, tree):
    """A put comes through and its answer does not: it is made again, and finds its own content."""
    sample = make_sample("ragged")
    items, lost = sample.items(7), obstore.exceptions.GenericError
    sample.fill(tmp_path / "s.zarr", items[:4])
    sample.fill(tmp_path / "s.zarr", items)
    real = obstore.put

    def without_answer(instant):
        url, kinds, unanswered = memory(), [], set()
        here, _ = two_machines(tmp_path / url.rpartition("/")[2])

        def put(store, path, *given, **more):
            answer = real(store, path, *given, **more)
            kinds.append(kind_of(path))
            if is_at(instant, kinds):
                unanswered.add(kinds[-1])
                raise lost("the answer was lost")
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(obstore, "put", put)
            fill(sample, url, items[:4], **here)
            fill(sample, url, items, **here)
        assert objects_of(url) == tree(tmp_path / "s.zarr"), instant
        return unanswered, kinds

    _, puts = without_answer(None)
    kinds = set().union(*(without_answer(instant)[0] for instant in instants(puts, every)))
    assert {"hidden", "crc", "receipts", "key"} <= kinds


def test_shards_of_machines_that_compute_other_bits(make_sample, memory, tmp_path):
    """A shard that another process put in part is taken over if that one is dead, and not if it lives."""
    sample = make_sample("ragged")
    url, (here, there), items = memory(), two_machines(tmp_path), sample.items(6)
    with (
        sample.writer(FeatureStore.open(url, "a", **here), items) as one,
        sample.writer(FeatureStore.open(url, "a", **there), items) as other,
    ):
        shard = one.missing()[0]
        dead = f"{sample.spec.path}/hidden/c.0.0"
        Objects(ObjectAddress(url=url)).put(dead, b"of a process that died")
        other.write(shard, sample.states(shard))
        shard, objects = one.missing()[0], Objects(ObjectAddress(url=url))

        def alive():
            yield from sample.states(shard)
            objects.put(f"{sample.spec.path}/hidden/c.{shard.index}.0", b"of a process that is alive")

        with pytest.raises(ObjectChangedError, match=rf"{url}: .*another process is writing shard {shard.index} too"):
            one.write(shard, alive())
        assert [left.index for left in other.missing()] == [1]
    fill(sample, url, items, **here)  # the other is gone: what was finished here is put
    check(sample, url, items)
    assert verify(open_store(url)) == []


def test_int8_is_measured_by_two_at_once(make_sample, memory, tmp_path):
    sample = make_sample("dense", dtype="int8")
    url, (here, there), items = memory(), two_machines(tmp_path), sample.items(12)
    with (
        sample.writer(FeatureStore.open(url, "a", **here), items) as one,
        sample.writer(FeatureStore.open(url, "a", **there), items) as other,
    ):
        for number, shard in enumerate(one.missing()):
            (one, other)[number % 2].write(shard, sample.states(shard))
    reader = FeatureStore.open(url).reader("visual", 9)
    assert [entry["int8"]["num_items"] for entry in reader.provenance] == [12]


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


def test_large_objects_come_in_parts(s3, tmp_path):
    objects = Objects(ObjectAddress(url=f"{s3.bucket()}/s"))
    content = np.random.default_rng(0).bytes(17 << 20)
    (tmp_path / "large").write_bytes(content)
    objects.put("large", tmp_path / "large", expect="")
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
    for kept, header in (((), "If-None-Match"), (("",), "If-Match")):
        with monkeypatch.context() as patch:

            def put(self, key, content, *, expect=None, kept=kept):
                return real(self, key, content, expect=expect if expect in kept else None)

            patch.setattr(Objects, "put", put)
            with pytest.raises(BackendError, match=rf"ignores the condition of a put \({header}\)"):
                FeatureStore.open(f"{bucket}/u.zarr", "a")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(BackendError, match=r"talik\[object-storage\]"):
        FeatureStore.open(f"{bucket}/t.zarr")
