"""The page of `gpu.py`: what was measured, each number beside its bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]

_EPOCHS = 10  # of the grid's runs that one extraction serves

#: Sections of single variants, with the section of their adapter's own time and the bar of (memory / bound).
_SOLO: tuple[tuple[str, str, float | None], ...] = (
    ("step probe", "", None),
    ("step bottleneck", "adapter bottleneck", 1.25),
    ("step lora", "", 1.25),
    ("step trimodal torch", "adapter trimodal torch", 1.5),
    ("step trimodal triton", "adapter trimodal triton", 1.5),
    ("step trimodal mamba_ssm", "adapter trimodal mamba_ssm", 1.5),
    ("step bottleneck compiled", "adapter bottleneck", 1.25),
    ("step trimodal compiled", "adapter trimodal mamba_ssm", 1.5),
    ("step bottleneck by clip", "", None),
)


def page(facts: Facts) -> str:
    """Return a run's numbers as Markdown."""
    found: Facts = facts["sections"]
    lines = ["# Both stages on a GPU", "", *_about(facts), "", "## Stage 1", ""]
    lines += _stage_one(found)
    lines += ["", "## Stage 2", "", *_stage_two(found, facts["sizes"]["batch"])]
    lines += _missing(found)
    return "\n".join(lines) + "\n"


def _about(facts: Facts) -> list[str]:
    where, sizes = facts["environment"], facts["sizes"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version != "absent")
    memory = f", {where['device_bytes'] / 1e9:.0f} GB" if where.get("device_bytes") else ""
    visual, audio, text = (sizes[m] for m in ("visual", "audio", "text"))
    return [
        f"Written by `{where['command']}`: {where['device']}{memory}; {where['cpu']}, {where['cores']} cores, "
        f"{where['host_bytes'] / 1e9:.0f} GB; {versions}; CUDA {where['cuda']}; commit {where['commit']}.",
        "",
        f"{sizes['clips']} clips of {sizes['clip_seconds']} s ({sizes['width']} × {sizes['height']}, {sizes['fps']} "
        f"frames/s, H.264 and AAC), T = {sizes['segments']}, five questions a clip. Encoders with random weights: "
        f"visual {visual[1]} units × {visual[0]} at {sizes['picture']} pixels, audio {audio[1]} × {audio[0]} with "
        f"windows of {sizes['window_seconds']} s, text {text[1]} × {text[0]}. Cut at the last two units, float16. "
        f"Medians of interleaved rounds.",
    ]


def _good(found: Facts, name: str) -> Facts | None:
    """A section that has numbers."""
    one = found.get(name)
    return None if one is None or "error" in one or "left out" in one else one


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _stage_one(found: Facts) -> list[str]:
    one = _good(found, "extract")
    if one is None or "ms_a_clip" not in one:
        return ["Not measured."]
    each = one["ms_a_clip"]
    bound = each["bound"]
    rows = [
        ("decoding alone, all cores", each["decode"]),
        (f"bare prefixes, {one['compute']} (visual {each['visual']:.1f}, audio {each['audio']:.1f})", each["prefix"]),
        ("**bound**", bound),
        (f"`talik.extract`, {one['clips']} clips, all included", each["extract"]),
        (f"`talik.extract`, {one['many']} clips, all included", each["extract_many"]),
        ("`talik.extract`, each further clip", each["extract_further"]),
    ]
    lines = _table(("", "ms a clip", "of the bound"), [(n, _number(v), _number(v / bound, 2)) for n, v in rows])
    last, first = one["runs"]["many"][-1], one["runs"]["many"][0]
    lines += [
        "",
        f"Each further clip: what {one['many']} clips take more than {one['clips']}, which leaves fixed costs out "
        f"({one['fixed_seconds']:.1f} s: opening encoders, digests, records); the bar is 1.2 of the bound. Peak memory "
        f"with {one['many']} clips: {_gigabytes(first['peak_process_bytes'])} GB in the process, "
        f"{_gigabytes(first['peak_every_bytes'])} GB with the decoding processes (shared pages counted once), "
        f"{_gigabytes(last['peak_device_bytes']) or 'no'} GB on the device.",
    ]
    if last["report"]:
        lines += ["", f"The last report: `{_told(last['report'])}`."]
    small = _good(found, "fixed costs")
    if small is not None:
        lines += [
            "",
            (f"{small['clips']} clips into a new store: {small['cold']['seconds']:.1f} s. " if "cold" in small else "")
            + f"With nothing to do: {small['warm_seconds']:.2f} s in the same process"
            + (f", {small['warm_command_seconds']:.1f} s as a command." if "warm_command_seconds" in small else "."),
        ]
    others = [(n.partition(" ")[2], o) for n in found if n.startswith("extract ") and (o := _good(found, n))]
    if others:
        head = ("`compute`", "bare prefixes, ms a clip", "`talik.extract`, ms a clip, all included")
        cells = [(n, _number(o["prefix_ms_a_clip"]), _number(o["extract_ms_a_clip"])) for n, o in others]
        lines += ["", *_table(head, cells)]
    return lines


def _told(numbers: Facts) -> str:
    def shown(value: Any) -> str:
        return f"{value:.2f}" if isinstance(value, float) else _told(value) if isinstance(value, dict) else str(value)

    return ", ".join(f"{name} {shown(value)}" for name, value in numbers.items())


