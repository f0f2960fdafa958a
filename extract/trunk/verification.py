"""The proof that a trunk may be cut: its pieces equal the encoder's own forward, bit for bit, with nothing hidden.

Three batches are used, all other than the probe's. On the first, embed, run and finish must equal the whole forward.
On the second, the true forward runs with noise added to the hidden tensor before every unit and after the last; the
pieces, given the same noisy tensors one at a time and last unit first, must give the same, while the context was
rebuilt without the large inputs and everything that is not handed over is NaN. Between the two the model runs on a
third batch, so that what a unit may have kept for itself is stale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TrunkError
from .forward_patching import Inputs, signature_of
from .tracing import Call, Path, Taken, at, put, record, release, tensors
from .trunk import Trunk, backbone_parameters
from .unit_chain import find_chains
from .unit_links import Chain

_NAN = float("nan")
_MAX_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was proven of a trunk.

    Attributes:
        num_boundaries: at every one of them the pieces equal the whole, bit for bit.
        share: the part of the backbone's parameters that the units hold.
        aside: parts of the output that a restored state cannot give (the embedding alone decides them).
    """

    num_boundaries: int
    share: float
    aside: tuple[str, ...] = ()


def find_trunk(
    model: nn.Module,
    forward: Callable[[Inputs], Any],
    batch: Callable[[int], Inputs],
    excluded: Sequence[nn.Module] = (),
    backbone: Sequence[nn.Parameter] | None = None,
) -> tuple[Trunk, Proof]:
    """Find the trunk of a model and prove it; of several chains, the best one that passes.

    Args:
        model: frozen, in eval mode.
        forward: runs it on a dict of inputs.
        batch: makes one of four batches of different content (0 is the probe, 1 to 3 are the proof's).
        excluded: modules in which no unit may lie (a classifier).
        backbone: the parameters that the units' share is taken of; None for all but classifier and embedding tables.

    Raises:
        TrunkError: no chain, or none that passes; the message is that of the best one.
    """
    probe = batch(0)
    root, _ = record(model, lambda: forward(probe))
    try:
        return _first_proven(model, forward, probe, [batch(seed) for seed in (1, 2, 3)], root, excluded, backbone)
    finally:
        release(root)


def _first_proven(
    model: nn.Module,
    forward: Callable[[Inputs], Any],
    probe: Inputs,
    fresh: Sequence[Inputs],
    root: Call,
    excluded: Sequence[nn.Module],
    backbone: Sequence[nn.Parameter] | None,
) -> tuple[Trunk, Proof]:
    whole = backbone_parameters(model, excluded) if backbone is None else backbone
    small = [name for name, t in probe.items() if not t.is_floating_point()]
    chains = find_chains(model, root, whole, excluded)
    tries = [(chain, *way) for chain in chains for way in _variants(chain, small, list(probe))]
    refusals: list[str] = []
    for chain, names, everything in tries[:_MAX_TRIES]:
        trunk = Trunk(model, forward, probe, chain, context_names=names, rebuild_all=everything)
        try:
            return trunk, prove(trunk, fresh)
        except TrunkError as error:
            refusals.append(str(error))
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:160]
            refusals.append(f"the pass without units fails: {type(error).__name__}: {reason}")
    if draws(forward, probe):
        raise TrunkError(f"{type(model).__name__}: its own forward gives another result each time; it draws at random")
    raise TrunkError(f"{type(model).__name__}: {refusals[0]}")


def draws(forward: Callable[[Inputs], Any], inputs: Inputs) -> bool:
    """Say whether a forward gives another result for the same inputs."""
    with torch.no_grad():
        first, again = dict(tensors(forward(inputs))), dict(tensors(forward(inputs)))
    return any(not _equal(again.get(path), tensor) for path, tensor in first.items())


def _variants(chain: Chain, small: list[str], names: list[str]) -> list[tuple[list[str], bool]]:
    """Return the ways to rebuild the context: from small inputs, units running for what they hand on, all inputs."""
    ways = [(small, False)]
    if chain.handing(everything=True) != chain.handing():
        ways.append((small, True))
    return ways if names == small else [*ways, (names, False)]


