"""Flip single bits anywhere in small stores: is each found, is none read as data, does repair redo just what is bad?

    python benchmarks/store_bitflips.py [--flips 1000] [--seed 0] [--output benchmarks/store_bitflips.md]

Half of the flips fall into the data of shard files, a quarter into their indexes, a quarter into the metadata (every
zarr.json, receipts, items, offsets, checksums), each at a random bit, by turns in a dense and in a ragged boundary,
both with small inputs. After each flip `verify` runs, every item is read as training reads it, `repair` runs and the
writer computes what repair has forgotten; the store must then be, byte for byte, the one that was never damaged. What
repair cannot derive again (a boundary's own zarr.json, its items, offsets) it must name; there the flip is undone.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from store_sample import DENSE, RAGGED, Known, surroundings, tree

from talik.cache.format import catalog
from talik.cache.maintenance.repair import repair
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store

NUM_ITEMS = 8
PARTS = ("data", "data", "index", "metadata")


@dataclass
class Tally:
    """Counts by part of the store.

    Attributes:
        counts: flips, detected, padding, refused (reads that ended in an error), wrong, repaired, beyond, recomputed.
        faults: in words, what should not have been.
    """

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {part: Counter() for part in PARTS})
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        """Note what should not have been."""
        self.faults.append(what)


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, counted from its beginning."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def places(store: Path, known: Known) -> dict[str, list[tuple[Path, int, int]]]:
    """Return (file, first byte, end) of each part of a sound store."""
    opened = catalog.load(store, known.spec)
    assert opened is not None
    found: dict[str, list[tuple[Path, int, int]]] = {part: [] for part in PARTS}
    shards = {}
    for array in opened.layout.data:
        shards.update({array.shard_path(shard): array.index_bytes for shard in range(opened.num_shards)})
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        size = path.stat().st_size
        index = shards.get(path)
        if index is None:
            found["metadata"].append((path, 0, size))
        else:
            found["data"].append((path, 0, size - index))
            found["index"].append((path, size - index, size))
    return found


def draw(parts: list[tuple[Path, int, int]], choice: random.Random) -> tuple[Path, int]:
    """Return a file and a bit of it, every bit of the part as likely as any other."""
    at = choice.randrange(sum(end - first for _, first, end in parts))
    for path, first, end in parts:
        if at < end - first:
            return path, (first + at) * 8 + choice.randrange(8)
        at -= end - first
    raise AssertionError


def one_flip(known: Known, store: Path, sound: dict[str, bytes], part: str, path: Path, bit: int, tally: Tally) -> None:
    """Flip, verify, read, repair, compute again, compare."""
    items, counts = known.items(NUM_ITEMS), tally.counts[part]
    where = f"bit {bit} of {path.relative_to(store)}"
    flip(path, bit)
    counts["flips"] += 1
    findings = verify(open_store(store, check=False))
    counts["detected"] += bool(findings)
    padding = bool(findings) and not any(finding.data for finding in findings)
    counts["padding"] += padding
    if not findings:
        tally.fault(f"{where}: not found by verify")
    right, wrong, refused = known.read(store, items)
    counts["wrong"] += wrong
    counts["refused"] += bool(refused)
    if wrong:
        tally.fault(f"{where}: {wrong} items were read with other values")
    if padding and right != len(items):
        tally.fault(f"{where}: called padding, and {refused} items cannot be read")
    forgotten, beyond = repair(open_store(store, "a", check=False), findings)
    if beyond:
        counts["beyond"] += 1
        flip(path, bit)
    else:
        recomputed = known.fill(store, items)
        counts["repaired"] += 1
        counts["recomputed"] += len(recomputed)
        if recomputed != sorted(shard for _, shard in forgotten) or len(recomputed) > 1:
            tally.fault(f"{where}: shards {recomputed} were computed again")
    if tree(store) != sound:
        tally.fault(f"{where}: the store is not what it was")
        shutil.rmtree(store)
        for name, content in sound.items():
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            (store / name).write_bytes(content)


def run(flips: int, seed: int, folder: Path) -> Tally:
    """Flip so many bits, one at a time, in stores under `folder`."""
    tally, choice = Tally(), random.Random(seed)
    stores = []
    for spec in (DENSE, RAGGED):
        known, store = Known(spec), folder / spec.modality
        known.fill(store, known.items(NUM_ITEMS))
        stores.append((known, store, tree(store), places(store, known)))
    for number in range(flips):
        part = PARTS[number % len(PARTS)]
        known, store, sound, parts = stores[number // len(PARTS) % len(stores)]
        path, bit = draw(parts[part], choice)
        one_flip(known, store, sound, part, path, bit, tally)
    return tally


def page(tally: Tally, seed: int) -> str:
    """Return the result as Markdown."""
    columns = ("flips", "detected", "padding", "refused", "wrong", "repaired", "recomputed", "beyond")
    lines = [
        "# Single bits flipped in stores",
        "",
        *surroundings(),
        "",
        "| where | flips | found by verify | of these, padding | an item refused with an error | items read wrong | "
        "repaired | shards computed again | beyond repair, named |",
        "|---|" + "---|" * len(columns),
    ]
    rows = {part: tally.counts[part] for part in dict.fromkeys(PARTS)}
    rows["all"] = sum(rows.values(), Counter())
    lines += [f"| {name} | " + " | ".join(str(count[c]) for c in columns) + " |" for name, count in rows.items()]
    lines += ["", f"Seed {seed}. What should not have been: {len(tally.faults) or 'nothing'}.", ""]
    return "\n".join(lines + [f"- {fault}" for fault in tally.faults])


def main() -> None:
    """Parse, run, write the page; exit with 1 if anything should not have been."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = run(arguments.flips, arguments.seed, Path(folder))
    text = page(tally, arguments.seed)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
