"""From waveforms and texts to an encoder's inputs, as its own processor would (frames: `image_preprocess.py`).

Letters: N items (B*T), S samples, L tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SettingsError
from .image_preprocess import ImagePreprocess as ImagePreprocess  # sources of models of one's own import it from here


class Preprocess(Protocol):
    """Turns raw items into the encoder's inputs (each with the batch first), and says all that this depends on."""

    def __call__(self, raw: Any) -> dict[str, Tensor]:
        """Return the inputs of raw items."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return a JSON-able account of every setting that the result depends on."""
        ...


class AudioPreprocess:
    """Run a transformers feature extractor on windows of sound."""

    def __init__(self, extractor: Any, *, window_seconds: float, call: Mapping[str, Any] | None = None) -> None:
        self.extractor = extractor
        self.sample_rate_hz = int(extractor.sampling_rate)
        self.window_seconds = window_seconds
        self.call = dict(call or {})

    def __call__(self, raw: NDArray[np.float32] | Tensor) -> dict[str, Tensor]:
        """Return the extractor's features of waveforms (N, S) float32 in [-1, 1] at `sample_rate_hz`."""
        waves = np.asarray(raw, dtype=np.float32)
        if waves.ndim != 2:
            raise SettingsError(
                f"waveforms: found shape {waves.shape}, expected (N, S) float32 at {self.sample_rate_hz} Hz"
            )
        try:
            features = self.extractor(list(waves), sampling_rate=self.sample_rate_hz, return_tensors="pt", **self.call)
        except Exception as error:  # whatever the extractor's own code raises
            seconds, reason = waves.shape[1] / self.sample_rate_hz, " ".join(str(error).split())[:160]
            raise SettingsError(
                f"window_seconds: {type(self.extractor).__name__} fails on a window of {seconds:g} s "
                f"({type(error).__name__}: {reason}); expected a longer one"
            ) from None
        found = {name: torch.as_tensor(value) for name, value in features.items()}
        if "is_longer" in found:  # CLAP's marks one of a batch of short sounds by chance; no window is longer
            found["is_longer"] = torch.zeros_like(found["is_longer"], dtype=torch.bool)
        return found

    def describe(self) -> dict[str, Any]:
        """Return the extractor's class and settings, and the window."""
        settings = {k: v for k, v in self.extractor.to_dict().items() if isinstance(v, bool | int | float | str | None)}
        for name in ("processor_class", "_processor_class", "name_or_path"):
            settings.pop(name, None)
        return {"kind": "audio", "window_seconds": self.window_seconds, "call": self.call, **settings}


_TOKENIZING = threading.Lock()  # a fast tokenizer keeps padding and truncation in itself while it runs


class TextPreprocess:
    """Run a transformers tokenizer; right padding to the longest text of the batch.

    Args:
        tokenizer: the model's own.
        max_length: tokens of a text that the model takes; None where there is no limit.
        declared_length: what the model's configuration names instead, where that is more than it takes.
        digest: of the tokenizer's class and content.
    """

    def __init__(
        self, tokenizer: Any, *, max_length: int | None, digest: str, declared_length: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.declared_length = max_length if declared_length is None else declared_length
        self.digest = digest

    def __call__(self, raw: Sequence[str]) -> dict[str, Tensor]:
        """Return {"input_ids", "attention_mask"}, each (N, L) int64; texts longer than `max_length` tokens are cut."""
        with _TOKENIZING:
            found = self.tokenizer(
                _texts(raw),
                padding=True,
                truncation=self.max_length is not None,
                max_length=self.max_length,
                padding_side="right",
                return_token_type_ids=False,
                return_attention_mask=True,
                return_tensors="pt",
            )
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    def token_names(self, text: str) -> list[str]:
        """Return the tokens of one text as strings, not cut at `max_length`."""
        with _TOKENIZING:
            found: list[str] = self.tokenizer.convert_ids_to_tokens(self.tokenizer(text)["input_ids"])
        return found

    def describe(self) -> dict[str, Any]:
        """Return the tokenizer's class, the digest of its vocabulary, and the cut.

        The cut is the declared one, since texts between the two never ran.
        """
        return {"kind": "text", "tokenizer": self.digest, "max_length": self.declared_length}


@dataclass(frozen=True, kw_only=True)
class BytePreprocess:
    """Bytes as tokens, for models made from a configuration alone, which have no tokenizer."""

    vocab_size: int
    max_length: int | None
    first: int = 3

    def __call__(self, raw: Sequence[str]) -> dict[str, Tensor]:
        """Return {"input_ids", "attention_mask"}, each (N, L) int64, padded with 0."""
        room = self.vocab_size - self.first
        rows = [
            [self.first + byte % room for byte in text.encode()][: self.max_length] or [self.first]
            for text in _texts(raw)
        ]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return {"kind": "bytes", **asdict(self)}


def _texts(raw: Sequence[str]) -> list[str]:
    if isinstance(raw, str) or not all(isinstance(text, str) for text in raw) or len(raw) == 0:
        raise SettingsError(f"texts: found {raw!r:.60}, expected a list of at least one str")
    return list(raw)
