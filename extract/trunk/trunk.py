"""A trunk: an encoder seen as embedding, units and finish, run piecewise with the results of its own forward.

Nothing here knows a model family. `embed`, `finish` and the units' context come from the encoder's own forward with
the units skipped (forward_patching.py); `run` calls the units themselves with the context that was collected.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrunkError
from .forward_patching import Ahead, Inputs, Instead, Passes, signature_of
from .host_reads import Recorded, Replayed
from .state import Context
from .tracing import Call, Path, Taken, at, map_leaves, put, record, release, tensors
from .unit_links import Chain, Link

_MAX_CONTEXTS = 8


class Unit(nn.Sequential):
    """Several modules that run as one unit (a down-sampling module and the block after it)."""


class Trunk:
    """An encoder cut into units along one chain.

    Args:
        model: the encoder, frozen and in eval mode.
        forward: runs the encoder on a dict of inputs, each with the batch first.
        probe: the inputs with which the chain was recorded.
        chain: the chain of module calls, still holding the probe's tensors.
        context_names: the inputs from which the context is rebuilt; the others are large and are left blank.
        rebuild_all: treat every tensor that a unit returns beside the hidden one as handed to later units.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Inputs], Any],
        probe: Inputs,
        chain: Chain,
        *,
        context_names: Sequence[str],
        rebuild_all: bool = False,
    ) -> None:
        self.model = model
        self.forward = forward
        self.rebuild_all = rebuild_all
        self.links: Sequence[Link] = chain.links
        self.share = chain.share
        self.context_names = tuple(context_names)
        self.bounds = chain.bounds
        self.num_units = len(self.bounds) - 1
        self.probe_signature = signature_of(probe)
        self.probe_batch = next(iter(probe.values())).shape[0]
        self._small = {name: probe[name] for name in self.context_names}
        self._device = next(iter(probe.values())).device
        self.hidden_shapes = [tuple(chain.hidden[b].shape) for b in self.bounds]
        self.passes = Passes(forward, self.links, chain.handing(everything=rebuild_all))
        self.passes.learn(self.probe_signature, [(call.taken, call.returned) for call in chain.calls])
        self.aside: frozenset[Path] = frozenset()
        self.dropped_from = self.num_units
        self.context_dtype: torch.dtype | None = None
        self.constant_names: frozenset[str] = frozenset()  # small inputs that are equal for every item
        self._kept = {earlier for link in self.links for earlier in link.earlier.values()}
        self._exit_mutated = chain.writes_exit()
        self._contexts: OrderedDict[Any, Context] = OrderedDict()
        self._lock = threading.Lock()

    def with_links(self, links: Sequence[Link], *, context_dtype: torch.dtype | None = None) -> Trunk:
        """Return a trunk that runs other links, as many in the same places, and shares all else with this one.

        Args:
            links: whose modules stand for this trunk's.
            context_dtype: of the floating-point arguments in the contexts that it makes; None as this trunk's.
        """
        changed = copy.copy(self)
        changed.links = links
        if context_dtype is not None:
            changed.context_dtype, changed._contexts, changed._lock = context_dtype, OrderedDict(), threading.Lock()
        return changed

    def units(self) -> list[nn.Module]:
        """Return the units; one made of several modules is a `Unit` of them."""
        found: list[nn.Module] = []
        for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            modules = [link.module for link in self.links[start:stop]]
            found.append(modules[0] if len(modules) == 1 else Unit(*modules))
        return found

    def embed(self, inputs: Inputs) -> tuple[Tensor, Context]:
        """Run the embedding; return the hidden tensor at boundary 0 and the context of the units."""
        hidden, calls = self.passes.collect(inputs)
        aside: dict[Path, Tensor] = {}
        if self.aside:  # parts of the output that come from the embedding alone, and need the real inputs
            with torch.no_grad():
                last = hidden.new_zeros(hidden.shape[0], *self._shape_at_end(hidden))
                output = self.passes.end_with(inputs, last)
            aside = {path: t for path, t in tensors(output) if path in self.aside}
        return hidden, self._context(inputs, calls, aside)

    def _shape_at_end(self, hidden: Tensor) -> tuple[int, ...]:
        first, last = self.hidden_shapes[0], self.hidden_shapes[-1]
        return tuple(hidden.shape[1:]) if first[1:] == last[1:] else last[1:]

    def _context(self, inputs: Inputs, calls: tuple[Taken, ...], aside: dict[Path, Tensor]) -> Context:
        return Context(
            inputs={name: inputs[name] for name in self.context_names if name in inputs},
            batch_size=next(iter(inputs.values())).shape[0],
            calls=calls,
            signature=signature_of(inputs),
            rebuild=self.context,
            aside=aside,
        )

    def context(
        self,
        small: Mapping[str, Tensor],
        batch_size: int,
        signature: tuple[Any, ...],
        device: torch.device,
        *,
        blank: float | None = None,
    ) -> Context:
        """Rebuild the context of a batch from its small inputs alone, by a pass with blank large inputs.

        Where no small input differs between items it depends on shapes only, and the last few are kept.

        Raises:
            TrunkError: a small input is missing.
        """
        constant = self.constant_names.issuperset(self.context_names)
        key = (signature, batch_size, str(device)) if blank is None and constant else None
        with self._lock:
            if key in self._contexts:
                self._contexts.move_to_end(key)
                return self._contexts[key]
        inputs = self.complete(small, batch_size, signature, device, blank=blank)
        ahead = self._ahead(batch_size, signature, blank)
        # Positions and angles are made as the model makes them, whatever runs around this call.
        exact = nullcontext() if self.context_dtype is None else torch.autocast(device.type, enabled=False)
        with exact, Recorded() as noted:
            calls = self.passes.collect(inputs, blank=blank, ahead=ahead)[1]
        context = replace(self._context(inputs, calls, {}), reads=tuple(noted.reads))
        if self.context_dtype is not None:
            context = context.in_dtype(self.context_dtype)
        if key is not None:
            with self._lock:
                self._contexts[key] = context
                while len(self._contexts) > _MAX_CONTEXTS:
                    self._contexts.popitem(last=False)
        return context

    def complete(
        self,
        small: Mapping[str, Tensor],
        batch_size: int,
        signature: tuple[Any, ...],
        device: torch.device,
        *,
        blank: float | None = None,
    ) -> Inputs:
        """Return whole inputs: the small ones as given, one blank item (repeated without memory) for the others."""
        inputs: Inputs = {}
        for name, shape, dtype in signature:
            if name in small:
                inputs[name] = small[name].to(device)
            elif name in self.context_names:
                raise TrunkError(f"the context needs the input {name!r}, found {', '.join(small) or 'none'}")
            else:
                item = torch.full((1, *shape), blank or 0.0, dtype=dtype, device=device)
                inputs[name] = item.expand(batch_size, *shape)
        return inputs

    def run(self, hidden: Tensor, context: Context, start: int, stop: int) -> Tensor:
        """Run units `start` to `stop`; `hidden` itself is never written to."""
        given = hidden
        before: dict[int, Tensor] = {}  # hidden tensors that a later link of the same unit takes again
        for index in range(self.bounds[start], self.bounds[stop]):
            link = self.links[index]
            if link.mutates and _same_memory(hidden, given):
                hidden = hidden.clone()
            if index in self._kept:
                before[index] = hidden
            taken = put(context.calls[index], link.slots, hidden)
            for path, earlier in link.earlier.items():
                taken = put(taken, frozenset([path]), before[earlier])
            hidden = at(link.module(*taken[0], **taken[1]), min(link.exit, key=str))
        return hidden

    def finish(
        self, hidden: Tensor, context: Context, *, blank: float | None = None, instead: Instead | None = None
    ) -> Any:
        """Run what follows the last unit and return the encoder's own output.

        Parts of the output that the embedding alone decides are known where the state came from `embed`, else None.
        `instead` answers the calls of other modules (see `Passes.answered`).
        """
        inputs = self.complete(context.inputs, context.batch_size, context.signature, hidden.device, blank=blank)
        final = hidden.clone() if self._exit_mutated else hidden
        ahead = self._ahead(context.batch_size, context.signature, blank)
        with Replayed(context.reads) if context.reads else nullcontext():
            output = self.passes.end_with(inputs, final, blank=blank, ahead=ahead, instead=instead or {})
        if not self.aside:
            return output
        return map_leaves(output, lambda path, leaf: context.aside.get(path) if path in self.aside else leaf)

    def _ahead(self, batch_size: int, signature: tuple[Any, ...], blank: float | None) -> int:
        return batch_size if blank is None and signature == self.probe_signature else 0

    def skip_ahead(self) -> None:
        """Find the modules before the units that a pass with blank large inputs need not run.

        Those are the ones that return nothing but NaN for inputs of NaN: since the proof holds with such inputs, what
        they return is not used.
        """
        if len(self.context_names) == len(self.probe_signature):
            return
        nan = float("nan")
        inputs = self.complete(self._small, self.probe_batch, self.probe_signature, self._device, blank=nan)
        root, _ = record(self.model, lambda: self.passes.collect(inputs, blank=nan))
        self.passes.ahead = tuple(
            Ahead(call.module, call.ordinal, call.returned, self.probe_batch)
            for call in _blank(root, self.links, self.probe_batch)
        )
        release(root)

    @contextmanager
    def watched(self, began: Callable[[int], None], ended: Callable[[int], None]) -> Iterator[None]:
        """Call `began(link index)` and `ended(link index)` around every call of a link in a real pass."""

        def answer(index: int, taken: Taken) -> Any:
            began(index)
            returned = self.passes.real(index, taken)
            ended(index)
            return returned

        with self.passes.answered(answer):
            yield

    def drop_above(self, boundary: int) -> None:
        """Free the weights of the units from `boundary` up; they can no longer run, nor the finish."""
        kept = {id(m) for link in self.links[: self.bounds[boundary]] for m in link.module.modules()}
        for link in self.links[self.bounds[boundary] :]:
            for module in link.module.modules():
                if id(module) not in kept:
                    module.to_empty(device="meta", recurse=False)
        self.dropped_from = min(self.dropped_from, boundary)
        self.passes.stop_at = max(self.bounds[self.dropped_from], 1)


