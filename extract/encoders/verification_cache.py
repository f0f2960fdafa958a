"""Proofs kept in the user's cache folder, so that a model is proven once on a machine and not at every load.

The key digests everything that a proof depends on: class, configuration, every weight, shapes of the inputs, data type,
device kind, and the versions of torch, transformers, timm and of the proof itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from ...cache.atomic_io import make_folder, write_file
from ...cache.format.digests import digest_json
from ..trunk.forward_patching import Inputs, signature_of
from ..trunk.tracing import record, release
from ..trunk.trunk import Trunk, backbone_parameters
from ..trunk.unit_chain import find_chains
from ..trunk.unit_links import Chain
from ..trunk.verification import Proof, find_trunk
from .cache_folder import cache_folder
from .peft_weights import tuner_settings
from .software import version

_VERSION = 3


def proven_trunk(
    model: nn.Module,
    forward: Callable[[Inputs], Any],
    batch: Callable[[int], Inputs],
    excluded: Sequence[nn.Module],
    backbone: Sequence[nn.Parameter] | None,
    config: dict[str, Any],
    weights: Mapping[str, str],
) -> tuple[Trunk, Proof]:
    """Return the trunk of a model and its proof, kept from before or made now.

    Args:
        model, forward, batch, excluded, backbone: as for `find_trunk`.
        config: what of the configuration and the code the model's forward depends on (JSON).
        weights: the digest of every weight by name.
    """
    probe = batch(0)
    path = cache_folder() / "proofs" / f"{_key(model, config, probe, weights)}.json"
    known = _read(path)
    if known is not None:
        found = _again(model, forward, probe, excluded, backbone, known)
        if found is not None:
            return found
    trunk, proof = find_trunk(model, forward, batch, excluded, backbone)
    _write(path, _account(trunk, proof))
    return trunk, proof


def _key(model: nn.Module, config: dict[str, Any], probe: Inputs, weights: Mapping[str, str]) -> str:
    libraries = {name: version(name) for name in ("torch", "transformers", "timm")}
    device = next(iter(probe.values())).device.type
    shapes = [[name, list(shape), str(dtype)] for name, shape, dtype in signature_of(probe)]
    kind = type(model).__qualname__
    dtype = str(next(model.parameters()).dtype)
    tuned = tuner_settings(model)
    return digest_json([_VERSION, kind, config, sorted(weights.items()), tuned, shapes, dtype, device, libraries])


def _account(trunk: Trunk, proof: Proof) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "links": [[link.name, link.ordinal] for link in trunk.links],
        "context_names": list(trunk.context_names),
        "rebuild_all": trunk.rebuild_all,
        "aside": [list(path) for path in sorted(trunk.aside, key=str)],
        "num_boundaries": proof.num_boundaries,
    }


def _again(
    model: nn.Module,
    forward: Callable[[Inputs], Any],
    probe: Inputs,
    excluded: Sequence[nn.Module],
    backbone: Sequence[nn.Parameter] | None,
    known: dict[str, Any],
) -> tuple[Trunk, Proof] | None:
    """Build the trunk that was proven before; None where the model does not show the same chain."""
    root, _ = record(model, lambda: forward(probe))
    whole = backbone_parameters(model, excluded) if backbone is None else backbone
    try:
        for chain in find_chains(model, root, whole, excluded):
            if [[link.name, link.ordinal] for link in chain.links] == known["links"]:
                return _trunk_as_known(model, forward, probe, chain, known)
    finally:
        release(root)
    return None


def _trunk_as_known(
    model: nn.Module, forward: Callable[[Inputs], Any], probe: Inputs, chain: Chain, known: dict[str, Any]
) -> tuple[Trunk, Proof]:
    names, everything = known["context_names"], known["rebuild_all"]
    trunk = Trunk(model, forward, probe, chain, context_names=names, rebuild_all=everything)
    trunk.aside = frozenset(tuple(path) for path in known["aside"])
    trunk.skip_ahead()
    aside = tuple(".".join(map(str, path)) for path in known["aside"])
    return trunk, Proof(num_boundaries=known["num_boundaries"], share=chain.share, aside=aside)


def _read(path: Path) -> dict[str, Any] | None:
    """Return a kept proof; None where there is none that can be used (it is then made again)."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(known, dict) and known.get("version") == _VERSION
    return known if complete and {"links", "context_names", "rebuild_all", "aside"} <= set(known) else None


def _write(path: Path, account: dict[str, Any]) -> None:
    """Keep a proof; a cache folder that cannot be written costs time at the next load, nothing else."""
    with suppress(OSError):
        make_folder(path.parent)
        write_file(path, json.dumps(account).encode())
