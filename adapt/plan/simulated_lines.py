"""A simulation as a person reads it."""

from __future__ import annotations

from .cluster import PEAK_TFLOPS, UTILISATION
from .schedule import Phase
from .simulate import Simulation
from .text import readable_bytes, readable_seconds


def simulated_lines(found: Simulation) -> list[str]:
    """Return the simulation as lines of text: what was counted, what was taken for granted, a table of clusters."""
    taken = found.settings
    lines = [f"simulated, not measured; operations counted on {found.machine}", *found.notes]
    lines.append(f"{found.num_clips:,} clips, {found.num_texts:,} texts, {found.num_runs} runs; a GPU: {_rate(found)}")
    lines.append(
        f"{taken.cores} cores a GPU decode a clip in {taken.decode:g} s of one core (given); "
        f"all share a disk of {taken.disk:g} GB/s (given)"
    )
    for modality, counted in found.counts.items():
        item = "a text" if modality == "text" else "a clip"
        gpu = found.encoders[modality]
        lines.append(
            f"  {modality}, {item}: {_flops(sum(counted.forward))} in {len(counted.forward)} units, "
            f"{readable_seconds(counted.seconds)} here ({_flops(counted.rate)}/s), "
            f"{1e3 * sum(gpu.forward):.2f} ms on such a GPU"
        )
    for v in found.variants:
        lines.append(
            f"  {v.name}, a question: {1e3 * v.train:.3g} ms to train on, {1e3 * v.answer:.3g} ms to answer, above "
            + " ".join(f"{m} {k}" for m, k in v.starts.items())
        )
    lines.append(f"store: {readable_bytes(found.num_bytes)}")
    lines += _table(found)
    for name, count in zip(("extraction", "sweep"), found.helps, strict=True):
        lines.append(f"{name}: beyond {count} GPUs, twice as many gain less than 10 %")
    if taken.hours is not None:
        enough = "no number of GPUs ends" if found.enough is None else f"{found.enough} GPUs end"
        lines.append(f"{enough} within {taken.hours:g} h")
    return lines


def _table(found: Simulation) -> list[str]:
    lines = [f"{'GPUs':>5} {'stage':12} {'units':>6} {'wall':>10} {'GPU-hours':>10} {'computing':>10}  bound by"]
    for count, cluster in found.clusters.items():
        for name, stage in (("extraction", cluster.extraction), ("sweep", cluster.sweep)):
            lines.append(f"{count:5d} {name:12} {_cells(stage)}  {stage.bound}")
        hours = count * cluster.seconds / 3600
        lines.append(f"{count:5d} {'in all':12} {'':6} {readable_seconds(cluster.seconds):>10} {hours:10.1f}")
    return lines


def _cells(stage: Phase) -> str:
    hours, share = stage.gpu_seconds / 3600, stage.busy / stage.gpu_seconds
    return f"{stage.num_units:6d} {readable_seconds(stage.seconds):>10} {hours:10.1f} {share:10.0%}"


def _rate(found: Simulation) -> str:
    if found.rate is None:
        return "each encoder's rate as measured here"
    if found.settings.tflops is not None:
        return f"{found.rate / 1e12:g} TFLOP/s (given)"
    return f"{found.rate / 1e12:g} TFLOP/s ({PEAK_TFLOPS:g} published for an A100 in float32, {UTILISATION:.0%} of it)"


def _flops(count: float) -> str:
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} FLOP"
