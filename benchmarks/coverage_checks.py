"""What the coverage table measures of a cut model beside its own forward: boundaries, finish, gradient, batch noise.

The trunk's proof and its passes are not used for the model's side: its own forward is watched and left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from talik.extract.trunk.forward_patching import signature_of
from talik.extract.trunk.state import Context
from talik.extract.trunk.tracing import at, tensors
from talik.extract.trunk.trunk import Trunk

Inputs = dict[str, Tensor]
Seen = Callable[[int, Tensor], None]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""The largest difference that counts as equal, relative to the largest value of the tensor that is compared with."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one trunk.

    Attributes:
        num_exact: boundaries at which a state, run on from there by itself, is bit for bit the model's own.
        finish: whether `finish` gives the model's own output bit for bit.
        gradient: largest difference between the gradients at any boundary, through the suffix and through the model.
        gradient_dtype: "float64", or "float32" where a kernel of the model has no float64.
        noise_own: largest difference of the model's own hidden tensors, an item alone and in a padded batch.
        noise_ours: the same of the trunk's states, and of its output for states made alone and padded together.
    """

    num_exact: int
    finish: bool
    gradient: float
    gradient_dtype: str
    noise_own: float
    noise_ours: float


def measure_trunk(trunk: Trunk, batches: list[Inputs]) -> Measured:
    """Measure a trunk on two batches that it was neither found nor proven with; the model is left in float32."""
    first, second = batches[4:6]  # 0 is the probe, 1 to 3 are the proof's
    num_exact, finish = exactness(trunk, second, first)
    own, ours = batch_noise(trunk, first)
    gradient, dtype = gradient_error(trunk, first)
    name = str(dtype).removeprefix("torch.")
    return Measured(
        num_exact=num_exact, finish=finish, gradient=gradient, gradient_dtype=name, noise_own=own, noise_ours=ours
    )


@contextmanager
def watched(trunk: Trunk, seen: Seen) -> Iterator[None]:
    """Call `seen(k, hidden)` at each boundary k that the model's own forward passes while this is open."""
    ends = {b - 1: k + 1 for k, b in enumerate(trunk.bounds[1:])}
    own = {id(trunk.links[i].module): trunk.links[i].module for i in (0, *ends)}
    kept = {key: module.__dict__.get("forward") for key, module in own.items()}

    def watch(module: nn.Module) -> None:
        original = module.forward  # some models call it without the module's hooks
        mine = {trunk.links[i].ordinal: i for i in (0, *ends) if trunk.links[i].module is module}
        ordinals = count()

        def forward(*args: Any, **kwargs: Any) -> Any:
            index = mine.get(next(ordinals), -1)
            if index == 0:
                seen(0, at((args, kwargs), min(trunk.links[0].slots, key=str)))
            output = original(*args, **kwargs)
            if index in ends:
                seen(ends[index], at(output, min(trunk.links[index].exit, key=str)))
            return output

        module.__dict__["forward"] = forward

    try:
        for module in own.values():
            watch(module)
        yield
    finally:
        for key, module in own.items():
            del module.__dict__["forward"]
            if kept[key] is not None:
                module.__dict__["forward"] = kept[key]


def own_states(trunk: Trunk, inputs: Inputs) -> tuple[list[Tensor], Any]:
    """Return the hidden tensors at all boundaries of the model's own forward, and its output."""
    found: dict[int, Tensor] = {}

    def keep(k: int, hidden: Tensor) -> None:
        found[k] = hidden.clone()  # a later unit may write into it

    with torch.no_grad(), watched(trunk, keep):
        output = trunk.forward(inputs)
    return [found[k] for k in range(trunk.num_units + 1)], output


def restored(trunk: Trunk, inputs: Inputs) -> Context:
    """Return the context that a stored state of these inputs is run with: made from the small inputs alone."""
    first = next(iter(inputs.values()))
    small = {name: inputs[name] for name in trunk.context_names}
    return trunk.context(small, first.shape[0], signature_of(inputs), first.device)