def prove(trunk: Trunk, batches: Sequence[Inputs]) -> Proof:
    """Prove `trunk` on three batches, as the head of this file says; fill in `trunk.aside`.

    Raises:
        TrunkError: where a piece differs from the encoder's own forward.
    """
    plain, noisy, other = batches
    with torch.inference_mode(False), torch.no_grad():
        aside = _prove_noisy(trunk, noisy, other)
        trunk.aside = frozenset(aside)
        trunk.skip_ahead()
        whole = trunk.forward(plain)
        hidden, context = trunk.embed(plain)
        states = [hidden]
        for k in range(trunk.num_units):
            states.append(trunk.run(states[-1], context, k, k + 1))
        _same(trunk.run(hidden, context, 0, trunk.num_units), states[-1], "run(0, n), against one unit at a time,")
        _same(trunk.finish(states[-1], context), whole, "embed, run, finish")
    names = tuple(".".join(map(str, path)) for path in sorted(aside, key=str))
    return Proof(num_boundaries=trunk.num_units + 1, share=trunk.share, aside=names)


def _prove_noisy(trunk: Trunk, inputs: Inputs, other: Inputs) -> set[Path]:
    """Run the second part of the proof; return the parts of the output that the embedding alone decides."""
    small = {name: inputs[name] for name in trunk.context_names}
    first = next(iter(inputs.values()))
    context = trunk.context(small, first.shape[0], signature_of(inputs), first.device, blank=_NAN)
    for link, taken in zip(trunk.links, context.calls, strict=True):
        if any(t.is_floating_point() and bool(t.isnan().any()) for _, t in tensors(taken)):
            raise TrunkError(f"{link.name} takes, beside the hidden tensor, what an earlier unit or the raw input made")
    quiet = dict(tensors(trunk.forward(inputs)))
    entering, leaving, final, output = _noisy_forward(trunk, inputs)
    for k, hidden in enumerate([*entering, final]):
        if hidden.shape[0] != first.shape[0] or trunk.hidden_shapes[k][0] != trunk.probe_batch:
            raise TrunkError(
                f"boundary {k}: the hidden tensor has shape {tuple(hidden.shape)} for {first.shape[0]} items; "
                "expected them along its first axis"
            )
    trunk.forward(other)
    for k in reversed(range(trunk.num_units)):
        before = entering[k].clone()
        name = trunk.links[trunk.bounds[k]].name
        _same(trunk.run(entering[k], context, k, k + 1), leaving[k], f"unit {k} ({name}) on a state of its own")
        _same(entering[k], before, f"the state given to unit {k} ({name}), after it ran,")
    ours = dict(tensors(trunk.finish(final, context, blank=_NAN)))
    aside = set()
    for path, expected in dict(tensors(output)).items():
        if _equal(ours.get(path), expected):
            continue
        if not _equal(quiet[path], expected):
            place = ".".join(map(str, path)) or "the output"
            raise TrunkError(f"finish differs at {place}: it uses more than the last unit's result")
        aside.add(path)
    if len(aside) == len(quiet):
        raise TrunkError("the output does not depend on the units")
    return aside


def _noisy_forward(trunk: Trunk, inputs: Inputs) -> tuple[list[Tensor], list[Tensor], Tensor, Any]:
    """Run the true forward with noise before every unit and after the last; return what each took and gave."""
    noise = torch.Generator().manual_seed(0)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    hidden: dict[int, Tensor] = {}
    starts, ends = set(trunk.bounds[:-1]), {b - 1 for b in trunk.bounds[1:]}
    last = len(trunk.links) - 1

    def stir(tensor: Tensor) -> Tensor:
        drawn = torch.randn(tensor.shape, generator=noise).to(tensor)
        return tensor + drawn * tensor.abs().mean().clamp_min(1e-3)

    def answer(index: int, taken: Taken) -> Any:
        link = trunk.links[index]
        hidden[index] = at(taken, min(link.slots, key=str))
        if index in starts:
            hidden[index] = stir(hidden[index])
            entering.append(hidden[index].clone())
            taken = put(taken, link.slots, hidden[index])
        for path, earlier in link.earlier.items():
            taken = put(taken, frozenset([path]), hidden[earlier])
        returned = trunk.passes.real(index, taken)
        if index in ends:
            given = at(returned, min(link.exit, key=str))
            leaving.append(given.clone())
            if index == last:
                leaving.append(stir(given))
                returned = put(returned, link.exit, leaving[-1].clone())
        return returned

    with trunk.passes.answered(answer):
        output = trunk.forward(inputs)
    return entering, leaving[:-1], leaving[-1], output


def _equal(found: Any, expected: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.equal(found, expected)


def _same(found: Any, expected: Any, what: str) -> None:
    ours = dict(tensors(found))
    for path, tensor in tensors(expected):
        if not _equal(ours.get(path), tensor):
            place = f" at {'.'.join(map(str, path))}" if path else ""
            raise TrunkError(f"{what} differs from the model's own forward{place}")
