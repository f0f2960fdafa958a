"""What an experiment may not say, beyond what each table alone forbids: settings that would have no effect.

Looked at when a file is read or a run begins, and not when the settings of a trained run are read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import SettingsError, unknown_name
from ..adapters.peft_settings import PeftSettings
from ..adapters.registry import adapter_kind, adapter_settings

if TYPE_CHECKING:
    from .experiment import Experiment, VariantSettings


def check_experiment(experiment: Experiment) -> None:
    """Refuse settings that concern all variants and contradict each other or would have no effect.

    Raises:
        SettingsError: with the key.
    """
    sweep = experiment.sweep
    if not sweep.seeds:
        raise SettingsError("sweep.seeds: found [], expected at least one seed")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise SettingsError(f"sweep.seeds: found {list(sweep.seeds)}, expected each seed once")
    if sweep.stack is False and sweep.stack_size:
        raise SettingsError("sweep.stack_size: has no effect beside stack = false; remove one of them")
    if sweep.stack is False and sweep.batch_members is True:
        raise SettingsError("sweep.batch_members: true has no effect beside stack = false; remove one of them")
    names = [variant.name for variant in experiment.variants]
    for number, variant in enumerate(experiment.variants):
        if variant.start_from and (variant.start_from not in names or variant.start_from == variant.name):
            others = [name for name in names if name != variant.name]
            unknown = unknown_name("variant", variant.start_from, others)
            raise SettingsError(f"variants[{number}].start_from: {unknown}")


def check_variant(experiment: Experiment, variant: VariantSettings) -> None:
    """Refuse a variant's settings that do not fit its adapter or the experiment's encoders, before it is built.

    Raises:
        SettingsError: with the variant's name and the key.
        BackendError: a package that the variant needs is not installed.
    """
    try:
        check_placement(variant)
        settings = adapter_settings(variant.adapter)
        if isinstance(settings, PeftSettings):
            settings.check_start()
        encoders = {m for m, _ in experiment.extraction.encoders.items()}
        for modality, boundaries in variant.insertion.items() if isinstance(variant.insertion, dict) else ():
            if modality not in encoders:
                raise SettingsError(f"insertion: {unknown_name('modality', modality, encoders)}")
            if not boundaries:
                raise SettingsError(f"insertion.{modality}: found [], expected at least one boundary")
    except SettingsError as error:
        raise SettingsError(f"variant {variant.name!r}: {error}") from error


def check_placement(variant: VariantSettings) -> None:
    """Refuse an insertion or a placement that the variant's kind of adapter does not have, or lacks.

    Raises:
        SettingsError: without the variant's name.
    """
    kind = adapter_kind(variant.adapter["kind"])
    if kind.module is None and variant.insertion is not None:
        raise SettingsError(f"adapter kind {kind.name!r} has no insertion; remove it")
    if kind.module is not None and variant.insertion is None:
        raise SettingsError('no insertion; expected for instance insertion = "last 1"')
    if variant.placement != "between" and not kind.placement_given:
        where = "enters no unit" if kind.module is not None and kind.module.beside else "trains inside units"
        raise SettingsError(f"{kind.name!r} {where}; remove placement")
