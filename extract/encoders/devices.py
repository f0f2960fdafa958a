"""The device that is asked for: one that torch can use here, or an error of one line."""

from __future__ import annotations

import torch

from ...errors import SettingsError


def usable_device(name: torch.device | str) -> torch.device:
    """Return the device of that name.

    Raises:
        SettingsError: torch knows no such device, or cannot use it on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        why = str(error).split(". ")[0].splitlines()[0]
        raise SettingsError(f"device: found {str(name)!r}, expected cpu, or cuda on a GPU ({why})") from None
    return device