def _stage_two(found: Facts, batch: int) -> list[str]:
    bound = _good(found, "bound")
    if bound is None:
        return ["Not measured."]
    suffix = bound["sum_ms"]
    parts = ", ".join(
        f"{m} {f.get('compiled_ms', f['eager_ms']):.1f} (not compiled {f['eager_ms']:.1f})"
        for m, f in bound.items()
        if isinstance(f, dict)
    )
    lines = [
        f"The bound: the two units at the end of each encoder, bfloat16 weights and states, compiled, forward and "
        f"backward to their input, {suffix:.1f} ms: {parts}; and the adapter's own time on its tokens. A step is "
        f"{batch} questions in random order, or `by clip` all questions of one clip after another. In brackets behind "
        f"`compiled` the seconds of the first steps, compilation included.",
        "",
    ]
    head = ("variant", "memory, ms", "store, ms", "reading, ms", "store / memory", "bound, ms", "memory / bound", "GB")
    rows = []
    by_clip = _good(found, "bound by clip")
    for name, own, bar in _SOLO:
        one = _good(found, name)
        if one is None:
            continue
        alone = _good(found, own)
        base = (by_clip or {}).get("sum_ms") if "by clip" in name else None if name == "step probe" else suffix
        shown = name.partition(" ")[2] + (f" ({one['first_seconds']:.0f} s)" if "compiled" in name else "")
        rows.append(_row(shown, one, base, (alone or {}).get("ms"), bar))
    lines += _table(head, rows)
    copied = _good(found, "copy")
    if copied is not None:
        there = f", {copied['to_device_ms']:.1f} ms to the device" if "to_device_ms" in copied else ""
        lines += [
            "",
            f"A bottleneck's batch is {copied['batch_bytes'] / 1e6:.0f} MB stored: copying that takes "
            f"{copied['host_ms']:.1f} ms in the host's memory{there}.",
        ]
    lines += ["", *_groups(found, suffix, (by_clip or {}).get("sum_ms"), (_good(found, "adapter bottleneck") or {}))]
    lines += _grid(found)
    return lines


def _row(name: str, one: Facts, base: float | None, adapter: float | None, bar: float | None) -> Sequence[str]:
    memory, store = one["memory_ms"], one["store_ms"]
    bound = None if base is None else base + (adapter or 0.0)
    shown = "" if bound is None else f"{bound:.1f}" + (f" ({adapter:.1f} the adapter)" if adapter else "")
    ratio = "" if bound is None else f"{memory / bound:.2f}" + (f" (bar {bar})" if bar else "")
    return (
        name,
        _number(memory),
        _number(store),
        _number(one.get("read_ms")),
        _number(store / memory, 2),
        shown,
        ratio,
        _gigabytes(one["peak_device_bytes"]),
    )


def _groups(found: Facts, suffix: float, by_clip: float | None, adapter: Facts) -> list[str]:
    rows = []
    for name, base in (("group bottleneck", suffix), ("group bottleneck by clip", by_clip)):
        one = _good(found, name)
        if one is None:
            continue
        members, memory = one["members"], one["memory_ms"]
        bound = None if base is None else members * (base + adapter.get("ms", 0.0))
        rows.append(
            (
                f"{members} × {name.partition(' ')[2]}",
                _number(memory),
                _number(one["store_ms"]),
                _number(one.get("unbatched_ms")),
                _number(one.get("alone_ms")),
                _number(memory / one["alone_ms"], 2) if one.get("alone_ms") else "",
                _number(bound),
                "" if bound is None else _number(memory / bound, 2),
                str(one["stacked"]),
                _gigabytes(one["peak_device_bytes"]),
            )
        )
    head = (
        "group",
        "memory, ms",
        "store, ms",
        "not batched, ms",
        "one by one, ms",
        "group / one by one",
        "members × bound, ms",
    )
    return _table((*head, "memory / bound", "stacked", "GB"), rows) if rows else []


def _grid(found: Facts) -> list[str]:
    grid, live, one = _good(found, "grid"), _good(found, "live"), _good(found, "extract")
    lines = []
    if live is not None:
        lines += ["", f"`--live`, from the media files: {live['step_ms']:.0f} ms a step."]
    if grid is None or live is None or one is None:
        return lines
    members, steps = grid["members"], grid["steps"]
    naive = members * live["step_ms"] * steps * _EPOCHS
    cached = grid["store_ms"] * steps * _EPOCHS
    with_extraction = cached + one["ms_a_clip"]["extract"] * one["clips"]
    return [
        *lines,
        "",
        f"{members} variants, {steps} steps an epoch, {_EPOCHS} epochs: in lockstep from the store "
        f"{cached / 1e3:.0f} s ({grid['store_ms']:.0f} ms a step of all, {grid['memory_ms']:.0f} from memory), with "
        f"extraction {with_extraction / 1e3:.0f} s; each with `--live` {naive / 1e3:.0f} s: "
        f"{naive / with_extraction:.1f} times (bar 10).",
    ]


def _missing(found: Facts) -> list[str]:
    told = [f"- {n}: {o.get('error') or o['left out']}" for n, o in found.items() if "error" in o or "left out" in o]
    return ["", "Not measured:", "", *told] if told else []
