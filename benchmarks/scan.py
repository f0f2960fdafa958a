"""Measure the selective scan, forward and backward, beside the other implementations there are.

    python benchmarks/scan.py [--rounds 15] [--threads 2] [--output FILE.json] [--page FILE.md]

Checks the values and gradients against float64 first, then times in one interleaved run: every round calls each
implementation once, in rotated order. Reports medians and quartiles, ratios within rounds, the first (cold) call
apart, how the time grows with L, and the extra memory of a training step; writes them to benchmarks/scan.md. What
cannot be imported is left out and said to be. Sizes are (B, L, d, N): batch, time steps, channels, states.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensor_memory import peak_bytes
from torch import Tensor

from talik.adapt.scan.selective_scan import selective_scan

Size = tuple[int, int, int, int]
Inputs = list[Tensor]
Scan = Callable[..., Tensor]
Actions = Mapping[str, Callable[[], object]]
Timing = dict[str, float | list[float]]

MAIN_SIZE: Size = (2, 200, 128, 16)
ADAPTER_SIZES: tuple[Size, ...] = ((16, 20, 128, 16), (32, 30, 256, 16), (64, 40, 128, 8))
LENGTHS = (250, 500, 1000, 2000, 4000)
MEMORY_SIZES: tuple[Size, ...] = (MAIN_SIZE, (2, 4000, 128, 16), (32, 30, 256, 16))


def make_inputs(size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Inputs:
    """Draw u, delta, A, B, C, D and z as a Mamba block at its initialisation gives them."""
    batch, length, channels, states = size
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    steps = torch.exp(torch.rand(channels, 1, generator=generator) * 4.6 - 6.9)
    operands = [
        draw(batch, channels, length),
        torch.rand(batch, channels, length, generator=generator).mul(2.0) * steps,
        -torch.arange(1.0, states + 1).repeat(channels, 1),
        draw(batch, states, length),
        draw(batch, states, length),
        torch.ones(channels),
        draw(batch, channels, length),
    ]
    return [x.to(device=device, dtype=dtype).requires_grad_() for x in operands]


def talik_scan(backend: str) -> Scan:
    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        out = selective_scan(u, delta, A, B, C, D=D, z=z, backend=backend)
        assert isinstance(out, Tensor)
        return out

    return scan


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """mambapy's parallel scan as its own block calls it (mambapy/mamba.py, `MambaBlock.selective_scan`)."""
    pscan = importlib.import_module("mambapy.pscan").pscan
    u, delta, B, C = (x.mT for x in (u, delta, B, C))  # (B, L, ·)
    decay = torch.exp(delta.unsqueeze(-1) * A)
    inputs = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
    y = (pscan(decay, inputs) @ C.unsqueeze(-1)).squeeze(3) + D * u
    return y.mT * torch.nn.functional.silu(z)


def find_others() -> tuple[dict[str, Scan], dict[str, str]]:
    """Return the reference paths that can be imported here, and why the others cannot."""
    found: dict[str, Scan] = {}
    missing: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            modeling = importlib.import_module("transformers.models.mamba.modeling_mamba")
            found["transformers"] = lambda u, delta, A, B, C, D, z: modeling.mamba_selective_scan(
                u, delta, A, B, C, D=D, z=z
            )
        except (ImportError, OSError, AttributeError) as error:
            missing["transformers"] = str(error)
        try:
            importlib.import_module("mambapy.pscan")
            found["mambapy"] = mambapy_scan
        except (ImportError, OSError) as error:
            missing["mambapy"] = str(error)
        try:
            # The reference needs no kernel, but importing it does.
            if importlib.util.find_spec("selective_scan_cuda") is None:
                sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")
            interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
            found["mamba_ssm reference"] = interface.selective_scan_ref
        except (ImportError, OSError) as error:
            missing["mamba_ssm reference"] = str(error)
    return found, missing


