"""Print a plan, or a simulation, as lines of text."""

from __future__ import annotations

from .cluster import PEAK_TFLOPS, UTILISATION, Phase
from .plan import Plan
from .simulate import Simulation


def plan_lines(plan: Plan) -> list[str]:
    """Print a plan: the measured costs, the boundaries to cache, every variant, and the sum."""
    lines = [f"measured on {plan.machine}"]
    costs = plan.machine_costs
    decoding = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in costs.decode.items())
    lines.append(f"  decoding a clip: {decoding or 'nothing to decode'}")
    lines.append(f"  store: reads {1e-9 / costs.read:.2f} GB/s, writes {1e-9 / costs.write:.2f} GB/s")
    if plan.opening >= 1:
        lines.append(f"  opening the encoders: {readable_seconds(plan.opening)}")
    if costs.to_device:
        lines.append(f"  host to device: {1e-9 / costs.to_device:.2f} GB/s")
    for modality, e in plan.encoder_costs.items():
        item = "a text" if modality == "text" else "a clip"
        lines.append(
            f"  {modality}, {item}: embedding {1e3 * e.embed:.2f} ms, a unit {1e3 * _mean(e.forward):.2f} ms forward, "
            f"{1e3 * _mean(e.forward_backward):.2f} ms forward and backward ({len(e.forward)} units)"
        )
    lines += _choice(plan)
    lines += _variants(plan)
    return lines


def _choice(plan: Plan) -> list[str]:
    if not plan.cuts:
        return [f"do not cache: {plan.reason}"]
    cuts = ", ".join(f"{m} {list(k)}" for m, k in plan.cuts.items())
    size = f"{readable_bytes(plan.num_bytes)} of {readable_bytes(plan.free_bytes)} free"
    return [f"cache {cuts}: {size}, {readable_seconds(plan.extraction)} once"]


def _variants(plan: Plan) -> list[str]:
    width = max(7, *(len(v.name) for v in plan.variants))
    lines = [
        f"{'variant':{width}}  {'from':26} {'cached':>9} {'live':>9} {'ratio':>6} {'pays after':>11} {'memory':>9}"
    ]
    for v in plan.variants:
        starts = " ".join(f"{m[0]}{v.cut.get(m, 0)}→{k}" for m, k in v.starts.items())
        cached = readable_seconds(v.seconds) if plan.cuts else "-"
        ratio = f"{v.seconds_live / v.seconds:.1f}x" if v.seconds else "-"
        paid = "never" if v.epochs_until_paid is None else f"{v.epochs_until_paid:.1f} epochs"
        lines.append(
            f"{v.name:{width}}  {starts:26} {cached:>9} {readable_seconds(v.seconds_live):>9} {ratio:>6} {paid:>11} "
            f"{readable_bytes(v.peak_bytes):>9}"
        )
    if plan.cuts:
        for names, seconds in zip(plan.groups, plan.group_seconds, strict=True):
            if len(names) > 1:
                lines.append(f"together on the same batches: {', '.join(names)}: {readable_seconds(seconds)}")
        lines.append(
            f"in all: {readable_seconds(plan.seconds)} with extraction, {readable_seconds(plan.seconds_live)} without "
            f"the cache ({plan.seconds_live / plan.seconds:.1f}x)"
        )
    else:
        lines.append(f"in all: {readable_seconds(plan.seconds_live)}")
    return lines


def readable_seconds(seconds: float) -> str:
    """A time as "12 s", "3.4 min" or "5.6 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def readable_bytes(count: float) -> str:
    """A size in decimal units."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values) if values else 0.0


def simulated_lines(found: Simulation) -> list[str]:
    """Print a simulation: the counted operations, the assumptions, and a table of clusters."""
    taken = found.settings
    lines = [f"simulated, not measured; operations counted on {found.machine}", *found.notes]
    lines.append(f"{found.num_clips:,} clips, {found.num_texts:,} texts, {found.num_runs} runs; a GPU: {_rate(found)}")
    lines.append(
        f"{taken.cores} cores a GPU decode a clip in {taken.decode:g} s of one core (given); "
        f"all share a disk of {taken.disk:g} GB/s (given)"
    )
    for modality, counted in found.counts.items():
        item = "a text" if modality == "text" else "a clip"
        gpu, seconds = found.encoders[modality], found.unit_seconds[modality]
        lines.append(
            f"  {modality}, {item}: {_flops(sum(counted.forward))} in {len(counted.forward)} units, "
            f"{readable_seconds(seconds)} here ({_flops(sum(counted.forward) / seconds)}/s), "
            f"{1e3 * sum(gpu.forward):.2f} ms on such a GPU"
        )
    lines += [
        f"  {v.name}, a question: {1e3 * v.train:.3g} ms to train on, {1e3 * v.answer:.3g} ms to answer, above "
        + " ".join(f"{m} {k}" for m, k in v.starts.items())
        for v in found.variants
    ]
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
    for count, stages in found.clusters.items():
        for name, stage in zip(("extraction", "sweep"), stages, strict=True):
            lines.append(f"{count:5d} {name:12} {_cells(stage)}  {stage.bound}")
        seconds = sum(stage.seconds for stage in stages)
        hours = count * seconds / 3600
        lines.append(f"{count:5d} {'in all':12} {'':6} {readable_seconds(seconds):>10} {hours:10.1f}")
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
