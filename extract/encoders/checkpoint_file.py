"""Reading weights from a file that the user names: safetensors, or a .pt/.pth file loaded without running its code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import EncoderError

_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")


def load_weights(model: nn.Module, path: str | Path, *, ignored: tuple[str, ...] = ()) -> None:
    """Load the weights in a file into `model`; every weight of the model must be there.

    Args:
        model: the modules to fill.
        path: a .safetensors, .pt, .pth or .bin file.
        ignored: names (or their beginnings) that may be in the file and not in the model: a classifier.

    Raises:
        EncoderError: no such file, not plain weights, or names and shapes that do not fit.
    """
    state = read_weights(Path(path))
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise EncoderError(f"{path}: does not fit the model: {' '.join(str(error).split())[:240]}") from None
    extra = [name for name in found.unexpected_keys if not name.startswith(ignored)]
    if found.missing_keys or extra:
        named = (found.missing_keys or extra)[0]
        raise EncoderError(
            f"{path}: {len(found.missing_keys)} weights of the model are missing and {len(extra)} are not its own, "
            f"the first {named!r}; expected the same names"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by name."""
    if not path.is_file():
        raise EncoderError(f"{path}: no such file; expected weights (.safetensors, .pt)")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (pickle.UnpicklingError, RuntimeError, SafetensorError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise EncoderError(f"{path}: not plain weights ({reason}); expected safetensors or a state dict") from None
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise EncoderError(f"{path}: found no state dict; expected tensors by name")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
