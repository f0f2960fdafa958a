"""`talik adapt --list`: the adapters by name, their settings with defaults and units, and what each trains here."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from ...config import argument_texts
from ...errors import SettingsError, TalikError, unknown_name
from ..adapters.registry import AdapterKind, adapter_kind, known_adapters
from ..config.experiment import Experiment, VariantSettings
from ..training.experiment_context import ExperimentContext
from ..training.optimizer import count_parameters

_WIDTH = 118


def listing(experiment: Experiment, *, only: str | None = None, device: str = "auto") -> Iterator[str]:
    """Yield the lines: every adapter in one line; or some with their settings and what they train here.

    Args:
        experiment: whose variants and encoders are meant.
        only: a part of the names of adapters and variants, "lora" for instance; those alone, with all that is known of
            them. Without it each adapter has one line, and no encoder is opened.
        device: where the encoders are opened.

    Raises:
        SettingsError: no adapter and no variant has `only` in its name.
    """
    if only is None:
        yield from _overview(experiment)
        return
    names = [name for name in known_adapters() if only in name]
    variants = [v for v in experiment.variants if only in v.name or v.adapter["kind"] in names]
    if not names and not variants:
        raise SettingsError(unknown_name("adapter or variant", only, {*known_adapters(), *_names(experiment)}))
    context = ExperimentContext(experiment, device=device)
    encoders = ", ".join(f"{m} {e.num_units} units" for m, e in context.encoders.items())
    if names:
        yield f'adapters, with what each trains at insertion = "last 1" of this experiment\'s encoders ({encoders})'
        yield ""
    for name in names:
        yield from _kind_lines(name, context)
    if variants:
        yield "variants of this experiment"
    for variant in variants:
        own = variant.name in experiment.of_variants
        used = ExperimentContext(experiment.for_variant(variant.name), device=device) if own else context
        yield f"{_variant_line(variant)}, {_trained(used, variant)}"


def _overview(experiment: Experiment) -> Iterator[str]:
    tuners = [name.removeprefix("peft:") for name in known_adapters() if name.startswith("peft:")]
    yield "adapters (with their settings and what they train here: --list NAME, or a part of one)"
    for name in known_adapters():
        if not name.startswith("peft:"):
            yield f"  {name:12s} {_summary(name)}".rstrip()
    first, *more = textwrap.wrap(", ".join(tuners), _WIDTH - 15)
    yield f"  {'peft:TUNER':12s} a tuner of the PEFT library inside units; TUNER is one of"
    yield from (f"{'':15s}{line}" for line in (first, *more))
    yield "variants of this experiment"
    yield from map(_variant_line, experiment.variants)


def _summary(name: str) -> str:
    try:
        kind = adapter_kind(name)
    except TalikError as error:
        return f"not usable here: {' '.join(str(error).split())}"
    said = (inspect.getdoc(kind.module or kind.settings) or "").split("\n\n")[0].replace("\n", " ")
    return textwrap.shorten(said.removesuffix("."), _WIDTH - 15, placeholder=" …")


def _variant_line(variant: VariantSettings) -> str:
    where = "" if variant.insertion is None else f", insertion = {variant.insertion!r}"
    return f"  {variant.name}: {variant.adapter['kind']}{where}"


def _names(experiment: Experiment) -> list[str]:
    return [variant.name for variant in experiment.variants]


def settings_of(kind: AdapterKind) -> list[tuple[str, Any, str]]:
    """Name, default and meaning (with its unit) of each of a kind's settings, the meaning as its docstring says it."""
    if kind.name.startswith("peft:"):
        from ..adapters.peft_settings import TUNERS, config_fields

        tuner = kind.name.removeprefix("peft:")
        own = TUNERS[tuner]
        rows = []
        for name, field in config_fields(tuner).items():
            if name not in own.preset:
                default = {"target_modules": "all-linear", **own.default}.get(name, _default(field))
                rows.append((name, default, str(field.metadata.get("help", "")).strip()))
        return rows
    meanings = argument_texts(kind.settings)
    return [(f.name, _default(f), meanings.get(f.name, "")) for f in dataclasses.fields(kind.settings) if f.init]


def _kind_lines(name: str, context: ExperimentContext) -> Iterator[str]:
    try:
        kind = adapter_kind(name)
        rows = settings_of(kind)
    except TalikError as error:
        yield f"{name}: not usable here: {' '.join(str(error).split())}"
        yield ""
        return
    adapter = {"kind": name}
    try:
        variant = VariantSettings(name="listed", adapter=adapter, insertion=None if kind.module is None else "last 1")
        trained = _trained(context, variant)
    except TalikError as error:
        trained = f"cannot be built with its defaults: {' '.join(str(error).split())}"
    yield f"{name}: {trained}"
    for setting, default, meaning in rows:
        shown = "required" if default is dataclasses.MISSING else _toml(default)
        head = f"    {setting} = {shown}"
        first = " ".join(meaning.split())
        yield from textwrap.wrap(f"{head}   {first}".rstrip(), _WIDTH, subsequent_indent=" " * 8) if first else [head]
    yield ""


def _trained(context: ExperimentContext, variant: VariantSettings) -> str:
    try:
        model = context.build(variant, seed=0)
    except TalikError as error:
        return f"cannot be built here: {' '.join(str(error).split())}"
    trainable, every = count_parameters(model)
    head = sum(p.numel() for p in model.head.parameters() if p.requires_grad)
    return f"{trainable - head:,} trained in the adapter, {head:,} in the head, of {every:,} parameters"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return dataclasses.MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()


def _toml(value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(getattr(value, "value", value))
