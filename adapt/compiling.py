"""Encoders whose units run through torch.compile, each unit's code made for it when it first runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..extract.encoders import Encoder
from .tuned import with_modules

CompiledUnits = dict[int, tuple[nn.Module, Any]]  # by the id of the module: it, so that its id stays its own; compiled


def compiled_encoder(encoder: Encoder, made: CompiledUnits, **options: Any) -> Encoder:
    """An encoder that runs its units compiled; embedding, context and finish stay as they are.

    Args:
        encoder: left as it is.
        made: what was compiled before, and is compiled here: a module in it is not compiled again.
        options: of torch.compile.
    """
    modules: Mapping[int, nn.Module] = {i: link.module for i, link in enumerate(encoder.trunk.links)}
    for module in modules.values():
        if id(module) not in made:
            made[id(module)] = (module, torch.compile(module, **options))
    return with_modules(encoder, {i: made[id(m)][1] for i, m in modules.items()})
