"""Kill an extraction again and again, and let the disk fail it: is anything lost, or read wrong, or left different?

    python benchmarks/store_faults.py [--kills 200] [--seed 0] [--output benchmarks/store_faults.md]

A real extraction (made clips and questions, tiny encoders with random weights, two boundaries of pictures and one of
texts, small shards) runs in a child process, forked with the imports done and the encoders open, and gets SIGKILL at a
random instant; the next child goes on. After each kill: `verify` finds nothing; every shard that ever had a receipt
still has it; every file of such a shard is, byte for byte, what an uninterrupted run wrote; every item that can be read
has that run's values. An extraction that ends must have left the very files of the uninterrupted one; then another
begins. After that come a disk that fills up in mid-shard, a read-only store, two writers at once and torn renames.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from store_sample import DENSE, RAGGED, Known, fork, killed, surroundings, tree

from talik.cache.atomic_io import temporary_beside
from talik.cache.feature_store import FeatureStore
from talik.cache.maintenance.repair import repair
from talik.cache.maintenance.verify import verify
from talik.cache.open import open_store
from talik.errors import StoreError, StoreFullError, StoreLockedError


@dataclass
class Kills:
    """What was seen.

    Attributes:
        killed: children that ended by SIGKILL.
        finished: extractions that came to their end, each after some kills.
        shards_kept: shards with a receipt, summed over the looks after each kill.
        unfinished: looks at a store that held some shards and not all.
        seconds: that an uninterrupted extraction takes in a child.
        faults: in words, what should not have been.
    """

    killed: int = 0
    finished: int = 0
    shards_kept: int = 0
    unfinished: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def kill_again_and_again(store: Path, work: Callable[[], object], *, kills: int, seed: int) -> Kills:
    """Run `work`, which fills `store` and goes on where it stopped, in children; kill so many of them."""
    seen, instants = Kills(), random.Random(seed)
    times = []
    for _ in range(2):
        shutil.rmtree(store, ignore_errors=True)
        started = time.perf_counter()
        if os.waitpid(fork(work), 0)[1]:
            raise SystemExit("the uninterrupted run failed")
        times.append(time.perf_counter() - started)
    seen.seconds = min(times)
    whole, values = tree(store), read_all(store)
    shutil.rmtree(store)
    held: set[str] = set()
    while seen.killed < kills:
        status = killed(work, instants.uniform(0.0, seen.seconds))
        if os.WIFSIGNALED(status):
            seen.killed += 1
            held = look(store, whole, values, held, seen)
            continue
        if status:
            seen.faults.append(f"after {seen.killed} kills: the extraction failed")
        seen.finished += 1
        compare_finished(store, whole, seen)
        shutil.rmtree(store)
        held = set()
    if os.waitpid(fork(work), 0)[1]:
        seen.faults.append("the last extraction failed")
    seen.finished += 1
    compare_finished(store, whole, seen)
    return seen


def look(store: Path, whole: dict[str, bytes], values: dict[str, bytes], held: set[str], seen: Kills) -> set[str]:
    """Look at a store whose writer was killed; return the receipts that it holds."""
    if not (store / "zarr.json").exists():
        return set()
    when = f"after {seen.killed} kills"
    seen.faults += [f"{when}: {finding}" for finding in verify(open_store(store, check=False))]
    receipts = {str(p.relative_to(store)) for p in store.glob("*/b*/receipts/c.*")}
    seen.faults += [f"{when}: {name} is gone" for name in sorted(held - receipts)]
    for name in receipts:
        boundary, shard = Path(name).parents[1], Path(name).name.split(".")[1]
        for file in (store / boundary).rglob("c.*"):
            path = str(file.relative_to(store))
            own = file.name.split(".")[1] == shard and not {"items", "offsets"} & set(file.parts)
            if own and file.read_bytes() != whole.get(path):
                seen.faults.append(f"{when}: {path} has a receipt and other bytes")
    for name, value in read_all(store).items():
        if values.get(name) != value:
            seen.faults.append(f"{when}: {name} reads as something else")
    seen.shards_kept += len(receipts)
    total = sum("/receipts/c." in name for name in whole)
    seen.unfinished += 0 < len(receipts) < total
    return receipts


def read_all(store: Path) -> dict[str, bytes]:
    """Return the values of every item that can be read, in every boundary that can be opened."""
    found: dict[str, bytes] = {}
    opened = FeatureStore.open(store)
    for spec in opened.boundaries():
        with opened.reader(spec.modality, spec.boundary, key=spec.key) as reader:
            for item in reader.items:
                batch = reader.read([item.key])
                inputs = b"".join(values.tobytes() for values in batch.inputs.values())
                found[f"{spec.path} {item.source}"] = batch.hidden.tobytes() + inputs
    return found


def compare_finished(store: Path, whole: dict[str, bytes], seen: Kills) -> None:
    """Note every file in which a finished store differs from the uninterrupted run's."""
    after = tree(store)
    differ = sorted(n for n in {*after, *whole} if after.get(n) != whole.get(n))
    seen.faults += [f"after {seen.killed} kills, finished: {name} differs" for name in differ]


