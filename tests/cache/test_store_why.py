"""`why` names what differs: fields, and new, changed, moved, waiting and gone items."""

from __future__ import annotations

from dataclasses import replace

from talik.cache.feature_store import FeatureStore, Item
from talik.cache.format.digests import digest_text
from talik.cache.maintenance.explain import why


def test_items(sample, tmp_path):
    items = sample.items(5)
    store = FeatureStore.open(tmp_path / "s", "a")
    everything = why(store, sample.spec, items)
    assert everything.stored is None
    assert len(everything.new) == 5
    sample.fill(tmp_path / "s", items)
    nothing = why(store, sample.spec, items)
    assert nothing.stored == sample.spec
    assert not any((nothing.fields, nothing.new, nothing.changed, nothing.moved, nothing.waiting, nothing.gone))
    with sample.writer(store, sample.items(6)):
        pass
    asked = [
        items[0],
        Item(key=digest_text("edited"), source=items[1].source),
        replace(items[2], source="moved.mp4"),
        *sample.items(2, first=5),
    ]
    found = why(store, sample.spec, asked)
    assert found.changed == (items[1].source,)
    assert found.moved == ("moved.mp4",)
    assert found.waiting == ("clips/5.mp4",)
    assert found.new == ("clips/6.mp4",)
    assert found.gone == tuple(item.source for item in items[3:])  # items[2] has but another name
    assert found.num_missing == 3
    assert found.lines()[0].endswith("is stored; 3 items are to be computed")
    assert "  gone: 2 (clips/3.mp4, clips/4.mp4)" in found.lines()


def test_fields_of_the_nearest_one(make_sample, tmp_path):
    far = make_sample(identity={"weights": "xyz", "size": 96})
    near = make_sample(identity={"weights": "abc", "size": 224})
    for sample in (far, near):
        sample.fill(tmp_path / "s", sample.items(1))
    asked = replace(near.spec, dtype="bfloat16", identity={"weights": "abc", "size": 112})
    found = why(FeatureStore.open(tmp_path / "s"), asked, near.items(1))
    assert found.stored == near.spec
    assert [str(f) for f in found.fields] == [
        "dtype: requested 'bfloat16', stored 'float16'",
        "size: requested 112, stored 224",
    ]
