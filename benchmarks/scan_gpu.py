"""Measure the selective scan's backends on a GPU: Triton's kernels, mamba-ssm's kernel where it is installed, torch.

    python benchmarks/scan_gpu.py [--rounds 11] [--seconds 50] [--out FILE.json]
    TRITON_INTERPRET=1 python benchmarks/scan_gpu.py --quick        the same in small, on a CPU

Checks values and gradients against the `torch` backend in float64 first. Then every round calls each implementation
once, forward, and forward and backward, in rotated order, between CUDA events; medians. `order` is the axis that lies
innermost in memory: L as mamba-ssm's kernel wants it, d as Mamba's block hands it over. mamba-ssm's kernel is called
directly where it takes the tensors as they are (L), and through `selective_scan`, which copies them, otherwise.
`device` is the sum of the kernels' own times, without the host's. Other sizes of blocks are timed at the end, and
whatever no time is left for is left out and said to be. Sizes are (B, L, d, N): batch, time steps, channels, states.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from scan import environment
from torch import Tensor

from talik.adapt.scan.fused_mamba import find_kernel
from talik.adapt.scan.selective_scan import selective_scan
from talik.adapt.scan.triton_scan import Blocks, choose_blocks, triton_scan

Size = tuple[int, int, int, int]
Inputs = dict[str, Tensor]
Scan = Callable[..., Tensor]

MAIN_SIZE: Size = (32, 2000, 1024, 16)
SIZES: tuple[Size, ...] = (MAIN_SIZE, (32, 90, 128, 16), (320, 30, 64, 16), (8, 500, 256, 16))
CHECKED: tuple[Size, ...] = ((3, 301, 20, 16), *SIZES)
QUICK: tuple[Size, ...] = ((1, 5, 4, 2),)
OTHER_BLOCKS = (Blocks(16, 8, 8), Blocks(32, 16, 4), Blocks(4, 4, 8))
BOUNDS = {"float32": 2e-5, "bfloat16": 2e-2}  # of the largest value, against float64
SCANNED = {"delta_softplus": True}
KERNELS = ("forward_kernel", "backward_kernel")


def make_inputs(size: Size, dtype: torch.dtype, order: str, device: str) -> Inputs:
    """Draw operands as a Mamba block at its initialisation gives them; A, D and delta_bias are float32."""
    batch, length, channels, states = size
    generator = torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=device)
    dt = torch.exp(torch.rand(channels, generator=generator, device=device) * 4.6 - 6.9)
    inputs = {name: draw(batch, channels, length).to(dtype) for name in ("u", "delta", "z")}
    inputs |= {name: draw(batch, states, length).to(dtype) for name in ("B", "C")}
    if order == "d":
        inputs = {name: x.mT.contiguous().mT for name, x in inputs.items()}
    inputs["A"] = -torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
    inputs["D"] = torch.ones(channels, device=device)
    inputs["delta_bias"] = dt + torch.log(-torch.expm1(-dt))
    return {name: x.requires_grad_() for name, x in inputs.items()}


def talik_scan(backend: str) -> Scan:
    return partial(selective_scan, **SCANNED, backend=backend)


def blocks_scan(blocks: Blocks) -> Scan:
    return lambda **inputs: triton_scan(**inputs, **SCANNED, blocks=blocks)[0]


def forward(scan: Scan, inputs: Inputs) -> Tensor:
    return scan(**inputs)


def both(scan: Scan, inputs: Inputs, weight: Tensor) -> tuple[Tensor, ...]:
    out = scan(**inputs)
    return (out.detach(), *torch.autograd.grad(out, list(inputs.values()), weight))


def check(size: Size, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return each result's largest error, of its largest value, against float64; `repeats` is 0.0 if to the bit."""
    inputs = make_inputs(size, dtype, "d", device)
    weight = torch.randn(size[0], size[2], size[1], device=device).to(dtype)
    found = both(talik_scan("triton"), inputs, weight)
    again = both(talik_scan("triton"), inputs, weight)
    repeats = 0.0 if all(torch.equal(a, b) for a, b in zip(found, again, strict=True)) else math.inf
    del again
    exact_inputs = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    exact = both(talik_scan("torch"), exact_inputs, weight.double())
    errors = {
        name: ((a.double() - b).abs().max() / b.abs().max()).item()
        for name, a, b in zip(("out", *inputs), found, exact, strict=True)
    }
    return errors | {"repeats": repeats}


