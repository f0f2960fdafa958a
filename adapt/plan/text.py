"""A plan as a person reads it."""

from __future__ import annotations

from .plan import Plan


def plan_lines(plan: Plan) -> list[str]:
    """Return the plan as lines of text: what was measured, what to cache, every variant, the whole."""
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
