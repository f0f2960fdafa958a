"""How many tokens of a text a model takes: its configuration's limit, its table of positions, its tokenizer's limit."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

_LIMITS = (
    "max_position_embeddings", "max_encoder_position_embeddings", "n_positions", "max_seq_len", "max_seq_length",
    "max_sequence_length", "seq_length", "n_ctx",
)  # fmt: skip
_TABLE = re.compile(r"(text_)?pos(ition)?(s|al)?(_?emb\w*)?|embed_pos(ition)?s?|wpe")
_UNLIMITED = 10**9  # tokenizers without a limit say 1e30


def declared_length(config: Any) -> int | None:
    """Return the number of positions that a configuration names; None where it names none."""
    named = [getattr(config, name, None) for name in _LIMITS]
    return next((n for n in named if isinstance(n, int) and n > 0), None)


def longest_text(model: Any) -> int | None:
    """Return how many tokens a model takes at most; None where it has no limit.

    Relative and rotary positions have no table, and their configuration's limit counts. In a table whose first rows are
    the padding's (of RoBERTa and its kin, positions begin after `padding_idx`) that many fewer fit.

    Args:
        model: a transformers model, or a part of one.
    """
    declared = declared_length(model.config)
    rows = min(_rows_of_tables(model), default=None)
    if rows is None or (declared is not None and declared <= rows):
        return declared
    if declared is not None and _takes(model, declared):  # a table that is not used as its name says
        return declared
    return rows


def shorter(longest: int | None, tokenizer: Any) -> int | None:
    """Return the smaller of a model's limit and its tokenizer's; None where neither has one."""
    limits = (longest, getattr(tokenizer, "model_max_length", None))
    return min((int(n) for n in limits if isinstance(n, int | float) and 0 < n < _UNLIMITED), default=None)


def set_padding(tokenizer: Any, model: Any) -> None:
    """Give a tokenizer without a token for padding, or with one that the model has no row for, one of the model's.

    What stands at padded places changes nothing, since they are masked; but it is looked up.
    """
    rows = _vocabulary(model) or len(tokenizer)
    own = [getattr(model.config, "pad_token_id", None), tokenizer.eos_token_id, tokenizer.unk_token_id, 0]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        token = next(n for n in own if isinstance(n, int) and 0 <= n < min(rows, len(tokenizer)))
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)


def _vocabulary(model: Any) -> int | None:
    """Return how many tokens a model has rows for; None where it does not say."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):  # a model's own code need not know where they are
        named = getattr(model.config, "vocab_size", None)
        return named if isinstance(named, int) else None


def _rows_of_tables(model: nn.Module) -> list[int]:
    """Return how many tokens each table of positions has rows for."""
    found = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if _TABLE.fullmatch(name.rpartition(".")[2]) and isinstance(weight, Tensor) and weight.ndim == 2:
            padding = getattr(module, "padding_idx", None)
            ahead = padding + 1 if isinstance(padding, int) else int(getattr(module, "offset", 0) or 0)
            found.append(weight.shape[0] - ahead)
    for name, table in model.named_parameters():
        if _TABLE.fullmatch(name.rpartition(".")[2]) and (table.ndim == 2 or (table.ndim == 3 and len(table) == 1)):
            found.append(table.shape[-2])
    return [rows for rows in found if rows > 0]


def _takes(model: Any, length: int) -> bool:
    """Say whether a text of so many tokens, none of which is padding, runs."""
    padding = getattr(model.config, "pad_token_id", None)
    token = next(n for n in (3, 4) if n != padding) % (_vocabulary(model) or 5)
    ids = torch.full((1, length), token)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:  # whatever the model's own code raises
        return False
    return True
