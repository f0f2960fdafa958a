"""`peft:<tuner>`: which of PEFT's tuners are supported, and their settings under PEFT's own keys.

The supported tuners are those that put modules into a model and whose identity at the start, training, saving and
loading are tested here (tests/adapt/test_peft_tuners.py); prompts and the like, which lengthen the input, are none.
PEFT itself (https://github.com/huggingface/peft) is imported only where such a variant is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import BackendError, SettingsError, unknown_name
from ...extract.encoders.options import MODALITIES


@dataclass(frozen=True)
class Tuner:
    """One supported tuner.

    Args:
        peft_type: PEFT's name of it.
        preset: keys that are set under this name and cannot be given.
        default: keys that talik gives where the experiment does not.
        starts_as: what the untrained tuner does: "bits", the frozen model to the bit; "rounding", the same but for
            rounding; "changed", not the frozen model with PEFT's own initialisation.
    """

    peft_type: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=dict)
    starts_as: str = "bits"


TUNERS: dict[str, Tuner] = {
    "lora": Tuner("LORA"),
    "dora": Tuner("LORA", preset={"use_dora": True}),
    "adalora": Tuner("ADALORA"),
    "ia3": Tuner("IA3", default={"feedforward_modules": []}),
    "vera": Tuner("VERA"),
    "pvera": Tuner("PVERA"),
    "oft": Tuner("OFT"),
    "boft": Tuner("BOFT"),
    "hra": Tuner("HRA", starts_as="rounding"),
    "loha": Tuner("LOHA"),
    "lokr": Tuner("LOKR"),
    "fourierft": Tuner("FOURIERFT", default={"init_weights": True}),
    "waveft": Tuner("WAVEFT"),
    "c3a": Tuner("C3A", default={"init_weights": True}),
    "randlora": Tuner("RANDLORA"),
    "vblora": Tuner("VBLORA", starts_as="changed"),
    "delora": Tuner("DELORA"),
    "gralora": Tuner("GRALORA"),
    "hira": Tuner("HIRA"),
    "miss": Tuner("MISS"),
    "road": Tuner("ROAD"),
    "shira": Tuner("SHIRA"),
    "osf": Tuner("OSF", starts_as="rounding"),
    "psoft": Tuner("PSOFT"),
    "unilora": Tuner("UNILORA", starts_as="changed"),
    "tinylora": Tuner("TINYLORA"),
    "beft": Tuner("BEFT"),
    "peanut": Tuner("PEANUT"),
    "ln_tuning": Tuner("LN_TUNING"),
}

# Keys that PEFT fills itself, or that reach beyond the units.
_NOT_OURS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "layer_replication", "modules_to_save",
        "peft_type", "peft_version", "revision", "task_type", "trainable_token_indices", "runtime_config",
        "rank_pattern_final", "megatron_config", "megatron_core", "ensure_weight_tying",
    }
)  # fmt: skip


#: Values of init_lora_weights that need more than the weights; without it PEFT starts as if they were not given.
_STARTS_FROM_DATA = {"eva": "activations on data", "corda": "activations on data", "lora_ga": "gradients on data"}


@dataclass(frozen=True, kw_only=True)
class PeftSettings:
    """A tuner and the keys of its PEFT config.

    Args:
        tuner: a name of `TUNERS`.
        keys: PEFT's own, checked against its config class.
        target_modules: what the tuner is put on, in PEFT's sense: names, a regular expression, or "all-linear" (the
            default; of ln_tuning, which is for norms, every norm); a table of these by modality, since encoders name
            modules differently.
    """

    tuner: str
    keys: Mapping[str, Any]
    target_modules: Any = "all-linear"

    @classmethod
    def from_table(cls, kind: str, values: Mapping[str, Any]) -> PeftSettings:
        """Build and check the settings that `[variants.adapter]` gives.

        Raises:
            SettingsError: a key that PEFT's config does not have, or a value that it refuses.
            BackendError: PEFT cannot be imported.
        """
        tuner = kind.removeprefix("peft:")
        known = config_fields(tuner)
        preset = TUNERS[tuner].preset
        for key, value in values.items():
            if key not in known or key in preset:
                raise SettingsError(f"adapter: {unknown_name('key', key, set(known) - set(preset))}")
            _check_type(key, value, known[key])
        keys = {**TUNERS[tuner].default, **values}
        target = keys.pop("target_modules", "all-linear")
        made = cls(tuner=tuner, keys={**keys, **preset}, target_modules=target)
        for modality in MODALITIES:
            made.config(modality)
        return made

    def check_start(self) -> None:
        """Refuse a start that PEFT makes from data or gradients, which talik does not gather, or from nothing at all.

        Raises:
            SettingsError: as said.
        """
        start = self.keys.get("init_lora_weights", True)
        given = f"adapter.init_lora_weights: found {start!r}, "
        if self.tuner == "adalora" and not isinstance(start, bool):
            raise SettingsError(f"{given}which AdaLoRA does not read; expected true or false")
        if start in _STARTS_FROM_DATA:
            raise SettingsError(
                f"{given}which is made from {_STARTS_FROM_DATA[start]} before training, which talik does not gather; "
                'expected true, false, "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_N" or "mica"'
            )
        if start == "loftq":
            raise SettingsError(f"{given}which quantises the frozen weights, so that no other program could load them")

    def config(self, modality: str) -> Any:
        """A fresh PEFT config for one encoder."""
        target = self.target_modules
        if isinstance(target, Mapping):
            for name in target:
                if name not in MODALITIES:
                    raise SettingsError(f"adapter.target_modules: {unknown_name('modality', name, MODALITIES)}")
            target = target.get(modality, "all-linear")
        chosen = {"target_modules": target} if "target_modules" in config_fields(self.tuner) else {}
        if self.tuner == "adalora" and "total_step" not in self.keys:
            chosen["total_step"] = 2**31  # until training says how many steps it takes
        try:
            return _config_class(self.tuner)(**chosen, **self.keys)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise SettingsError(f"adapter: PEFT refuses these settings: {' '.join(str(error).split())}") from None


def config_fields(tuner: str) -> dict[str, dataclasses.Field[Any]]:
    """The keys that a tuner's PEFT config takes, by name."""
    fields = {f.name: f for f in dataclasses.fields(_config_class(tuner)) if f.init}
    return {name: f for name, f in fields.items() if name not in _NOT_OURS}


def _config_class(tuner: str) -> Any:
    peft = import_peft()
    kind = TUNERS[tuner].peft_type
    found = {str(getattr(k, "value", k)): v for k, v in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in found:
        raise BackendError(f"peft:{tuner}: PEFT {peft.__version__} does not have it; install a newer one")
    return found[kind]


def import_peft() -> Any:
    """PEFT, imported.

    Raises:
        BackendError: it is not installed, or cannot be imported.
    """
    try:
        import peft
        import peft.mapping
    except (ImportError, OSError) as error:
        raise BackendError(f"adapter kinds peft:… need the package peft ({error}); pip install peft") from None
    return peft


def _check_type(key: str, value: Any, known: dataclasses.Field[Any]) -> None:
    """Compare with the type of the default, since PEFT's configs take anything."""
    default = known.default
    expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {bool: isinstance(value, bool), int: number and isinstance(value, int), float: number}
    if expected and not fits[type(default)] and not (isinstance(value, str | list) and type(default) is bool):
        raise SettingsError(f"adapter.{key}: found {value!r}, expected {expected}")
