"""Encoders with adapters of the PEFT library in them (LoRA and its kin): opened, unwrapped, told apart.

What such a tuner adds lies inside the units, so they run as they are; merged models are ordinary ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import EncoderError


def is_adapter_folder(path: str | Path | None) -> bool:
    """Say whether `path` is a folder that PEFT saved an adapter in."""
    return path is not None and (Path(path) / "adapter_config.json").is_file()


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Return `model` wrapped by PEFT with the adapter in `folder`, all of whose weights must be there.

    Raises:
        EncoderError: peft is not installed, a kind that cannot be cut, or weights that do not fit.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
        from peft.utils.save_and_load import load_peft_weights
    except ImportError:
        raise EncoderError(f"{folder}: an adapter of the PEFT library; run: pip install peft") from None
    try:
        _check_kind(PeftConfig.from_pretrained(str(folder)), str(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that do not fit are found below
            wrapped = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
        found = set(load_peft_weights(str(folder), device="cpu"))
    except EncoderError:
        raise
    except Exception as error:  # whatever the library raises on a folder that is not for this model
        raise EncoderError(f"{folder}: does not fit the model: {' '.join(str(error).split())[:240]}") from None
    expected = set(get_peft_model_state_dict(wrapped))
    if found != expected:
        odd = sorted(found ^ expected)[0]
        raise EncoderError(f"{folder}: {len(found ^ expected)} weights do not fit the model, the first {odd!r}")
    return wrapped


def unwrapped(model: nn.Module) -> tuple[nn.Module, Callable[..., Any] | None]:
    """Return the model inside a PEFT wrapper, adapters in place, and the wrapper's own forward; others as they are.

    Raises:
        EncoderError: a kind that changes the inputs (prompts), which the model inside does not know.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return model, None
    wrapped: Any = model
    for config in wrapped.peft_config.values():
        _check_kind(config, type(model).__name__)
    return wrapped.get_base_model(), wrapped.forward


def tuner_settings(model: nn.Module) -> dict[str, Any]:
    """Return, by name of module, what of its tuners' settings its result depends on (scale, kind, active adapters)."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "active_adapters"):
            plain = {key: value for key, value in vars(module).items() if key != "training" and _is_plain(value)}
            found[name] = {key: _sorted(plain[key]) for key in sorted(plain)}
    return found


def _check_kind(config: Any, where: str) -> None:
    if getattr(config, "is_prompt_learning", False) or getattr(config, "is_adaption_prompt", False):
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        raise EncoderError(f"{where}: {kind} adds tokens to the inputs; expected a tuner inside modules, such as LORA")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple | set):
        return all(_is_plain(inner) for inner in value)
    return value is None or isinstance(value, bool | int | float | str)


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
