"""Stage 1 of `gpu.py`: `talik.extract` beside decoding with all cores and beside the bare prefixes, in one run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_sample import QUICK, Sizes, cores, encoder_settings, experiment_text, make_copies, write_manifests
from torch import Tensor, nn

import talik
from talik.extract.encoders.image_preprocess import PicturePreprocess
from talik.extract.media.clip_media import ClipMedia
from talik.extract.stage.settings import read_settings

Facts = dict[str, Any]


def synchronised(device: str) -> float:
    """Wait for the device, and return the clock's seconds."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """What a call takes on the clock, the device's work included."""
    started = synchronised(device)
    call()
    return synchronised(device) - started


def bare_units(encoder: Any) -> list[Callable[[Tensor], Tensor]]:
    """Return the blocks of an encoder of transformers, each called with the hidden tensor alone."""
    blocks = next(m for m in encoder.model.modules() if isinstance(m, nn.ModuleList) and len(m) == encoder.num_units)
    if encoder.modality == "visual":
        return list(blocks)
    return [partial(block, attention_mask=None) for block in blocks]


class PeakMemory:
    """The most memory that this process and its children held while it was open, in bytes.

    Attributes:
        process: resident memory of this process.
        every: of all, pages that several share counted once (proportional set size).
    """

    def __init__(self, every_seconds: float = 0.25) -> None:
        self.process = self.every = 0
        self._ended, self._pause = threading.Event(), every_seconds
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            own = os.getpid()
            self.process = max(self.process, _memory(own, "Rss"))
            self.every = max(self.every, sum(_memory(pid, "Pss") for pid in _family(own)))
            if self._ended.wait(self._pause):
                return


def _memory(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


class StageOne:
    """The experiments of stage 1 in a folder that holds the clips and the encoders.

    Args:
        work: the folder.
        sizes: of everything.
        clips: the clips made.
        device: where the prefixes run.
        compute: their precision, where stage 1 has that setting.
        workers: decoding processes; None for all cores.
    """

    def __init__(
        self,
        work: Path,
        sizes: Sizes,
        clips: Sequence[Path],
        *,
        device: str,
        compute: str,
        workers: int | None = None,
    ) -> None:
        self.work, self.sizes, self.device, self.compute = work, sizes, device, compute
        self.workers = workers
        self.clips = clips
        self.every = make_copies(clips, work / "clips", sizes.copies)
        write_manifests(work, self.every, sizes)

    def experiment(self, manifest: str, *, compute: str | None = None, variants: str = "", name: str = "") -> Path:
        """Write an experiment and return its file; its store has the same name."""
        compute = compute or self.compute
        path = self.work / f"{name or f'{manifest}-{compute}'}.toml"
        text = experiment_text(
            sizes=self.sizes,
            manifest=manifest,
            store=f"{path.stem}.zarr",
            compute=compute,
            variants=variants,
            workers=self.workers,
        )
        path.write_text(text, encoding="utf-8")
        return path

    # bounds

    @cached_property
    def _sampled(self) -> dict[str, Any]:
        """The arguments of `decode_clip`."""
        rate = self._encoder("audio", torch.float32).sample_rate_hz
        return {
            "num_segments": self.sizes.segments,
            "window_seconds": self.sizes.window_seconds,
            "sample_rate_hz": rate,
        }

    @cached_property
    def _decoded(self) -> list[ClipMedia]:
        """Some clips, for batches in memory."""
        return [talik.decode_clip(p, **self._sampled) for p in self.clips[:12]]

    def _encoder(self, modality: str, dtype: torch.dtype) -> Any:
        spec = {"visual": "hf:encoders/visual", "audio": "hf:encoders/audio#encoder"}[modality]
        window = {"window_seconds": self.sizes.window_seconds} if modality == "audio" else {}
        return talik.load_encoder(spec, modality=modality, dtype=dtype, device=self.device, base=self.work, **window)

    @contextmanager
    def decoding(self) -> Iterator[Callable[[], float]]:
        """While open, a call decodes all clips made in a pool of processes, and gives the seconds."""
        picture = self._encoder("visual", torch.float32).preprocess
        context, number = (
            multiprocessing.get_context("spawn"),
            min(1 if self.sizes is QUICK else cores(), len(self.clips)),
        )
        decode = partial(_decode, sampled=self._sampled, picture=picture)
        with ProcessPoolExecutor(number, mp_context=context, initializer=_one_thread) as pool:
            list(pool.map(_ready, range(4 * number)))

            def run() -> float:
                started = time.perf_counter()
                list(pool.map(decode, self.clips))
                return time.perf_counter() - started

            run()  # the files are in the page cache from here on, as they are after their digests
            yield run

    def bare_prefix(self, modality: str, compute: str) -> Callable[[], float]:
        """Return a call that runs a prefix on full batches in memory, and gives the seconds of all clips made.

        The units are the model's own modules, called one after the other; of bfloat16 where `compute` is that.
        """
        dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
        encoder, sizes = self._encoder(modality, dtype), self.sizes
        rows = read_settings(self.experiment("few")).encoders
        per_batch = max(1, getattr(rows, modality).batch_size // sizes.segments)
        media = self._decoded[: 2 * per_batch]
        ready = []
        for start in range(0, max(1, len(media) - per_batch + 1), per_batch):
            some = media[start : start + per_batch]
            raw = np.concatenate([m.frames if modality == "visual" else m.waveforms for m in some])
            inputs = {k: v.to(self.device) for k, v in encoder.preprocess(raw).items()}
            ready.append((len(some), _as(inputs, dtype)))
        units = bare_units(encoder)[:-1]

        @torch.no_grad()
        def run() -> float:
            def once() -> None:
                for _ in range(repeats):
                    for _, inputs in ready:
                        hidden = encoder.embed(inputs).hidden
                        with _tf32(compute == "tf32"):
                            for unit in units:
                                hidden = unit(hidden)

            return seconds_of(once, self.device) / (repeats * sum(n for n, _ in ready)) * sizes.clips

        repeats = 1
        run()  # what is done once: kernels loaded and chosen
        repeats = max(1, round(0.3 / max(run() * sum(n for n, _ in ready) / sizes.clips, 1e-4)))
        return run

    # stage 1 itself

    def extract(self, experiment: Path, *, fresh: bool = True, memory: bool = False) -> Facts:
        """Run `talik.extract`, into a new store if `fresh`, and return what it took; the host's memory if asked."""
        store = experiment.with_suffix(".zarr")
        if fresh:
            shutil.rmtree(store, ignore_errors=True)
        gpu = torch.device(self.device).type == "cuda"
        before = torch.cuda.memory_allocated() if gpu else 0  # what this program holds itself
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        with PeakMemory() if memory else nullcontext() as watched:
            started = synchronised(self.device)
            report = talik.extract(experiment, device=self.device, progress=False)
            seconds = synchronised(self.device) - started
        return {
            "seconds": seconds,
            "items": dict(report.items),
            "bytes_written": report.bytes_written,
            "peak_process_bytes": watched.process if watched else None,
            "peak_every_bytes": watched.every if watched else None,
            "peak_device_bytes": torch.cuda.max_memory_allocated() - before if gpu else None,
            "report": _numbers(report),
        }

    def command(self, experiment: Path) -> float:
        """Return the seconds of the command `talik extract` on a store that lacks nothing, the interpreter included."""
        command = [sys.executable, "-m", "talik", "extract", str(experiment), "--device", self.device]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return time.perf_counter() - started

    def rounds(self, save: Callable[[Facts], None], ended: Callable[[], bool]) -> Facts:
        """Interleave the bounds with stage 1 on the clips made, and on all copies; `save` gets the facts after each."""
        facts: Facts = {"clips": len(self.clips), "many": len(self.every), "compute": self._shown_compute()}
        times: dict[str, list[float]] = {}
        runs: dict[str, list[Facts]] = {"clips": [], "many": []}
        prefixes = {m: self.bare_prefix(m, facts["compute"]) for m in ("visual", "audio")}
        made, many = self.experiment("questions"), self.experiment("many")
        with self.decoding() as decode:
            for index in range(self.sizes.rounds):
                if index and ended():
                    break
                times.setdefault("decode", []).append(decode())
                for modality, prefix in prefixes.items():
                    times.setdefault(modality, []).append(prefix())
                runs["clips"].append(self.extract(made))
                runs["many"].append(self.extract(many, memory=not index))
                shutil.rmtree(many.with_suffix(".zarr"))
                facts |= {"seconds": times, "runs": runs} | self._against_bound(times, runs)
                save(facts)
        return facts

    def _shown_compute(self) -> str:
        return self.compute if "compute" in encoder_settings() else "float32"

    def _against_bound(self, times: Mapping[str, list[float]], runs: Mapping[str, list[Facts]]) -> Facts:
        """Milliseconds a clip of each part, the bound, and the ratios."""
        each = {name: 1e3 * statistics.median(found) / len(self.clips) for name, found in times.items()}
        whole = {name: statistics.median([r["seconds"] for r in found]) for name, found in runs.items()}
        prefix = each["visual"] + each["audio"]
        bound = max(each["decode"], prefix)
        if torch.device(self.device).type == "cpu":
            bound = each["decode"] + prefix  # they share the cores
        more = len(self.every) - len(self.clips)
        slope = 1e3 * (whole["many"] - whole["clips"]) / more if more else float("nan")
        return {
            "ms_a_clip": {
                **each,
                "prefix": prefix,
                "bound": bound,
                "extract": 1e3 * whole["clips"] / len(self.clips),
                "extract_many": 1e3 * whole["many"] / len(self.every),
                "extract_further": slope,
            },
            "fixed_seconds": whole["clips"] - slope * len(self.clips) / 1e3,
            "ratio": 1e3 * whole["clips"] / len(self.clips) / bound,
            "ratio_many": 1e3 * whole["many"] / len(self.every) / bound,
            "ratio_further": slope / bound,
        }

    def small(self) -> Facts:
        """Fixed costs: stage 1 on a few clips, again with nothing to do, and the command with nothing to do."""
        few = self.experiment("questions" if self.sizes is QUICK else "few")  # that store is there
        told = {"clips": self.sizes.few} | ({} if self.sizes is QUICK else {"cold": self.extract(few)})
        told["warm_seconds"] = self.extract(few, fresh=False)["seconds"]
        return told if self.sizes is QUICK else told | {"warm_command_seconds": self.command(few)}

    def precision(self, compute: str) -> Facts:
        """One run at another `compute`, beside the bare prefix at it."""
        seconds = sum(self.bare_prefix(m, compute)() for m in ("visual", "audio"))
        experiment = self.experiment("questions", compute=compute)
        found = self.extract(experiment)
        shutil.rmtree(experiment.with_suffix(".zarr"))
        clips = len(self.clips)
        return {"prefix_ms_a_clip": 1e3 * seconds / clips, "extract_ms_a_clip": 1e3 * found["seconds"] / clips, **found}


def _numbers(report: object) -> Facts:
    """What a report says in numbers: seconds of its stages, if it names them."""
    fields = dataclasses.asdict(report) if dataclasses.is_dataclass(report) and not isinstance(report, type) else {}
    plain = {k: v for k, v in fields.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    parts = {
        k: v
        for k, v in fields.items()
        if isinstance(v, dict) and v and all(isinstance(x, int | float) for x in v.values())
    }
    return {**plain, **parts}


def _as(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """TensorFloat-32 in matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _ready(_: int) -> None:
    time.sleep(0.01)


def _decode(path: Path, *, sampled: Mapping[str, Any], picture: PicturePreprocess) -> int:
    """Decode a clip and bring its frames to the encoder's size; what comes of it stays in this process."""
    clip = talik.decode_clip(path, **sampled)
    return len(picture.pictures(clip.frames))
