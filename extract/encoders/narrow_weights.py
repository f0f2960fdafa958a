"""A whole model's weights held in bfloat16, as its user holds them who loads it in that type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...errors import EncoderError


def hold_in_bfloat16(model: nn.Module, run: Callable[[], object], *, spec: str) -> None:
    """Convert a frozen model's weights to bfloat16 in place.

    What transformers keeps in float32 whatever type a model is loaded in (`_keep_in_fp32_modules_strict`) stays so. So
    do tables that are not saved with the model but made from its configuration, such as the frequencies of rotary
    positions, which bfloat16 cannot tell apart; but not in models whose own code cannot run so.

    Args:
        model: frozen, in eval mode.
        run: runs it on a batch whose floating-point inputs are bfloat16.
        spec: the model's name, for messages.

    Raises:
        EncoderError: the model cannot run in bfloat16.
    """
    exact = _exact(model)
    made = [name for name, tensor in model.named_buffers() if name not in model.state_dict(keep_vars=True)]
    tables = {name: model.get_buffer(name) for name in made if model.get_buffer(name).is_floating_point()}
    model.to(torch.bfloat16)
    for name, tensor in (exact | tables).items():
        _put_back(model, name, tensor)
    reason = _failure(run)
    if reason and tables:
        for name in tables.keys() - exact.keys():
            _put_back(model, name, tables[name].to(torch.bfloat16))
        reason = _failure(run)
    if reason:
        raise EncoderError(f'{spec}: it cannot run in bfloat16 ({reason}); choose compute = "float32" or "tf32"')


def _exact(model: nn.Module) -> dict[str, Tensor]:
    """Return, by name, copies of the weights and buffers that transformers keeps in float32."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for part in getattr(module, "_keep_in_fp32_modules_strict", None) or ():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.is_floating_point() and f".{part}." in f".{name}.":
                    found[f"{path}.{name}" if path else name] = tensor.detach().clone()
    return found


def _put_back(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    if last in module._parameters:
        module.get_parameter(last).data = tensor
    else:
        setattr(module, last, tensor)


def _failure(run: Callable[[], object]) -> str:
    """Return why a forward fails, "" if it does not."""
    try:
        with torch.no_grad():
            run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""
