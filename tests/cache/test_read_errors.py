"""Checksums that happen to be zero, and names in whatever error leaves a read."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest

from talik.cache.feature_store import ArraySpec, BoundarySpec, FeatureStore, Item
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.cache.read.shard_reader import StoredShard
from talik.errors import CorruptItemError


def _ending(begin: bytes) -> bytes:
    """Return four bytes after which the CRC32C of `begin` is 0, found bit by bit: a checksum is linear in them."""
    crc = google_crc32c.value(begin)
    wanted = google_crc32c.extend(crc, bytes(4))
    columns = [google_crc32c.extend(crc, (1 << bit).to_bytes(4, "little")) ^ wanted for bit in range(32)]
    table = np.array([[column >> row & 1 for column in columns] + [wanted >> row & 1] for row in range(32)], bool)
    for place in range(32):  # Gauss over two elements; the columns are independent
        pivot = place + int(np.argmax(table[place:, place]))
        table[[place, pivot]] = table[[pivot, place]]
        table[table[:, place] & (np.arange(32) != place)] ^= table[place]
    return sum(int(bit) << i for i, bit in enumerate(table[:, 32])).to_bytes(4, "little")


@pytest.mark.parametrize("path", ["mmap", "preadv"])
@pytest.mark.parametrize("tokens", [1, 7, 300])  # of one piece, and of several blocks
def test_a_checksum_of_zero_is_one_like_any_other(tokens, path, tmp_path):
    inputs = {"ids": ArraySpec(dtype="int32"), "late": ArraySpec(dtype="int32")}
    spec = BoundarySpec(
        modality="text", boundary=1, identity={"a": 1}, dtype="float32", shape=(600,), ragged=True, inputs=inputs
    )
    random = np.random.default_rng(tokens)
    hidden = random.standard_normal((tokens, 600)).astype("<f4")
    ids = random.integers(0, 1000, tokens).astype("<i4")
    ids[-1:] = np.frombuffer(_ending(hidden.tobytes() + ids[:-1].tobytes()), "<i4")  # zero after the second array
    late = np.zeros(tokens, "<i4")
    late[-1:] = np.frombuffer(_ending(hidden.tobytes() + ids.tobytes() + late[:-1].tobytes()), "<i4")
    item = Item(key="1" * 64, source="a text")
    with FeatureStore.open(tmp_path / "s", "a").writer(spec, [item], lengths=[tokens]) as writer:
        writer.write(writer.missing()[0], [(hidden, {"ids": ids, "late": late})])
    with FeatureStore.open(tmp_path / "s").reader("text", 1, path=path, verify="always") as reader:
        batch = reader.read([item.key])
        np.testing.assert_array_equal(batch.hidden[0], hidden)
        np.testing.assert_array_equal(batch.inputs["late"][0], late)
    assert verify(open_store(tmp_path / "s")) == []
    data = next((tmp_path / "s").rglob("hidden/c.*"))
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    with FeatureStore.open(tmp_path / "s").reader("text", 1, path=path) as reader:
        with pytest.raises(CorruptItemError, match="a text"):
            reader.read([item.key])
    assert len(verify(open_store(tmp_path / "s"))) == 1


@pytest.mark.parametrize("path", ["mmap", "preadv"])
def test_any_error_of_a_read_names_the_item(path, make_sample, tmp_path, monkeypatch):
    sample = make_sample("dense")
    items = sample.items(5)
    store = FeatureStore.open(tmp_path / "s", "a")
    with sample.writer(store, items) as writer:
        for shard in writer.missing():
            writer.write(shard, sample.states(shard))
    real = StoredShard.copy_item

    def copy_item(self, slot, out, *, check):
        if slot == 2:  # the third of the first shard
            raise OSError(5, "Input/output error")
        return real(self, slot, out, check=check)

    monkeypatch.setattr(StoredShard, "copy_item", copy_item)
    with FeatureStore.open(tmp_path / "s").reader("visual", sample.spec.boundary, path=path) as reader:
        with pytest.raises(OSError, match=r"clips/2\.mp4: Input/output error"):
            reader.read([item.key for item in items[:4]])