def milliseconds(action: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        action()
        return (time.perf_counter() - start) * 1e3
    torch.cuda.synchronize()
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    action()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after)


def interleave(actions: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Return the median of each action's milliseconds; what takes over 50 ms is timed in the first round alone."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for action in actions.values() if rounds > 1 else ():
        action()  # warm
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            if not times[name] or times[name][0] <= 50.0:
                times[name].append(milliseconds(actions[name], device))
    return {name: statistics.median(taken) for name, taken in times.items()}


def device_times(action: Callable[[], object], calls: int = 5) -> dict[str, float]:
    """Return the milliseconds a call of every CUDA kernel, by name."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            action()
        torch.cuda.synchronize()
    rows = {row.key[:70]: row.self_device_time_total / 1e3 / calls for row in profile.key_averages()}
    return dict(sorted(((name, ms) for name, ms in rows.items() if ms), key=lambda row: -row[1]))


def implementations(order: str) -> dict[str, Scan]:
    scans = {"triton": talik_scan("triton")}
    kernel, _ = find_kernel()
    if kernel is not None and torch.cuda.is_available():
        scans["mamba_ssm"] = partial(kernel, **SCANNED) if order == "L" else talik_scan("mamba_ssm")
    return scans | {"torch": talik_scan("torch")}


def measure(size: Size, dtype: torch.dtype, order: str, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Return, for each implementation, the milliseconds of `forward`, of `both` and, on a GPU, of both's kernels."""
    inputs = make_inputs(size, dtype, order, device)
    weight = torch.randn(size[0], size[2], size[1], device=device).to(dtype)
    weight = weight.mT.contiguous().mT if order == "d" else weight
    scans = implementations(order)
    if order == "d":
        scans.pop("torch")
    rows = {
        "forward": interleave({name: partial(forward, scan, inputs) for name, scan in scans.items()}, rounds, device),
        "both": interleave({name: partial(both, scan, inputs, weight) for name, scan in scans.items()}, rounds, device),
    }
    found = {name: {what: row[name] for what, row in rows.items()} for name in scans}
    for name in ("triton", "mamba_ssm"):
        if device == "cuda" and name in scans:
            kernels = device_times(partial(both, scans[name], inputs, weight))
            found[name]["device"] = sum(kernels.values())
            found[name] |= {f"device: {kernel}": ms for kernel, ms in itertools.islice(kernels.items(), 6)}
    return found


def compile_elsewhere(tasks: Sequence[tuple[str, Blocks]]) -> Iterator[subprocess.Popen[bytes]]:
    """Start one process a task that compiles its kernels into Triton's cache; this process finds them there."""
    for dtype, blocks in tasks:
        yield subprocess.Popen([sys.executable, __file__, "--compile", dtype, *map(str, blocks)])


def compile_kernels(dtype: str, blocks: Blocks, device: str) -> float:
    """Run the kernels once on one chunk; return the seconds that it took."""
    inputs = make_inputs((1, 1, 1, 16), getattr(torch, dtype), "d", device)
    weight = torch.ones(1, 1, 1, device=device, dtype=getattr(torch, dtype))
    start = time.perf_counter()
    both(blocks_scan(blocks), inputs, weight)
    return time.perf_counter() - start


class Plan(NamedTuple):
    """What one run of this script does, and until when."""

    device: str
    sizes: tuple[Size, ...]
    checked: tuple[Size, ...]
    dtypes: tuple[str, ...]
    orders: str
    others: tuple[Blocks, ...]
    rounds: int
    deadline: float

    def time_left(self, what: str) -> bool:
        if time.perf_counter() < self.deadline:
            return True
        print(f"no time left for {what}")
        return False


def compile_all(plan: Plan) -> float:
    """Compile everything from a cold cache; return the seconds that the first kernels took in this process."""
    usual = sorted({usual_blocks(size) for size in plan.sizes})
    processes: list[subprocess.Popen[bytes]] = []
    if plan.device == "cuda":
        os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
        tasks = [(dtype, blocks) for dtype in plan.dtypes for blocks in usual][1:]
        processes += compile_elsewhere([*tasks, *(("bfloat16", blocks) for blocks in plan.others)])
    seconds = compile_kernels(plan.dtypes[0], usual[0], plan.device)
    for process in processes:
        process.wait()
    return seconds


def usual_blocks(size: Size) -> Blocks:
    batch, length, channels, states = size
    return choose_blocks(torch.Size((batch, channels, length)), 1, states)


def check_all(plan: Plan) -> dict[str, dict[str, float]]:
    errors = {}
    for size, dtype in itertools.product(plan.checked, plan.dtypes):
        if plan.time_left(f"the check of {size} {dtype}"):
            row = errors[f"{size} {dtype}"] = check(size, getattr(torch, dtype), plan.device)
            verdict = "right" if max(row.values()) < BOUNDS[dtype] else "WRONG"
            print(f"{size!s:22} {dtype:9} {verdict}: " + ", ".join(f"{k} {v:.1e}" for k, v in row.items()))
    return errors


def time_all(plan: Plan) -> dict[str, dict[str, dict[str, float]]]:
    timings = {}
    for dtype, order, size in itertools.product(plan.dtypes, plan.orders, plan.sizes):
        if not plan.time_left(f"{size} {dtype}, {order} innermost"):
            continue
        rows = measure(size, getattr(torch, dtype), order, plan.rounds, plan.device)
        timings[f"{size} {dtype} {order}"] = rows
        for name, row in rows.items():
            base = rows.get("mamba_ssm", rows["triton"])
            columns = [k for k in ("forward", "both", "device") if k in row]
            text = ", ".join(f"{k} {row[k]:8.3f} ({row[k] / base[k]:.2f})" for k in columns)
            print(f"{size!s:22} {dtype:9} {order} {name:10} {text}")
    return timings


def time_blocks(plan: Plan) -> dict[str, dict[str, float]]:
    """Time the blocks of the table and others, in bfloat16 with d innermost: no copies."""
    found: dict[str, dict[str, float]] = {}
    for size in plan.sizes:
        if not plan.time_left(f"other blocks at {size}"):
            continue
        inputs = make_inputs(size, torch.bfloat16, "d", plan.device)
        weight = torch.randn(size[:3], device=plan.device).to(torch.bfloat16).mT
        ways = {str(tuple(blocks)): blocks_scan(blocks) for blocks in sorted({usual_blocks(size), *plan.others})}
        ahead = {f"{k} forward": partial(forward, scan, inputs) for k, scan in ways.items()}
        whole = {f"{k} both": partial(both, scan, inputs, weight) for k, scan in ways.items()}
        row = found[str(size)] = interleave(ahead, plan.rounds, plan.device)
        row |= interleave(whole, plan.rounds, plan.device)
        for key, action in whole.items() if plan.device == "cuda" else ():
            row |= {f"{key} {name}": ms for name, ms in device_times(action).items() if name in KERNELS}
        print(f"blocks (forward, backward, steps) at {size}: " + ", ".join(f"{k} {ms:.3f}" for k, ms in row.items()))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each implementation")
    parser.add_argument("--seconds", type=float, default=50.0, help="after these nothing more is begun")
    parser.add_argument("--quick", action="store_true", help="one tiny size on the CPU, under TRITON_INTERPRET=1")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--compile", nargs=4, metavar=("DTYPE", "FORWARD", "BACKWARD", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    if options.compile:
        compile_kernels(options.compile[0], Blocks(*map(int, options.compile[1:])), "cuda")
        return 0
    if options.quick:
        plan = Plan("cpu", QUICK, QUICK, ("float32",), "L", (), 1, math.inf)
    else:
        deadline = began + options.seconds
        plan = Plan("cuda", SIZES, CHECKED, ("bfloat16", "float32"), "Ld", OTHER_BLOCKS, options.rounds, deadline)
    device = torch.cuda.get_device_name() if plan.device == "cuda" else "cpu"
    reason = find_kernel()[1]
    print(f"on {device}" + (f"; not measured: {reason}" if reason else ""))
    result = {"environment": environment(), "device": device, "compile_seconds": compile_all(plan)}
    print(f"first call, compilation included: {result['compile_seconds']:.1f} s (forward and backward)")
    print(f"everything compiled after {time.perf_counter() - began:.1f} s")
    errors = check_all(plan)
    result |= {"errors": errors, "timings": time_all(plan), "blocks": time_blocks(plan)}
    result["seconds"] = time.perf_counter() - began
    print(f"{result['seconds']:.1f} s in all")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(any(max(row.values()) >= BOUNDS[key.rpartition(" ")[2]] for key, row in errors.items()))


if __name__ == "__main__":
    sys.exit(main())
