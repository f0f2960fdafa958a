"""Passes of an encoder's own forward in which the calls of its units are answered instead of run.

A pass patches the `forward` of each unit's modules for its duration, so that hooks, decorators and everything around
the units stay the model's own. Only the thread that runs the pass sees the patch: for every other thread the patched
`forward` is the module's own, so that one thread may run units while another embeds or finishes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrunkError
from .output_template import Template, make_template
from .tracing import Taken, at, forwards_lock, map_tensors, put
from .unit_links import Link

Inputs = dict[str, Tensor]
Answer = Callable[[int, Taken], Any]
Instead = Mapping[int, tuple[nn.Module, Callable[[Taken], Any]]]
"""By a module's id: the module, and what answers its calls."""


_NOTHING: Instead = MappingProxyType({})


class _Stop(BaseException):
    """Ends a pass early; not an Exception, so that no model code swallows it."""


@dataclass(frozen=True, eq=False)
class Ahead:
    """A call before the units whose result depends on blank inputs only, so that a pass with blanks may skip it.

    Attributes:
        output: what it returned for a batch of `batch_size`.
    """

    module: nn.Module
    ordinal: int
    output: Any
    batch_size: int

    def returned(self, batch_size: int) -> Any:
        """Return such an output for another batch, blank."""

        def blank(tensor: Tensor) -> Tensor:
            batched = tensor.ndim > 0 and tensor.shape[0] == self.batch_size
            return tensor.new_zeros((batch_size, *tensor.shape[1:]) if batched else tensor.shape)

        return map_tensors(self.output, blank)


class _Counted:
    """Answers the calls of one module in one pass: those whose number is in `table`; the others run."""

    def __init__(self, module: nn.Module, table: Mapping[int, Any], answer: Callable[[Any, Taken], Any]) -> None:
        self.module = module
        self.table = table
        self.answer = answer
        self.count = 0

    def __call__(self, taken: Taken) -> Any:
        entry = self.table.get(self.count)
        self.count += 1
        if entry is None:
            return _patches[id(self.module)].original(*taken[0], **taken[1])
        return self.answer(entry, taken)


class _ThisThread(threading.local):
    """The handlers of the passes that are open in a thread, by the module's id."""

    handlers: Mapping[int, Callable[[Taken], Any]] = MappingProxyType({})


class _Patch:
    """A module's `forward`, replaced by one that asks the calling thread's handlers while any pass is open.

    Attributes:
        original: the module's own forward.
        num_open: passes, of all threads, that need the patch.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.original = module.forward
        self.own = module.__dict__.get("forward")  # an instance's own, else None
        self.num_open = 0
        module.__dict__["forward"] = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer the call by this thread's handler, or run the module's own forward."""
        handler = _this_thread.handlers.get(id(self.module))
        return self.original(*args, **kwargs) if handler is None else handler((args, kwargs))

    def undo(self) -> None:
        """Give the module its own forward back."""
        _set_own_forward(self.module, self.own)


def _set_own_forward(module: nn.Module, own: Callable[..., Any] | None) -> None:
    module.__dict__.pop("forward", None)
    if own is not None:
        module.__dict__["forward"] = own


_this_thread = _ThisThread()
_patches: dict[int, _Patch] = {}  # by the module's id; of all models, since two encoders may share modules


def _patch(modules: Sequence[nn.Module]) -> None:
    with forwards_lock:
        for module in modules:
            if id(module) not in _patches:
                _patches[id(module)] = _Patch(module)
            _patches[id(module)].num_open += 1


def _unpatch(modules: Sequence[nn.Module]) -> None:
    with forwards_lock:
        for module in modules:
            _patches[id(module)].num_open -= 1
            if not _patches[id(module)].num_open:
                _patches.pop(id(module)).undo()


def copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a deep copy of `module` without the patches of passes that other threads have open.

    Args:
        module: left as it is.
        memo: of `copy.deepcopy`; what several modules share is shared by their copies.
    """
    with forwards_lock:
        patches = [_patches[id(m)] for m in module.modules() if id(m) in _patches]
        memo.update((id(p.module.forward), p.module.forward) for p in patches)  # replaced below
        made: nn.Module = copy.deepcopy(module, memo)
        for patch in patches:
            _set_own_forward(memo[id(patch.module)], copy.deepcopy(patch.own, memo))
    return made


class Passes:
    """The passes of one model over one chain of links.

    Args:
        forward: runs the model on a dict of inputs.
        links: the chain.
        rebuilt: links that hand tensors beside the hidden one to later units; in a pass without units they run on
            a blank hidden tensor, since what they hand on must not depend on it (the proof shows whether it does).
    """

    def __init__(self, forward: Callable[[Inputs], Any], links: Sequence[Link], rebuilt: frozenset[int]) -> None:
        self.forward = forward
        self.links = list(links)
        self.rebuilt = rebuilt
        self._indices: dict[int, dict[int, int]] = {}
        for index, link in enumerate(self.links):
            self._indices.setdefault(id(link.module), {})[link.ordinal] = index
        self._templates: dict[Any, list[Template]] = {}
        self._learns = False
        self.stop_at = len(self.links)
        self.ahead: tuple[Ahead, ...] = ()

    @contextmanager
    def answered(self, answer: Answer, *, ahead: int = 0, instead: Instead = _NOTHING) -> Iterator[None]:
        """Let `answer(link index, (args, kwargs))` return what each call of a link returns, while this is open.

        This thread alone is answered. With `ahead`, a batch size, the modules before the units return blanks for such a
        batch. Modules that are named in `instead` are answered by what stands there.
        """
        handlers: dict[int, _Counted] = {}
        for module in {id(link.module): link.module for link in self.links}.values():
            handlers[id(module)] = _Counted(module, self._indices[id(module)], answer)
        for module in {id(a.module): a.module for a in self.ahead}.values() if ahead else ():
            blanks = {a.ordinal: a for a in self.ahead if a.module is module}
            handlers[id(module)] = _Counted(module, blanks, lambda blank, _: blank.returned(ahead))
        modules = [handler.module for handler in handlers.values()]
        modules += [module for key, (module, _) in instead.items() if key not in handlers]
        outer = _this_thread.handlers
        _patch(modules)
        _this_thread.handlers = {**outer, **{key: run for key, (_, run) in instead.items()}, **handlers}
        try:
            yield
        finally:
            _this_thread.handlers = outer
            _unpatch(modules)

    def real(self, index: int, taken: Taken) -> Any:
        """Run a link's own forward; inside `answered`."""
        return _patches[id(self.links[index].module)].original(*taken[0], **taken[1])

    def learn(self, signature: Any, calls: Sequence[tuple[Taken, Any]]) -> None:
        """Keep what every link returned in one real pass, for inputs of that signature."""
        templates = [make_template(link, *call) for link, call in zip(self.links, calls, strict=True)]
        self._templates[signature] = templates
        self._learns = self._learns or not all(t.is_plain for t in templates)

    def templates(self, inputs: Inputs) -> list[Template]:
        """Return the links' templates; a new shape of inputs is learned by one real pass where that is needed.

        Raises:
            TrunkError: a new shape, and units that were dropped.
        """
        if not self._learns:
            return next(iter(self._templates.values()))
        signature = signature_of(inputs)
        if signature not in self._templates:
            if self.stop_at < len(self.links):
                raise TrunkError("units were dropped and inputs of this shape are new; load the encoder again")
            calls: list[tuple[Taken, Any]] = []

            def answer(index: int, taken: Taken) -> Any:
                returned = self.real(index, taken)
                calls.append((taken, returned))
                return returned

            with torch.inference_mode(False), torch.no_grad(), self.answered(answer):
                self.forward({name: t[:2] for name, t in inputs.items()})
            self.learn(signature, calls)
        return self._templates[signature]

    def collect(
        self, inputs: Inputs, *, blank: float | None = None, ahead: int = 0
    ) -> tuple[Tensor, tuple[Taken, ...]]:
        """Run to the last unit without the units; return what the first takes, and every link's other arguments.

        Args:
            inputs: the encoder's inputs.
            blank: a value for what the skipped units return, and for what the first takes, once it is noted, so that
                a path around the units shows; None hands on what they took.
            ahead: the batch size, to skip what lies before the units too; 0 runs it.

        Raises:
            TrunkError: the hidden tensor does not pass from unit to unit as in the probe.
        """
        collected: list[Taken] = []
        handed: list[Tensor] = []
        poisons: list[_Poison] = []
        templates = self.templates(inputs)

        def answer(index: int, taken: Taken) -> Any:
            entering = self._entering(index, taken, len(collected), handed)
            link = self.links[index]
            collected.append(put(taken, link.slots.union(link.earlier), None))
            if index == 0:
                handed.append(entering)
                poisons.append(_Poison(entering, blank))
            if index == self.stop_at - 1:
                raise _Stop
            leaving = templates[index].hidden_for(entering, blank=blank)
            handed.append(leaving)
            return templates[index].fill(leaving, taken, self._beside(index, taken))

        with torch.inference_mode(False), torch.no_grad(), self.answered(answer, ahead=ahead):
            try:
                self.forward(inputs)
            except _Stop:
                return handed[0], tuple(collected)
            finally:
                for poison in poisons:
                    poison.undo()
        raise TrunkError(f"found {len(collected)} calls of units, expected {self.stop_at}: another path on this input")

    def _entering(self, index: int, taken: Taken, expected: int, handed: list[Tensor]) -> Tensor:
        link = self.links[index]
        entering = at(taken, min(link.slots, key=str))
        if not isinstance(entering, Tensor) or index != expected or (handed and entering is not handed[-1]):
            raise TrunkError(f"{link.name}: the hidden tensor does not reach it untouched; the chain breaks here")
        return entering

    def _beside(self, index: int, taken: Taken) -> Any:
        """Return a real output of a link that hands on more than the hidden tensor, made from a blank one."""
        if index not in self.rebuilt:
            return None
        slots = self.links[index].slots
        entering = at(taken, min(slots, key=str))
        return self.real(index, put(taken, slots, torch.zeros_like(entering)))

    def end_with(
        self,
        inputs: Inputs,
        final: Tensor,
        *,
        blank: float | None = None,
        ahead: int = 0,
        instead: Instead = _NOTHING,
    ) -> Any:
        """Run the model without its units, the last of them returning `final`; return the model's output.

        With `blank`, that value also stands for what the units return and for what the first takes. `instead` is as in
        `answered`.
        """
        templates = self.templates(inputs)
        poisons: list[_Poison] = []

        def answer(index: int, taken: Taken) -> Any:
            entering = at(taken, min(self.links[index].slots, key=str))
            if index == 0:
                poisons.append(_Poison(entering, blank))
            if index == len(self.links) - 1:
                return templates[index].fill(final, taken, None)
            leaving = templates[index].hidden_for(entering, blank=blank)
            return templates[index].fill(leaving, taken, self._beside(index, taken))

        try:
            with self.answered(answer, ahead=ahead, instead=instead):
                return self.forward(inputs)
        finally:
            for poison in poisons:
                poison.undo()


class _Poison:
    """Writes a value over a tensor that the model may use again on a path around the units, until undone.

    It is undone since the tensor may be the caller's input or a weight.
    """

    def __init__(self, tensor: Tensor, value: float | None) -> None:
        self.tensor = tensor
        overlaps = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
        self.before: Tensor | None = None
        if value is not None and not overlaps:
            self.before = tensor.detach().clone()
            with torch.no_grad():
                tensor.fill_(value)

    def undo(self) -> None:
        """Write back what the tensor held."""
        if self.before is not None:
            with torch.no_grad():
                self.tensor.copy_(self.before)


def signature_of(inputs: Inputs) -> tuple[Any, ...]:
    """Return the names, shapes (without the batch) and types of inputs."""
    return tuple((name, tuple(t.shape[1:]), t.dtype) for name, t in inputs.items())