def known(trunk: Trunk, output: Any) -> list[Tensor]:
    """Return the tensors of an output that a restored state gives (all but those the embedding alone decides)."""
    return [t for path, t in tensors(output) if path not in trunk.aside]


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def exactness(trunk: Trunk, inputs: Inputs, other: Inputs) -> tuple[int, bool]:
    """Return the number of boundaries from which the suffix replays the model's own hidden tensors, and the finish.

    The model runs on `other` in between, so that what it may have kept for itself is stale. From every boundary the
    next is reached; from the first and the middle one the whole suffix is run in one call.
    """
    last = trunk.num_units
    states, output = own_states(trunk, inputs)
    whole = known(trunk, output)
    exact = []
    with torch.no_grad():
        trunk.forward(other)
        context = restored(trunk, inputs)
        for k in range(last):
            exact.append(torch.equal(trunk.run(states[k], context, k, k + 1), states[k + 1]))
        exact.append(torch.equal(trunk.embed(inputs)[0], states[0]))
        for k in (0, last // 2):
            exact[k] &= torch.equal(trunk.run(states[k], context, k, last), states[last])
        finish = _same(known(trunk, trunk.finish(states[last], context)), whole)
    return sum(exact), finish


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel() or torch.equal(found, expected):
        return 0.0
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(1e-30))


def gradient_error(trunk: Trunk, inputs: Inputs) -> tuple[float, torch.dtype]:
    """Return the largest difference of gradients at any boundary, and the type it was found in (see `Measured`)."""
    try:
        trunk.model.double()
        exact = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
        error = _gradient_error(trunk, exact)
        if error == error:  # NaN: the model's own gradient is none in float64
            return error, torch.float64
    except RuntimeError as error:  # a kernel, or a constant of the model's code, that is float32 only
        if not any(word in str(error) for word in ("dtype", "type", "Double", "Float")):
            raise
    finally:
        trunk.model.float()
    return _gradient_error(trunk, inputs), torch.float32


