"""Hidden tensors of a batch on their way from the encoder's device to the store, in the form in which they are stored.

B: clips of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.feature_store import BoundarySpec
from ...cache.format.dtypes import checked

_STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # int8 is made of float32 on the host


class HostStates:
    """The states of a batch at one boundary; converted where they are, and copied while the device goes on.

    Args:
        hidden: (B * rows, …) of any floating type.
        num_items: B.
        spec: of the boundary.
    """

    def __init__(self, hidden: Tensor, num_items: int, spec: BoundarySpec) -> None:
        self._spec = spec
        self._hidden = hidden.reshape(num_items, -1, *hidden.shape[1:])
        self._ready: torch.cuda.Event | None = None
        self._finite: Tensor | None = None
        if hidden.device.type == "cpu":
            return
        stored = self._hidden.to(_STORED.get(spec.dtype, torch.float32))
        finite = torch.isfinite(stored).flatten(1).all(dim=1)
        if hidden.device.type != "cuda":
            self._host, self._finite = stored.cpu(), finite.cpu()
            return
        with torch.cuda.device(hidden.device):
            self._host, self._finite = _pinned_copy(stored), _pinned_copy(finite)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def item(self, number: int, source: str) -> NDArray[Any]:
        """Return the state of one item (rows, …) as `ShardStream.add` takes it.

        Args:
            number: of the item in the batch.
            source: the item's, for messages.

        Raises:
            NumericsError: NaN, Inf, or a value beyond the storage type.
        """
        if self._ready is not None:
            self._ready.synchronize()
            self._ready = None
        if self._finite is None or not self._finite[number]:
            whole: NDArray[Any] = self._hidden[number].float().cpu().numpy()
            return checked(whole, self._spec, source)
        host = self._host[number]
        found: NDArray[Any] = (host.view(torch.int16) if host.dtype == torch.bfloat16 else host).numpy()
        return found


def _pinned_copy(tensor: Tensor) -> Tensor:
    """Begin to copy a CUDA tensor to pinned memory, after what its stream has to do."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
