"""A frozen encoder whose units run with weights held in a narrower number type, converted once when first needed.

Autocast casts a frozen weight again at every forward (it keeps casts of weights with gradients only), computes norms in
float32 and lets the sum of a float32 and a narrow tensor come out in float32. Here the units themselves are narrow:
copies of their modules, run without autocast on narrow states, as the model runs when its user loads it in that type.

Whether a unit's own code allows that is found by trying, on the encoder's probe: its result must be of the narrow type
and near that of the float32 unit. One that is not runs with its float32 weights under autocast, and so do units that
are trained themselves; the state that such a unit gives is brought back to the narrow type.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..trunk.exact_float32 import in_exact_float32
from ..trunk.forward_patching import copy_module
from ..trunk.state import State
from ..trunk.trunk import Trunk, Unit
from ..trunk.unit_links import Link
from .held_end import HeldEnd
from .pretrained_encoder import PretrainedEncoder
from .unit_replacement import CompiledUnits

_NEAR = 0.05  # largest difference to the float32 unit, relative to its result's norm; bfloat16 gives some 0.005
_logger = logging.getLogger(__name__)


class HeldEncoder(PretrainedEncoder):
    """An encoder with units in a narrower type; embedding, identity and all else are those of `full`.

    Args:
        full: the encoder as it was loaded; it stays as it is.
        dtype: of the held weights and of the states.

    Attributes:
        full: the encoder as it was loaded.
    """

    def __init__(self, full: PretrainedEncoder, dtype: torch.dtype) -> None:
        self.__dict__.update(full.__dict__)
        self._full = full
        self._state_dtype = dtype
        self._held = HeldUnits(full, dtype)
        self._end = HeldEnd(full, dtype, near=_NEAR)
        self._others: dict[int, nn.Module] = {}  # by link, in place of held modules
        self._compile: Callable[[nn.Module], nn.Module] | None = None
        self._place_modules()

    @property
    def full(self) -> PretrainedEncoder:
        """The encoder as it was loaded."""
        return self._full

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the states that units take and return."""
        return self._state_dtype

    def held_in(self, dtype: torch.dtype) -> PretrainedEncoder:
        """Return an encoder that holds its units in `dtype`; see `Encoder.held_in`."""
        return self if dtype == self._state_dtype else self._full.held_in(dtype)

    @in_exact_float32
    def run(self, state: State, start: int, stop: int) -> State:
        """Run units `start` to `stop` (exclusive) on a state at boundary `start`; see `Encoder.run`."""
        start, stop = self._bounds(state, start, stop)
        state = self.enter(state)
        hidden = state.hidden
        for first, last, narrow in self._stretches(start, stop):
            with torch.autocast(self.device.type, dtype=self._state_dtype, enabled=not narrow):
                hidden = self.trunk.run(hidden, state.context, first, last).to(self._state_dtype)
        return self._state(hidden, stop, state.context, state.lengths)

    @in_exact_float32
    def finish(self, state: State) -> Any:
        """Run what follows the last unit; return the model's own output; see `Encoder.finish`."""
        self._check_end(state)
        state = self.enter(state)
        instead = self._end.instead(lambda: self._held.probe_at(self.num_units))
        with torch.autocast(self.device.type, dtype=self._state_dtype):
            return self.trunk.finish(state.hidden, state.context, instead=instead)

    def with_modules(self, modules: Mapping[int, nn.Module]) -> HeldEncoder:
        """Return an encoder with other modules at some links, which run under autocast; it shares all else."""
        changed = copy.copy(self)
        changed._others = {**self._others, **modules}
        changed._place_modules()
        return changed

    def compiled(self, made: CompiledUnits, **options: Any) -> HeldEncoder:
        """Return an encoder that runs its units through torch.compile; see `Encoder.compiled`."""

        def compiled(module: nn.Module) -> nn.Module:
            if id(module) not in made:
                made[id(module)] = (module, torch.compile(module, **options))
            found: nn.Module = made[id(module)][1]
            return found

        changed = copy.copy(self)
        changed._compile = compiled
        changed._place_modules()
        return changed

    def _place_modules(self) -> None:
        full = self._full.trunk
        self.trunk = full.with_links(_Links(full.links, self._module), context_dtype=self._state_dtype)
        self.units = _Units(self.trunk)

    def _module(self, index: int) -> nn.Module:
        """The module that runs at a link; a frozen one is held when it is first asked for."""
        found = self._others.get(index)
        if found is None:
            found = self._held.module(index)
        return found if self._compile is None else self._compile(found)

    def _stretches(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (first, last, narrow) of neighbouring units that are run alike."""
        first = start
        for unit in range(start, stop):
            if unit + 1 == stop or self._is_narrow(unit) != self._is_narrow(unit + 1):
                yield first, unit + 1, self._is_narrow(unit)
                first = unit + 1

    def _is_narrow(self, unit: int) -> bool:
        bounds = self._full.trunk.bounds
        own = any(index in self._others for index in range(bounds[unit], bounds[unit + 1]))
        return not own and self._held.is_held(unit)


class HeldUnits:
    """Copies of an encoder's units with weights in a narrower type, each made when it is first needed.

    Args:
        encoder: whose units they are copies of.
        dtype: of the copies' weights.
    """

    def __init__(self, encoder: PretrainedEncoder, dtype: torch.dtype) -> None:
        self._encoder, self._dtype = encoder, dtype
        bounds = encoder.trunk.bounds
        self._unit_of = {i: k for k in range(encoder.num_units) for i in range(bounds[k], bounds[k + 1])}
        self._modules: dict[int, dict[int, nn.Module]] = {}  # by unit, by link; {} of a unit that cannot be held
        self._states: dict[int, State] = {}  # of the probe
        self._guard = threading.RLock()

    def module(self, index: int) -> nn.Module:
        """Return what runs at a link: the held copy, or the encoder's own module if the unit cannot be held."""
        return self._of(self._unit_of[index]).get(index, self._encoder.trunk.links[index].module)

    def is_held(self, unit: int) -> bool:
        """Whether a unit runs with narrow weights."""
        return bool(self._of(unit))

    def _of(self, unit: int) -> dict[int, nn.Module]:
        with self._guard:
            if unit not in self._modules:
                self._modules[unit] = self._hold(unit)
            return self._modules[unit]

    @torch.no_grad()
    def _hold(self, unit: int) -> dict[int, nn.Module]:
        before, after = self.probe_at(unit), self.probe_at(unit + 1)
        reason = ""
        for buffers in (False, True):  # tables of angles and statistics stay exact where that works
            modules = self._copies(unit, buffers=buffers)
            reason = self._obstacle(unit, modules, before, after.hidden)
            if not reason:
                return modules
        _logger.info("unit %d of %s runs in float32 under autocast: %s", unit, self._encoder.spec, reason)
        return {}

    @torch.no_grad()
    def probe_at(self, boundary: int) -> State:
        """Return the state of the encoder's probe at a boundary, in the encoder's own type."""
        encoder = self._encoder
        if not self._states:
            with torch.autocast(encoder.device.type, enabled=False):
                self._states[0] = encoder.embed(encoder.probe())
        below = max(k for k in self._states if k <= boundary)
        if below < boundary:
            with torch.autocast(encoder.device.type, enabled=False):
                self._states[boundary] = encoder.run(self._states[below], below, boundary)
        return self._states[boundary]

    def _copies(self, unit: int, *, buffers: bool) -> dict[int, nn.Module]:
        trunk, memo, made = self._encoder.trunk, dict[int, Any](), dict[int, nn.Module]()
        for index in range(trunk.bounds[unit], trunk.bounds[unit + 1]):
            made[index] = copy_module(trunk.links[index].module, memo).requires_grad_(False)
            for tensor in (*made[index].parameters(), *(made[index].buffers() if buffers else ())):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(self._dtype)
        return made

    def _obstacle(self, unit: int, modules: Mapping[int, nn.Module], before: State, expected: Tensor) -> str:
        """Return why a unit cannot run with these modules, "" if it can."""
        links = list(self._encoder.trunk.links)
        for index, module in modules.items():
            links[index] = dataclasses.replace(links[index], module=module)
        trial = self._encoder.trunk.with_links(links)
        try:
            with torch.autocast(self._encoder.device.type, enabled=False):
                hidden = before.hidden.to(self._dtype)
                found = trial.run(hidden, before.context.in_dtype(self._dtype), unit, unit + 1)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's own code raises
            return f"{type(error).__name__}: {error}"
        if found.dtype != self._dtype:
            return f"its result is {str(found.dtype).removeprefix('torch.')}"
        gap = float((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30))
        return "" if gap <= _NEAR else f"its result is {gap:.2g} away"


class _Links(Sequence[Link]):
    """The links of a trunk with other modules, each looked up when it is first used."""

    def __init__(self, links: Sequence[Link], module_of: Callable[[int], nn.Module]) -> None:
        self._links, self._module_of = links, module_of
        self._made: dict[int, Link] = {}

    def __len__(self) -> int:
        return len(self._links)

    @overload
    def __getitem__(self, index: int) -> Link: ...
    @overload
    def __getitem__(self, index: slice) -> list[Link]: ...

    def __getitem__(self, index: int | slice) -> Link | list[Link]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self._made:
            self._made[index] = dataclasses.replace(self._links[index], module=self._module_of(index))
        return self._made[index]


class _Units(Sequence[nn.Module]):
    """The units of a trunk, each looked up when it is first used; the same object each time."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self._made: dict[int, nn.Module] = {}

    def __len__(self) -> int:
        return self._trunk.num_units

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> list[nn.Module]: ...

    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        unit = range(len(self))[index]
        if unit not in self._made:
            bounds = self._trunk.bounds
            modules = [link.module for link in self._trunk.links[bounds[unit] : bounds[unit + 1]]]
            self._made[unit] = modules[0] if len(modules) == 1 else Unit(*modules)
        return self._made[unit]
