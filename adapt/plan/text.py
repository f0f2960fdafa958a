"""Print a plan, or a simulation, as lines of text."""

from __future__ import annotations

from statistics import mean

from ...errors import counted
from ...formats import readable_bytes, readable_seconds
from .cluster import PEAK_TFLOPS, UTILISATION
from .compute_costs import ComputeCost
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
            f"  {modality}, {item}: embedding {1e3 * e.embed:.2f} ms, a unit {1e3 * mean(e.forward):.2f} ms forward, "
            f"{1e3 * mean(e.forward_backward):.2f} ms forward and backward ({len(e.forward)} units)"
        )
        lines += [f"    {line}" for line in _compute_lines(plan, modality, item)]
    if plan.cuts:
        cuts = ", ".join(f"{m} {list(k)}" for m, k in plan.cuts.items())
        size = f"{readable_bytes(plan.num_bytes)} of {readable_bytes(plan.free_bytes)} free"
        lines.append(f"cache {cuts}: {size}, {readable_seconds(plan.extraction)} once")
    else:
        lines.append(f"do not cache: {plan.reason}")
    width = max(7, *(len(v.name) for v in plan.variants))
    row = f"{{:{width}}}  {{:26}} {{:>9}} {{:>9}} {{:>6}} {{:>11}} {{:>9}}".format
    lines.append(row("variant", "from", "cached", "live", "ratio", "pays after", "memory"))
    for v in plan.variants:
        starts = " ".join(f"{m[0]}{v.cut.get(m, 0)}→{k}" for m, k in v.starts.items())
        cached = readable_seconds(v.seconds) if plan.cuts else "-"
        ratio = f"{v.seconds_live / v.seconds:.1f}x" if v.seconds else "-"
        paid = "never" if v.epochs_until_paid is None else f"{v.epochs_until_paid:.1f} epochs"
        times = (cached, readable_seconds(v.seconds_live), ratio, paid)
        lines.append(row(v.name, starts, *times, readable_bytes(v.peak_bytes)))
    for names, seconds in zip(plan.groups, plan.group_seconds, strict=bool(plan.cuts)):
        if len(names) > 1:
            lines.append(f"together on the same batches: {', '.join(names)}: {readable_seconds(seconds)}")
    live = readable_seconds(plan.seconds_live)
    if not plan.cuts:
        return [*lines, f"in all: {live}"]
    ratio = f"{plan.seconds_live / plan.seconds:.1f}x"
    return [*lines, f"in all: {readable_seconds(plan.seconds)} with extraction, {live} without the cache ({ratio})"]


def _compute_lines(plan: Plan, modality: str, item: str) -> list[str]:
    """Say what each type that the prefix may be computed in costs, and the error that it brings to stored states."""
    costs = plan.compute_costs[modality]
    if len(costs) < 2:  # nothing to choose from here
        return []
    parts = [f"{one.compute} {1e3 * one.seconds:.2f} ms {item}, {_error(one)}" for one in costs]
    chosen = f'compute = "{plan.compute[modality]}"'
    return [f"the prefix in {'; '.join(parts)} ({chosen}; errors are of the states as {plan.dtype})"]


def _error(cost: ComputeCost) -> str:
    return "cannot be stored" if cost.error is None else f"error {cost.error:.1e}"


def simulated_lines(found: Simulation) -> list[str]:
    """Print a simulation: the counted operations, the assumptions, and a table of clusters."""
    taken = found.settings
    lines = [f"simulated, not measured; operations counted on {found.machine}", *found.notes]
    sizes = ", ".join(map(counted, (found.num_clips, found.num_texts, found.num_runs), ("clip", "text", "run")))
    lines.append(f"{sizes}; a GPU: {_rate(found)}")
    lines.append(
        f"{taken.cores} cores a GPU decode a clip in {taken.decode:g} s of one core (given); "
        f"all share a disk of {taken.disk:g} GB/s (given)"
    )
    for modality, operations in found.counts.items():
        item = "a text" if modality == "text" else "a clip"
        gpu, seconds = found.encoders[modality], found.unit_seconds[modality]
        lines.append(
            f"  {modality}, {item}: {_flops(sum(operations.forward))} in {len(operations.forward)} units, "
            f"{readable_seconds(seconds)} here ({_flops(sum(operations.forward) / seconds)}/s), "
            f"{1e3 * sum(gpu.forward):.2f} ms on such a GPU"
        )
    lines += [
        f"  {v.name}, a question: {1e3 * v.train:.3g} ms to train on, {1e3 * v.answer:.3g} ms to answer, above "
        + " ".join(f"{m} {k}" for m, k in v.starts.items())
        for v in found.variants
    ]
    lines.append(f"store: {readable_bytes(found.num_bytes)}")
    lines.append(f"{'GPUs':>5} {'stage':12} {'units':>6} {'wall':>10} {'GPU-hours':>10} {'computing':>10}  bound by")
    for count, stages in found.clusters.items():
        for name, stage in zip(("extraction", "sweep"), stages, strict=True):
            cells = f"{stage.num_units:6d} {readable_seconds(stage.seconds):>10} {stage.gpu_seconds / 3600:10.1f}"
            lines.append(f"{count:5d} {name:12} {cells} {stage.busy / stage.gpu_seconds:10.0%}  {stage.bound}")
        seconds = sum(stage.seconds for stage in stages)
        wall, hours = readable_seconds(seconds), count * seconds / 3600
        lines.append(f"{count:5d} {'in all':12} {'':6} {wall:>10} {hours:10.1f}")
    for name, count in zip(("extraction", "sweep"), found.helps, strict=True):
        lines.append(f"{name}: beyond {count} GPUs, twice as many gain less than 10 %")
    if taken.hours is not None:
        enough = "no number of GPUs ends" if found.enough is None else f"{found.enough} GPUs end"
        lines.append(f"{enough} within {taken.hours:g} h")
    return lines


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