def full_disk(folder: Path) -> str:
    """A disk that another program fills while a shard is being written; before that, a disk known to be too small."""
    known = Known(DENSE.__class__(**{**vars(DENSE), "shape": (50, 2000)}), shard_items=2)
    items = known.items(12)
    with small_disk(folder) as (disk, kind):
        store, ballast = disk / "s", disk / "ballast"
        FeatureStore.open(store, "a")
        if kind == "tmpfs":
            ballast.write_bytes(bytes(4_500_000))
            before = tree(store)
            expect(StoreFullError, lambda: known.fill(store, items), "6 shards to write need")
            require(tree(store) == before, "something was written")
            ballast.unlink()
        with known.writer(store, items) as writer:
            first, second, *_ = writer.missing()
            writer.write(first, known.states(first))
            before = tree(store)

            def states() -> Iterator[object]:
                for number, state in enumerate(known.states(second)):
                    if number:
                        fill_disk(ballast, kind)
                    yield state

            expect(StoreFullError, lambda: writer.write(second, states()), "what was finished is kept")  # type: ignore[arg-type]
            require({**tree(store), ".lock": b""} == {**before, ".lock": b""}, "something was left")
        require(verify(open_store(store, check=False)) == [], "verify")
        require(known.read(store, first.items) == (2, 0, 0), "items that cannot be read")
        empty_disk(ballast)
        require(len(known.fill(store, items)) == 5, "shards")
        require(known.read(store, items) == (12, 0, 0), "items that cannot be read")
    return (
        f"refused before the first byte where it cannot fit; in mid-shard ({kind}) nothing was left, the rest went on"
    )


