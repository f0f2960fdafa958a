"""Short windows of sound for encoders trained on long ones: position tables cut as the encoder would use them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..cache.errors import SettingsError
from .preprocess import AudioPreprocess


def fit_window(model: Any, extractor: Any, window_seconds: float | None) -> tuple[AudioPreprocess, list[str]]:
    """Make `model` and `extractor` take windows of `window_seconds`; return the preprocessing and what was changed.

    Where the extractor pads to a fixed length (Whisper: 30 s), that length becomes the window's, and the table of
    learned or sinusoidal positions keeps its first rows, which are the ones that a window starting at 0 would use.
    A window that is no whole number of positions is padded with silence to the next one.

    Raises:
        SettingsError: a window that is not positive or longer than the encoder takes.
    """
    longest = float(getattr(extractor, "chunk_length", 0) or 0) or None
    seconds = longest or 10.0 if window_seconds is None else float(window_seconds)
    if seconds <= 0 or (longest is not None and seconds > longest):
        raise SettingsError(
            f"window_seconds: found {seconds:g}, expected more than 0 and at most {longest or float('inf'):g}"
        )
    positions = getattr(model.config, "max_source_positions", None)
    table = getattr(model, "embed_positions", None)
    if longest is None or positions is None or not isinstance(table, nn.Embedding):
        return AudioPreprocess(extractor, window_seconds=seconds), []
    samples_each = round(extractor.n_samples / positions)  # samples that one position stands for
    kept = -(-round(seconds * extractor.sampling_rate) // samples_each)
    if kept == positions:
        return AudioPreprocess(extractor, window_seconds=seconds), []
    short = nn.Embedding(kept, table.embedding_dim)
    short.weight = nn.Parameter(table.weight.detach()[:kept].clone())
    model.embed_positions = short
    model.max_source_positions = model.config.max_source_positions = kept
    extractor.n_samples = kept * samples_each
    extractor.chunk_length = extractor.n_samples / extractor.sampling_rate
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
    note = f"positions: the first {kept} of {positions}"
    return AudioPreprocess(extractor, window_seconds=seconds), [note]
