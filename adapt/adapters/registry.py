"""The adapters by name: one `register_adapter(...)` line each; third parties by the entry points `talik.adapters`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from ...config import from_mapping
from ...errors import SettingsError, TalikError, unknown_name
from ...registry import load_entry_points
from ...user_code import is_user_name, user_object, user_settings, ways_to_bring
from .base import Adapter, as_adapter
from .peft_settings import TUNERS

BUILT_IN = {  # kind → module of this package
    "probe": "probe",
    "trimodal": "trimodal",
    "lavish": "lavish",
    "lstta": "lstta",
    "dgsct": "dgsct",
    "bottleneck": "bottleneck",
    "parallel": "parallel",
    "side": "ladder_side",
    "bitfit": "finetune",
    "norm": "finetune",
    "finetune": "finetune",
    **{f"peft:{tuner}": "peft" for tuner in TUNERS},
}
GROUP = "talik.adapters"  # of entry points; the name is the kind, the object a class or a module that registers


@dataclass(frozen=True)
class AdapterKind:
    """One registered adapter: its settings (a frozen dataclass) and the module that they build.

    Args:
        module: the adapter's class, or None for an adapter without insertion, which leaves all to the head.
    """

    name: str
    settings: type
    module: type[Adapter] | None

    @property
    def placement_given(self) -> bool:
        """Whether a variant may say where the adapter stands: not of one beside the encoders or inside units."""
        return self.module is None or not (self.module.beside or self.module.tunes_units)


_KINDS: dict[str, AdapterKind] = {}


def register_adapter(name: str, settings: type, module: type[nn.Module] | None) -> None:
    """Register an adapter under the name that `[variants.adapter] kind` gives.

    Args:
        name: the kind.
        settings: a frozen dataclass; the table's other keys are its fields. A field `modalities` names those that the
            variant reads; without it, all.
        module: built as `module(settings, dims)`, `dims` giving for each insertion the channels of each modality; its
            `at(i)` is the adapter of the i-th insertion, called with a `Triple` and returning `Deltas`. An `Adapter`,
            or a plain `nn.Module`, which is given `Adapter`'s defaults (`as_adapter`). None: the head alone.

    Example:
        >>> from dataclasses import dataclass
        >>> import talik
        >>> @dataclass(frozen=True, kw_only=True)
        ... class FrozenSettings:
        ...     note: str = ""
        >>> talik.register_adapter("frozen", FrozenSettings, None)
        >>> adapter_settings({"kind": "frozen", "note": "the head alone"})
        FrozenSettings(note='the head alone')
    """
    _KINDS[name] = AdapterKind(name, settings, None if module is None else as_adapter(module))


def adapter_kind(name: str) -> AdapterKind:
    """Return the adapter registered as `name`, importing it if it is built in or an entry point.

    Args:
        name: the kind; or `module:Class`, a class of one's own (see `user_code`), whose settings are the dataclass
            `Settings` in it, or the annotation of its first argument.

    Raises:
        SettingsError: no adapter of that name; the message lists the known ones.
        PlugInError: the code of an entry point, or of one's own, raises.
    """
    if name not in _KINDS and is_user_name(name):
        return _user_kind(name, user_object(name))
    if name not in _KINDS and name in BUILT_IN:
        importlib.import_module(f".{BUILT_IN[name]}", __package__)
    if name not in _KINDS:
        load_entry_points(GROUP, name)
    if name not in _KINDS:
        ways = "" if name.startswith("peft:") else ways_to_bring("adapter", GROUP)
        raise SettingsError(unknown_name("adapter kind", name, known_adapters()) + ways)
    return _KINDS[name]


@functools.cache
def _user_kind(name: str, module: Any) -> AdapterKind:
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise SettingsError(f"{name!r}: found {module!r}, expected a class that derives from torch.nn.Module")
    return AdapterKind(name, user_settings(module), as_adapter(module))


def known_adapters() -> tuple[str, ...]:
    """Return the names of all adapters: built in, registered, and offered by entry points."""
    return tuple(sorted({*BUILT_IN, *_KINDS, *(p.name for p in entry_points(group=GROUP))}))


def adapter_settings(table: Mapping[str, Any]) -> Any:
    """Build the settings that `[variants.adapter]` gives: `kind` picks the class, the other keys are its own.

    Raises:
        SettingsError: an unknown kind or key, or a value that the settings refuse, whatever their class raises.
        BackendError: a package that the kind needs is not installed.
    """
    kind = adapter_kind(str(table["kind"]))
    values = {k: v for k, v in table.items() if k != "kind"}
    parse = getattr(kind.settings, "from_table", None)
    try:
        return from_mapping(kind.settings, values, where="adapter") if parse is None else parse(kind.name, values)
    except TalikError:
        raise
    except Exception as error:  # a class of one's own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingsError(f"adapter: {kind.name!r} refuses these settings: {reason}") from error


def modalities_of(settings: Any) -> tuple[str, ...] | None:
    """Return the modalities that an adapter's settings name in a field `modalities`; None for all."""
    named = any(f.name == "modalities" for f in dataclasses.fields(settings))
    return tuple(settings.modalities) if named else None