def fill_disk(ballast: Path, kind: str) -> None:
    """Take all that is left of the disk, or forbid files larger than nothing."""
    if kind != "tmpfs":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def empty_disk(ballast: Path) -> None:
    """Give back what `fill_disk` took."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Give a disk of 6 MB, mounted if this user may; else a folder, to be used with a limit on the size of files."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    mounted = not os.geteuid() and not subprocess.run(mount, check=False, capture_output=True).returncode
    try:
        yield disk, "tmpfs" if mounted else "a limit on the size of files"
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def read_only(folder: Path) -> str:
    """A store that may be read and not written."""
    known, store = Known(DENSE), folder / "read-only"
    known.fill(store, known.items(3))
    before = tree(store)

    def as_nobody() -> None:
        if not os.geteuid():
            os.seteuid(65534)
        expect(StoreError, lambda: known.fill(store, known.items(6)), "cannot be written")
        require(known.read(store, known.items(3)) == (3, 0, 0), "items that cannot be read")

    for path in (folder, *(p for p in [store, *store.rglob("*")] if p.is_dir())):
        path.chmod(0o755 if path == folder else 0o555)
    status = os.waitpid(fork(as_nobody), 0)[1]
    for path in [store, *(p for p in store.rglob("*") if p.is_dir())]:
        path.chmod(0o755)
    require(status == 0, "a read-only store: see above")
    require(tree(store) == before, "a read-only store was written")
    return "writing it is refused in one line, reading it goes on"


def two_writers(folder: Path) -> str:
    """A second process that wants to write a store, and one that wants a shard which is being written."""
    known, store = Known(RAGGED), folder / "two"
    with known.writer(store, known.items(6)) as writer:
        expected = f"process {os.getpid()} on {os.uname().nodename} is writing this store"

        def second() -> None:
            expect(StoreLockedError, lambda: known.fill(store, known.items(6)), expected)

        require(os.waitpid(fork(second), 0)[1] == 0, "two writers")
        for shard in writer.missing():
            writer.write(shard, known.states(shard))
    require(known.read(store, known.items(6)) == (6, 0, 0), "items that cannot be read")
    return "the second is refused with the first one's process and host"


def torn_renames(folder: Path) -> str:
    """What a crash, or a file system that kept too little, can leave of a shard's last steps."""
    known = Known(RAGGED)
    items, store = known.items(8), folder / "torn"
    known.fill(store, items)
    whole = tree(store)
    base = store / known.spec.path
    data, receipt, crc = base / "hidden" / "c.1.0", base / "receipts" / "c.1.0", base / "crc" / "c.1"
    half = {path: path.read_bytes()[: path.stat().st_size // 2] for path in (data, receipt, crc)}
    cases: dict[str, Callable[[], object]] = {
        "a temporary file beside the place": lambda: (unlink(data, receipt), write(temporary_beside(data), half[data])),
        "renamed, no record": lambda: unlink(receipt),
        "renamed, a temporary record": lambda: (unlink(receipt), write(temporary_beside(receipt), half[receipt])),
        "renamed, half a record": lambda: write(receipt, half[receipt]),
        "renamed, an empty record": lambda: write(receipt, b""),
        "a record, half the data": lambda: write(data, half[data]),
        "a record, no data": lambda: unlink(data),
        "a record, half its checksums": lambda: write(crc, half[crc]),
        "no record, half an array's document": lambda: (
            unlink(receipt),
            write(base / "hidden" / "zarr.json", b'{"zarr'),
        ),
    }
    for name, tear in cases.items():
        tear()
        _, wrong, _ = known.read(store, items)
        findings = verify(open_store(store, check=False))
        _, beyond = repair(open_store(store, "a", check=False), findings) if findings else ((), [])
        redone = known.fill(store, items)
        require((wrong, list(beyond), redone) == (0, [], [1]), f"{name}: {wrong} wrong, {beyond}, {redone}")
        require(tree(store) == whole, f"{name}: other files")
    return f"{len(cases)} kinds; none read wrong, each mended by writing that one shard again, same bytes"


def require(condition: bool, what: str) -> None:
    """Stop where something is not as it must be."""
    if not condition:
        raise AssertionError(what)


def unlink(*paths: Path) -> None:
    """Remove files."""
    for path in paths:
        path.unlink()


def write(path: Path, content: bytes) -> None:
    """Put `content` there without any care."""
    path.write_bytes(content)


def expect(kind: type[Exception], work: Callable[[], object], words: str) -> None:
    """Run `work`, which must raise an error of this kind that says these words in one line."""
    try:
        work()
    except kind as error:
        if words in str(error) and "\n" not in str(error):
            return
        raise
    raise AssertionError(f"expected {kind.__name__}: {words}")


FAULTS: dict[str, Callable[[Path], str]] = {
    "a full disk": full_disk,
    "a read-only store": read_only,
    "two writers at once": two_writers,
    "torn renames": torn_renames,
}


def page(seen: Kills, outcomes: dict[str, str], seed: int) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Extractions killed, and disks that fail",
        "",
        *surroundings(),
        "",
        f"{seen.killed} children killed by SIGKILL at instants uniform over the {seen.seconds:.2f} s that an "
        f"uninterrupted extraction takes (seed {seed}); {seen.unfinished} of the stores looked at afterwards held some "
        f"shards and not all; {seen.shards_kept / max(1, seen.killed):.1f} shards on average. {seen.finished} "
        "extractions came to their end, each compared file by file with the uninterrupted one.",
        "",
        f"Shards lost, values read wrong, files that differ: {len(seen.faults)}.",
        *(f"- {fault}" for fault in seen.faults[:50]),
        "",
        "| fault | outcome |",
        "|---|---|",
        *(f"| {name} | {outcome} |" for name, outcome in outcomes.items()),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse, run, write the page; exit with 1 if anything should not have been."""
    from store_extraction import made_extraction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcomes = {name: fault(folder) for name, fault in FAULTS.items()}
        store, work = made_extraction(folder, num_clips=arguments.clips)
        seen = kill_again_and_again(store, work, kills=arguments.kills, seed=arguments.seed)
    text = page(seen, outcomes, arguments.seed)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)
    sys.exit(bool(seen.faults))


if __name__ == "__main__":
    main()
