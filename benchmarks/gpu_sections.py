"""The sections of `gpu.py` in their order, each kept from the others' failures and within one budget of seconds."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gpu_extract import Facts, StageOne
from gpu_sample import QUICK, Sizes, cores, make_clips, make_encoders
from gpu_train import StageTwo, scan_backends, variants_text
from scan import environment
from torch.profiler import ProfilerActivity, profile


class Sections:
    """Runs the parts of the benchmark, and keeps what each gives.

    Args:
        out: the folder of gpu.json.
        budget: seconds that everything may take.
        only: the stages that are run.
        facts: what is known before.
        interrupts: end a part that takes several times as long as it should, by SIGALRM.
    """

    def __init__(
        self, out: Path, *, budget: float, only: tuple[str, ...], facts: Facts, interrupts: bool = False
    ) -> None:
        self.out, self.only, self._budget, self._started = out, only, budget, time.perf_counter()
        self._interrupts = interrupts
        self.facts: Facts = {**facts, "sections": {}}

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._budget - (time.perf_counter() - self._started)

    def run(self, name: str, call: Callable[[], Facts], *, stage: str, seconds: float) -> Facts | None:
        """Run a part that takes about so many seconds, if its stage is wanted and the budget holds it."""
        if stage not in self.only:
            return None
        if seconds > self.left:
            self.save(name, {"left out": f"{self.left:.0f} s of the budget are left, about {seconds:.0f} needed"})
            return None
        started = time.perf_counter()
        try:
            with _alarm(min(40 + 4 * seconds, self.left + 30)) if self._interrupts else nullcontext():
                found = call()
        except Exception as error:
            told = traceback.format_exc()
            print(told, file=sys.stderr, flush=True)
            self.save(name, {"error": f"{type(error).__name__}: {error}", "traceback": told})
            return None
        self.save(name, {**found, "section_seconds": time.perf_counter() - started})
        return found

    def save(self, name: str, found: Facts) -> None:
        """Keep what a part gave, print it, and write the file."""
        self.facts["sections"][name] = found
        print(f"[{self._budget - self.left:5.0f} s] {name}: {json.dumps(_brief(found))}", flush=True)
        written = self.out / "gpu.json.part"
        written.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        written.replace(self.out / "gpu.json")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in here after so many seconds, when every thread has said where it is."""

    def ring(*_: object) -> None:
        faulthandler.dump_traceback(all_threads=True)
        raise TimeoutError(f"not ended after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _brief(found: Facts) -> Facts:
    """Numbers rounded, and without what is only for the file."""
    left_out = ("traceback", "runs", "all_ms", "report")
    kept = {k: v for k, v in found.items() if k not in left_out}
    return {
        k: round(v, 3) if isinstance(v, float) else _brief(v) if isinstance(v, dict) else v for k, v in kept.items()
    }


class Benchmark:
    """What the sections measure, made when first needed.

    Args:
        work: a folder for clips, encoders, stores and runs.
        sizes: of everything.
        device: where encoders and training run.
        compute: precision of the prefixes.
        sections: that keep the numbers.
        workers: decoding processes of stage 1; None for its default.
    """

    def __init__(
        self, work: Path, sizes: Sizes, *, device: str, compute: str, sections: Sections, workers: int | None = None
    ) -> None:
        self.work, self.sizes, self.device, self.compute, self.sections = work, sizes, device, compute, sections
        self._workers = workers

    @cached_property
    def one(self) -> StageOne:
        """Stage 1, its clips and encoders made."""
        clips = make_clips(self.work / "clips", self.sizes, 1 if self.sizes is QUICK else cores())
        make_encoders(self.work / "encoders", self.sizes, self.device)
        return StageOne(self.work, self.sizes, clips, device=self.device, compute=self.compute, workers=self._workers)

    @cached_property
    def two(self) -> StageTwo:
        """Stage 2, its store filled."""
        experiment = self.one.experiment("questions", variants=variants_text(self.sizes), name="train")
        extracted = self.work / f"questions-{self.compute}.zarr"
        if extracted.exists() and not (self.work / "train.zarr").exists():
            extracted.rename(self.work / "train.zarr")
        self.one.extract(experiment, fresh=False)
        return StageTwo(experiment, self.work / "timed", self.sizes, device=self.device)

    def prepare(self) -> Facts:
        """Make clips and encoders."""
        clips = self.one.clips
        size = sum(p.stat().st_size for p in clips)
        return {"clips": len(clips), "megabytes_a_clip": size / len(clips) / 1e6, "files": len(self.one.every)}

    def run(self) -> None:
        """Every section."""
        quick, run = self.sizes is QUICK, self.sections.run
        some = 1.0 if quick else 10.0  # a section that is not said to be longer

        run("prepare", self.prepare, stage=self.sections.only[0], seconds=some)
        save = self.sections.save
        part = self.sections.left / 3  # of the budget for the rounds, where stage 2 comes after
        until = time.perf_counter() + (part if "stage2" in self.sections.only else self.sections.left - 5 * some)
        run(
            "extract",
            lambda: self.one.rounds(lambda f: save("extract", f), lambda: time.perf_counter() > until),
            stage="stage1",
            seconds=4 * some,
        )
        run("fixed costs", lambda: self.one.small(), stage="stage1", seconds=2 * some)
        self._stage_two(some)
        for compute in ("float32", "tf32", "bfloat16"):
            if compute != self.compute and not quick:
                run(f"extract {compute}", lambda c=compute: self.one.precision(c), stage="stage1", seconds=15)  # type: ignore[misc]
        for kind in ("bottleneck", "trimodal") if torch.device(self.device).type == "cuda" else ():
            run(
                f"step {kind} compiled", lambda k=kind: self.two.solo(f"compiled-{k}"), stage="stage2", seconds=3 * some
            )  # type: ignore[misc]
        run("profile of a step", self.profile_step, stage="profile", seconds=2 * some)
        run("profile of extract", self.profile_extract, stage="profile", seconds=2 * some)

    def _stage_two(self, some: float) -> None:
        sizes = self.sizes

        def step(name: str, call: Callable[[], Facts], times: float = 1.0) -> None:
            self.sections.run(name, call, stage="stage2", seconds=times * some)

        step("bound", lambda: self.two.bare_suffix("b0"), 3)
        step("bound by clip", lambda: self.two.bare_suffix("c0"))
        step("copy", lambda: self.two.copied(), 0.3)
        step("adapter bottleneck", lambda: {"ms": self.two.adapter_ms("b0")}, 0.3)
        step("step bottleneck", lambda: self.two.solo("b0"))
        step("step probe", lambda: self.two.solo("probe"), 0.5)
        step("step lora", lambda: self.two.solo("lora"))
        group = [f"b{i}" for i in range(sizes.members)]
        step("group bottleneck", lambda: self.two.group(group, alone=True), 2)
        for backend in scan_backends(self.device) if "stage2" in self.sections.only else ():
            step(f"adapter trimodal {backend}", lambda b=backend: {"ms": self.two.adapter_ms("trimodal", b)}, 0.3)  # type: ignore[misc]
            step(f"step trimodal {backend}", lambda b=backend: self.two.solo("trimodal", b))  # type: ignore[misc]
        step("step bottleneck by clip", lambda: self.two.solo("c0"), 0.5)
        by_clip = [f"c{i}" for i in range(sizes.members)]
        step("group bottleneck by clip", lambda: self.two.group(by_clip, alone=True), 1.5)
        step("live", lambda: self.two.live("b0", 2), 2)
        grid = [f"b{i}" for i in range(sizes.grid)]
        step("grid", lambda: self.two.group(grid, alone=False, rounds=1), 2)

    def profile_step(self) -> Facts:
        """Write a table of operators of three steps of a variant alone."""
        return self._profile("profile-bottleneck.txt", self.two.profiled("b0"))

    def profile_extract(self) -> Facts:
        """Write a table of operators of stage 1 on the clips made."""
        experiment = self.one.experiment("questions", name="profiled")
        return self._profile("profile-extract.txt", lambda: self.one.extract(experiment))

    def _profile(self, name: str, call: Callable[[], object]) -> Facts:
        gpu = torch.device(self.device).type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as found:
            call()
        by = "self_cuda_time_total" if gpu else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=70)
        (self.sections.out / name).write_text(table, encoding="utf-8")
        return {"file": name}


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    found = environment()
    if found["commit"] is None:
        found["commit"] = os.environ.get("TALIK_COMMIT")
    gpu = torch.device(device).type == "cuda"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        **found,
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if gpu else None,
        "cores": cores(),
        "host_bytes": memory,
        "cuda": torch.version.cuda,
    }