def backbone_parameters(model: nn.Module, excluded: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters that the units' share is taken of: all but the classifier's and the embedding tables'.

    A parameter (1, …, D) that a module of the model's own holds is a table of positions, or a token of its own.
    """
    left_out = {id(p) for module in excluded for p in module.parameters()}
    left_out |= {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    own = [m for m in model.modules() if not type(m).__module__.startswith("torch.nn.")]
    left_out |= {id(p) for m in own for p in m.parameters(recurse=False) if p.ndim > 2 and p.shape[0] == 1}
    return [p for p in model.parameters() if id(p) not in left_out]


def _blank(root: Call, links: Sequence[Link], batch_size: int) -> list[Call]:
    """Return the outermost calls with weights that returned NaN only, a row an item, and are no links nor hold any.

    What has other rows (frames, windows) is run: its size for another batch is not known.
    """
    ours = {id(link.module) for link in links}
    found: list[Call] = []
    for call in root.children:
        returned = [t for _, t in tensors(call.returned)]
        weighs = next(call.module.parameters(), None) is not None
        inside = any(id(m) in ours for m in call.module.modules())
        blank = bool(returned) and all(
            t.is_floating_point() and t.shape[:1] == (batch_size,) and bool(t.isnan().all()) for t in returned
        )
        if weighs and blank and not inside:
            found.append(call)
        elif id(call.module) not in ours:  # one that adds a token or a bias of its own may hold one that does not
            found.extend(_blank(call, links, batch_size))
    return found


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