def step(scan: Scan, inputs: Inputs) -> tuple[Tensor, ...]:
    """Run forward and backward once; return the output and the gradients."""
    out = scan(*inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out)))


def check(scans: dict[str, Scan], size: Size) -> dict[str, float]:
    """Return each implementation's largest error, relative to the largest value, against float64; stop if it is one."""
    exact = step(talik_scan("reference"), make_inputs(size, dtype=torch.float64))
    errors = {}
    for name, scan in scans.items():
        found = step(scan, make_inputs(size))
        errors[name] = max(
            ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)
        )
        if not errors[name] < 1e-4:
            raise SystemExit(f"{name} is off by {errors[name]:.1e} of the largest value at {size}; nothing was timed")
    return errors


def seconds(action: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleave(actions: Actions, rounds: int, base: str, device: str = "cpu") -> dict[str, Timing]:
    """Time every action once a round, in rotated order; `ratio` is to `base` of the same round."""
    names = list(actions)
    cold = {name: seconds(actions[name], device) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(actions[name], device))
    result: dict[str, Timing] = {}
    for name in names:
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        result[name] = {
            "median_seconds": statistics.median(times[name]),
            "least_seconds": min(times[name]),
            "quartiles_seconds": statistics.quantiles(times[name], n=4)[::2],
            "cold_seconds": cold[name],
            f"ratio_to_{base}": statistics.median(ratios),
            f"ratio_to_{base}_quartiles": statistics.quantiles(ratios, n=4)[::2],
        }
    return result


def extra_memory(scan: Scan, size: Size) -> dict[str, float]:
    """Peak bytes that a forward and backward allocate, results included, and their ratio to a tensor of all states."""
    batch, length, channels, states = size
    inputs = make_inputs(size)
    peak = peak_bytes(lambda: step(scan, inputs))
    state_bytes = 4 * batch * length * channels * states
    return {"peak_bytes": peak, "state_tensor_bytes": state_bytes, "ratio": peak / state_bytes}


def measure_cuda(rounds: int) -> dict[str, object]:
    """On a GPU: the kernel called directly, the same through `selective_scan`, and `torch` as the fallback."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device"}
    from talik.adapt.scan.fused_mamba import find_kernel

    kernel, reason = find_kernel()
    result: dict[str, object] = {"device": torch.cuda.get_device_name()}
    for size in (MAIN_SIZE, (32, 2000, 1024, 16), *ADAPTER_SIZES):
        inputs = make_inputs(size, "cuda")
        actions: dict[str, Callable[[], object]] = {"torch": partial(step, talik_scan("torch"), inputs)}
        if kernel is not None:
            actions["kernel"] = partial(step, kernel, inputs)
            actions["mamba_ssm"] = partial(step, talik_scan("mamba_ssm"), inputs)
        result[str(size)] = interleave(actions, rounds, "torch" if kernel is None else "kernel", "cuda")
    return result | ({} if kernel is not None else {"kernel": reason})


def time_size(scans: dict[str, Scan], size: Size, rounds: int) -> dict[str, Timing]:
    """Time every implementation at one size, and print it."""
    inputs = make_inputs(size)
    rows = interleave({name: partial(step, scan, inputs) for name, scan in scans.items()}, rounds, "talik")
    for name, row in rows.items():
        quartiles = row["ratio_to_talik_quartiles"]
        assert isinstance(quartiles, list)
        spread = f"({quartiles[0]:.1f} to {quartiles[1]:.1f})"
        print(f"{size} {name:20s} {_ms(row):9.2f} ms, {row['ratio_to_talik']:6.1f} times talik {spread}")
    return rows


def time_growth(scan: Scan, rounds: int) -> dict[str, Timing]:
    """Time one size at growing lengths, and print the time a step."""
    batch, _, channels, states = MAIN_SIZE
    actions = {str(n): partial(step, scan, make_inputs((batch, n, channels, states))) for n in LENGTHS}
    rows = interleave(actions, rounds, str(LENGTHS[0]))
    for name, row in rows.items():
        print(f"L = {name:5s} {_ms(row):9.2f} ms, {_ms(row) * 1e3 / int(name):6.2f} us a step")
    return rows


def _ms(row: Timing) -> float:
    value = row["median_seconds"]
    assert isinstance(value, float)
    return value * 1e3


def environment() -> dict[str, object]:
    """What the numbers depend on: command, versions, commit, hardware."""
    versions = {}
    for name in ("talik", "torch", "transformers", "mamba-ssm", "mambapy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "command": " ".join(["python", *sys.argv]),
        "versions": versions | {"python": platform.python_version()},
        "commit": commit.stdout.strip() if commit.returncode == 0 else None,
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "seed": 0,
    }


def page(result: dict[str, Any]) -> str:
    """Return the result as Markdown, the bars (at least 10 and 3 times, at most 1.3) beside what was found."""
    where = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        "# The selective scan, forward and backward",
        "",
        f"Written by `{where['command']}`: {where['cpu']}, {where['num_threads']} threads of {where['num_cpus']} CPUs; "
        f"{versions}; commit {where['commit']}. Medians of interleaved rounds, quartiles in brackets; sizes are "
        "(B, L, d, N): batch, time steps, channels, states.",
        "",
        "| size | implementation | ms | times talik | first call, ms | error |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for rows in (result["main"], result["adapter"]):
        for size, timings in rows.items():
            for name, row in timings.items():
                low, high = row["ratio_to_talik_quartiles"]
                error = f"{result['errors'][name]:.1e}" if size == str(MAIN_SIZE) else ""
                ratio = f"{row['ratio_to_talik']:.1f} ({low:.1f} to {high:.1f})"
                lines.append(
                    f"| {size} | {name} | {_ms(row):.2f} | {ratio} | {row['cold_seconds'] * 1e3:.1f} | {error} |"
                )
    lines += [
        "",
        "Error: the largest of values and gradients against float64, of the largest value. Bars at the first ",
    ]
    lines[-1] += "size: 10 times transformers' and mamba-ssm's reference path, 3 times mambapy's parallel scan."
    lines += [f"Not measured: {name}, {' '.join(reason.split())}." for name, reason in result["missing"].items()]
    lines += ["", "| time steps | ms | µs a step |", "|---:|---:|---:|"]
    lines += [f"| {n} | {_ms(row):.2f} | {_ms(row) * 1e3 / int(n):.2f} |" for n, row in result["growth"].items()]
    lines += ["", "| size | peak of a step, MiB | of one tensor of all states (bar: 1.3) |", "|---|---:|---:|"]
    memory = result["extra_memory"].items()
    lines += [f"| {size} | {row['peak_bytes'] / 2**20:.2f} | {row['ratio']:.2f} |" for size, row in memory]
    lines += ["", f"CUDA: {result['cuda'].get('skipped') or json.dumps(result['cuda'])}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each implementation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    parser.add_argument("--page", type=Path, default=Path(__file__).with_suffix(".md"), help="the page to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scan = talik_scan("torch")
    result: dict[str, object] = {"environment": environment()}

    memory = {str(size): extra_memory(scan, size) for size in MEMORY_SIZES}  # first: the work buffers are not there yet
    result["extra_memory"] = memory
    for name, row in memory.items():
        print(f"extra memory {name}: {row['ratio']:.2f} of one state tensor ({row['peak_bytes'] / 2**20:.1f} MiB)")

    others, result["missing"] = find_others()
    scans = {"talik": scan} | others
    result["errors"] = check(scans, MAIN_SIZE)
    for title, sizes in (("main", (MAIN_SIZE,)), ("adapter", ADAPTER_SIZES)):
        result[title] = {str(size): time_size(scans, size, options.rounds) for size in sizes}
    result["growth"] = time_growth(scan, options.rounds)
    result["cuda"] = measure_cuda(options.rounds)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    options.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