def _gradient_error(trunk: Trunk, inputs: Inputs) -> float:
    values, theirs, weights = own_gradients(trunk, inputs)
    last = trunk.num_units
    states = [values[0].requires_grad_()]
    context = restored(trunk, inputs)
    for k in range(last):
        states.append(trunk.run(states[-1], context, k, k + 1))
    ours = torch.autograd.grad(_loss(trunk, trunk.finish(states[-1], context), weights), states)
    errors = [_error(a, b) for a, b in zip(ours, theirs, strict=True)]
    middle = values[last // 2].detach().requires_grad_()
    output = trunk.finish(trunk.run(middle, context, last // 2, last), context)
    (alone,) = torch.autograd.grad(_loss(trunk, output, weights), middle)
    return sum(errors) if any(e != e for e in errors) else max(*errors, _error(alone, theirs[last // 2]))


def own_gradients(trunk: Trunk, inputs: Inputs) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the hidden tensor and the loss's gradient at every boundary of the model's own forward, and the weights.

    Nothing is replaced: the graph begins before the units, and the places in it are noted as the forward passes them
    (a unit may write into its input later). The loss is the sum of the output's values, each times a random weight.
    """
    values: dict[int, Tensor] = {}
    places: dict[int, Any] = {}

    def note(k: int, hidden: Tensor) -> None:
        values[k] = hidden.detach().clone()
        places[k] = get_gradient_edge(hidden)

    inside = {id(p) for link in trunk.links for p in link.module.parameters()}
    ahead = [p for p in trunk.model.parameters() if id(p) not in inside and p.is_floating_point()]
    moving = {n: t.clone().requires_grad_() * 1 if t.is_floating_point() else t for n, t in inputs.items()}
    try:
        for parameter in ahead:
            parameter.requires_grad_()
        with watched(trunk, note):
            output = trunk.forward(moving)
    finally:
        for parameter in ahead:
            parameter.requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=random).to(t) for t in _floating(trunk, output)]
    order = [places[k] for k in range(trunk.num_units + 1)]
    gradients = torch.autograd.grad(_loss(trunk, output, weights), order)
    return [values[k] for k in range(trunk.num_units + 1)], list(gradients), weights


def _floating(trunk: Trunk, output: Any) -> list[Tensor]:
    return [t for t in known(trunk, output) if t.is_floating_point()]


def _loss(trunk: Trunk, output: Any, weights: list[Tensor]) -> Tensor:
    terms = [(t * w).sum() for t, w in zip(_floating(trunk, output), weights, strict=True)]
    return torch.stack([term for term in terms if term.requires_grad]).sum()


def batch_noise(trunk: Trunk, inputs: Inputs) -> tuple[float, float]:
    """Return how far an item alone, without padding, lies from itself in the batch: the model's own, and the trunk's.

    The trunk's is the larger of two: its states at every boundary, and the last one where the suffix runs on states of
    the middle boundary that were made alone and padded together with zeros, as stored ones are.
    """
    own_batch, our_batch = own_states(trunk, inputs)[0], states_of(trunk, inputs)
    axes = find_axes(trunk, inputs)
    middle = trunk.num_units // 2
    joined = torch.zeros_like(our_batch[middle])
    own, ours = [], []
    for item in range(next(iter(inputs.values())).shape[0]):
        alone, length = taken_alone(inputs, item)
        own_alone, our_alone = own_states(trunk, alone)[0], states_of(trunk, alone)
        for mine, single, whole in ((own, own_alone, own_batch), (ours, our_alone, our_batch)):
            mine += [_item_error(a, b, item, length, x) for a, b, x in zip(single, whole, axes, strict=True)]
        place = [slice(size) for size in our_alone[middle].shape]
        place[axes[middle].batch] = slice(item, item + 1)
        joined[tuple(place)] = our_alone[middle]
    with torch.no_grad():
        end = trunk.run(joined, restored(trunk, inputs), middle, trunk.num_units)
    for item in range(next(iter(inputs.values())).shape[0]):
        alone, length = taken_alone(inputs, item)
        ours.append(_item_error(own_states(trunk, alone)[0][-1], end, item, length, axes[-1]))
    return max(own), max(ours)


def states_of(trunk: Trunk, inputs: Inputs) -> list[Tensor]:
    """Return the trunk's hidden tensors at all boundaries."""
    with torch.no_grad():
        hidden, context = trunk.embed(inputs)
        states = [hidden]
        for k in range(trunk.num_units):
            states.append(trunk.run(states[-1], context, k, k + 1))
    return states


def taken_alone(inputs: Inputs, item: int) -> tuple[Inputs, int | None]:
    """Return one item of a batch without its padding, and its length (None where nothing can be padded)."""
    mask = next((inputs[name] for name in ("attention_mask", "pixel_attention_mask") if name in inputs), None)
    if mask is None:
        return {name: t[item : item + 1] for name, t in inputs.items()}, None
    length, whole = int(mask[item].sum()), mask.shape[1]
    return {
        name: t[item : item + 1, :length] if t.ndim > 1 and t.shape[1] == whole else t[item : item + 1]
        for name, t in inputs.items()
    }, length


@dataclass(frozen=True)
class Axes:
    """Which axes of a hidden tensor are the batch, and the tokens where the number of them depends on the input."""

    batch: int
    tokens: int | None


def find_axes(trunk: Trunk, inputs: Inputs) -> list[Axes]:
    """Return the axes at every boundary, seen in the shapes that the first item has alone and in the batch."""
    num = next(iter(inputs.values())).shape[0]
    alone, _ = taken_alone(inputs, 0)
    found = []
    for single, whole in zip(own_states(trunk, alone)[0], own_states(trunk, inputs)[0], strict=True):
        pairs = list(enumerate(zip(single.shape, whole.shape, strict=True)))
        batch = next(axis for axis, sizes in pairs if sizes == (1, num))
        found.append(Axes(batch, next((axis for axis, (a, b) in pairs if axis != batch and a != b), None)))
    return found


def _item_error(alone: Tensor, whole: Tensor, item: int, length: int | None, axes: Axes) -> float:
    """Return how far one item alone is from item `item` of the batch, over its real tokens."""
    one, batch = alone.select(axes.batch, 0), whole.select(axes.batch, item)
    if length is not None:
        tokens = 1 if axes.tokens is None else axes.tokens  # the model itself pads to a multiple: (B, N, D)
        axis = tokens - (tokens > axes.batch)
        real = min(one.shape[axis], length)
        one, batch = one.narrow(axis, 0, real), batch.narrow(axis, 0, real)
    return _error(one, batch)
