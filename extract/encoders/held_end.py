"""What follows a frozen encoder's last unit, run with weights held in a narrower number type (see `held_encoder`).

The end runs inside the model's own forward. The modules that it calls there, a norm, a projection, are answered by
copies in the narrower type. If the end's own code does not allow that, or its result then is another, the modules run
with their own weights under autocast.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..trunk.forward_patching import Instead, copy_module
from ..trunk.state import State
from ..trunk.tracing import Taken, map_tensors, tensors
from .pretrained_encoder import PretrainedEncoder

_logger = logging.getLogger(__name__)


class HeldEnd:
    """The modules behind an encoder's last unit with weights in a narrower type, made when first needed.

    Args:
        encoder: whose end it is.
        dtype: of the copies' weights.
        near: largest difference of the features to those of the float32 end, relative to their norm.
    """

    def __init__(self, encoder: PretrainedEncoder, dtype: torch.dtype, *, near: float) -> None:
        self._encoder, self._dtype, self._near = encoder, dtype, near
        self._found: Instead | None = None
        self._guard = threading.RLock()

    def instead(self, probe: Callable[[], State]) -> Instead:
        """Return what answers the end's modules; {} where they run with their own weights.

        Args:
            probe: returns the state of some input at the last boundary, in the encoder's own type.
        """
        with self._guard:
            if self._found is None:
                self._found = self._find(probe())
            return self._found

    @torch.no_grad()
    def _find(self, state: State) -> Instead:
        encoder = self._encoder
        with torch.autocast(encoder.device.type, enabled=False):
            expected = encoder.features(encoder.finish(state)).float()
        narrow = state.replace(hidden=state.hidden.to(self._dtype), context=state.context.in_dtype(self._dtype))
        try:
            called = self._called(narrow)
            found = {id(module): (module, self._copy(module)) for module in called}
            result = encoder.features(self._finish(narrow, found)).float()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's own code raises
            _logger.info("the end of %s runs in float32 under autocast: %s", encoder.spec, error)
            return {}
        gap = float((result - expected).norm() / expected.norm().clamp(min=1e-30))
        if gap <= self._near:
            return found
        _logger.info("the end of %s runs in float32 under autocast: its result is %.2g away", encoder.spec, gap)
        return {}

    def _finish(self, state: State, instead: Instead) -> Any:
        with torch.autocast(self._encoder.device.type, dtype=self._dtype):
            return self._encoder.trunk.finish(state.hidden, state.context, instead=instead)

    def _called(self, state: State) -> list[nn.Module]:
        """The modules with weights of their own that the end calls with numbers of the narrow type."""
        trunk, called, behind = self._encoder.trunk, dict[int, nn.Module](), list[bool]()
        units = {id(m) for link in trunk.links for m in link.module.modules()}

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if behind and any(t.dtype == self._dtype for _, t in tensors((args, kwargs))):
                called[id(module)] = module

        hooks = [trunk.links[-1].module.register_forward_hook(lambda *_: behind.append(True))]
        others = (m for m in self._encoder.model.modules() if id(m) not in units)
        weighted = (m for m in others if next(m.parameters(recurse=False), None) is not None)
        hooks += [module.register_forward_pre_hook(note, with_kwargs=True) for module in weighted]
        try:
            self._finish(state, {})
        finally:
            for hook in hooks:
                hook.remove()
        return list(called.values())

    def _copy(self, module: nn.Module) -> Callable[[Taken], Any]:
        made = copy_module(module, {}).requires_grad_(False)
        for parameter in made.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(self._dtype)

        def narrow(tensor: Tensor) -> Tensor:
            return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

        def run(taken: Taken) -> Any:
            args, kwargs = map_tensors(taken, narrow)
            with torch.autocast(self._encoder.device.type, enabled=False):
                return made(*args, **kwargs)

        return run
