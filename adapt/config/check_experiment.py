"""What an experiment file may not say, beyond what each table alone forbids: settings that would have no effect.

Looked at when a file is read, and not when the settings of a run that was trained before are read back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import BackendError, PlugInError, SettingsError, unknown_name
from ..adapters.peft_settings import PeftSettings
from ..adapters.registry import adapter_kind, adapter_settings, modalities_of

if TYPE_CHECKING:
    from .experiment import Experiment, VariantSettings


def check_experiment(experiment: Experiment) -> None:
    """Refuse settings that contradict each other or would have no effect, before anything is opened.

    Raises:
        SettingsError: with the key, or the name of the variant.
    """
    sweep = experiment.sweep
    if not sweep.seeds:
        raise SettingsError("sweep.seeds: found [], expected at least one seed")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise SettingsError(f"sweep.seeds: found {list(sweep.seeds)}, expected each seed once")
    if sweep.stack is False and sweep.stack_size:
        raise SettingsError("sweep.stack_size: has no effect beside stack = false; remove one of them")
    for variant in experiment.variants:
        with suppress(BackendError, PlugInError):  # the run that needs it says so
            try:
                _check_variant(experiment, variant)
            except PlugInError:
                raise
            except SettingsError as error:
                raise SettingsError(f"variant {variant.name!r}: {error}") from None


def _check_variant(experiment: Experiment, variant: VariantSettings) -> None:
    check_placement(variant)
    settings = adapter_settings(variant.adapter)
    if isinstance(settings, PeftSettings):
        settings.check_start()
    encoders = {m for m, _ in experiment.extraction.encoders.items()}
    for modality in modalities_of(settings) or ():
        if modality not in encoders:
            raise SettingsError(f"its adapter reads {modality}, but there is no [encoders.{modality}]")
    if isinstance(variant.insertion, dict):
        for modality, boundaries in variant.insertion.items():
            if modality not in encoders:
                raise SettingsError(f"insertion: {unknown_name('modality', modality, encoders)}")
            if not boundaries:
                raise SettingsError(f"insertion.{modality}: found [], expected at least one boundary")


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
