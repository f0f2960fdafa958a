"""Short windows of sound for encoders trained on long ones: position tables cut as the encoder would use them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...errors import EncoderError, SettingsError
from .preprocess import AudioPreprocess

_FRAME_SECONDS, _HOP_SECONDS = 0.025, 0.01  # Kaldi's, which spectrogram transformers are fed by


def fit_window(model: Any, extractor: Any, window_seconds: float | None) -> tuple[AudioPreprocess, list[str]]:
    """Make `model` and `extractor` take windows of `window_seconds`; return the preprocessing and what was changed.

    Where the extractor pads to a fixed length, that length becomes the window's:

    - Whisper (30 s): the table of learned or sinusoidal positions keeps its first rows, which are the ones that a
      window starting at 0 would use. A window that is no whole number of positions is padded with silence to the next.
    - the Audio Spectrogram Transformer (10.24 s): the table of learned positions keeps the middle of its time axis, as
      its own code does for shorter sound (YuanGongND/ast, `ASTModel.__init__`).

    CLAP (10 s) has no table of positions to cut; its extractor fills the rest by repeating the window, as in training.
    Encoders without a fixed length (wav2vec 2.0, HuBERT) take the window as it is.

    Raises:
        SettingsError: a window that is not positive, or longer or shorter than the encoder takes.
        EncoderError: an extractor of CLAP's other configuration.
    """
    frames = _spectrogram_frames(model, extractor)
    longest = float(getattr(extractor, "chunk_length", 0) or getattr(extractor, "max_length_s", 0) or 0) or None
    if frames is not None:
        longest = (frames - 1) * _HOP_SECONDS + _FRAME_SECONDS
    usual = longest or 10.0 if frames is None else min(longest or 10.0, 10.0)
    seconds = usual if window_seconds is None else float(window_seconds)
    if seconds <= 0 or (longest is not None and seconds > longest):
        raise SettingsError(
            f"window_seconds: found {seconds:g}, expected more than 0 and at most {longest or float('inf'):g}"
        )
    audio = AudioPreprocess(extractor, window_seconds=seconds)
    if frames is not None:
        return audio, [] if window_seconds is None else _cut_spectrogram(model, extractor, seconds)
    if hasattr(extractor, "nb_max_samples"):
        _check_fusion(model, extractor)
        short = seconds < float(longest or 0)
        filled = f"windows of {seconds:g} s are filled up to {longest:g} s ({getattr(extractor, 'padding', 'pad')})"
        return audio, [filled] if short else []
    return audio, _cut_positions(model, extractor, seconds) if longest is not None else []


def _check_fusion(model: Any, extractor: Any) -> None:
    """Refuse CLAP's extractor of the other configuration: with and without fusion it has other mel bands.

    Windows are never longer than CLAP's, so that neither draws a part of one at random.
    """
    fused, truncation = getattr(model.config, "enable_fusion", None), getattr(extractor, "truncation", None)
    if fused is not None and bool(fused) != (truncation == "fusion"):
        expected = "fusion" if fused else "rand_trunc"
        raise EncoderError(
            f"{type(extractor).__name__}: truncation is {truncation!r}, expected {expected!r} for a model with "
            f"enable_fusion = {str(bool(fused)).lower()}: its bands are others; correct preprocessor_config.json"
        )


def _cut_positions(model: Any, extractor: Any, seconds: float) -> list[str]:
    positions = getattr(model.config, "max_source_positions", None)
    table = getattr(model, "embed_positions", None)
    if positions is None or not isinstance(table, nn.Embedding):
        return []
    samples_each = round(extractor.n_samples / positions)  # samples that one position stands for
    kept = -(-round(seconds * extractor.sampling_rate) // samples_each)
    if kept == positions:
        return []
    short = nn.Embedding(kept, table.embedding_dim)
    short.weight = nn.Parameter(table.weight.detach()[:kept].clone())
    model.embed_positions = short
    model.max_source_positions = model.config.max_source_positions = kept
    extractor.n_samples = kept * samples_each
    extractor.chunk_length = extractor.n_samples / extractor.sampling_rate
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
    return [f"positions: the first {kept} of {positions}"]


def _spectrogram_frames(model: Any, extractor: Any) -> int | None:
    """Return how many spectrogram frames the model takes, all at once; None for a model of another kind."""
    config, embeddings = model.config, getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    known = all(hasattr(config, name) for name in ("max_length", "num_mel_bins", "time_stride", "frequency_stride"))
    cuts = known and isinstance(table, nn.Parameter) and getattr(extractor, "max_length", None) == config.max_length
    return int(config.max_length) if cuts else None


def _cut_spectrogram(model: Any, extractor: Any, seconds: float) -> list[str]:
    config, table = model.config, model.embeddings.position_embeddings  # table: (1, prefix + frequencies · times, D)
    rate = extractor.sampling_rate
    frames = 1 + (round(seconds * rate) - round(_FRAME_SECONDS * rate)) // round(_HOP_SECONDS * rate)
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    before = (config.max_length - config.patch_size) // config.time_stride + 1
    kept = (frames - config.patch_size) // config.time_stride + 1
    if frames < config.patch_size:
        least = (config.patch_size - 1) * _HOP_SECONDS + _FRAME_SECONDS
        raise SettingsError(f"window_seconds: found {seconds:g}, expected at least {least:g}, one patch")
    extractor.max_length = config.max_length = frames
    if kept == before:
        return []
    prefix = table.shape[1] - rows * before
    start = before // 2 - kept // 2
    grid = table.detach()[:, prefix:].view(1, rows, before, -1)[:, :, start : start + kept]
    cut = torch.cat([table.detach()[:, :prefix], grid.flatten(1, 2)], dim=1)
    model.embeddings.position_embeddings = nn.Parameter(cut, requires_grad=False)
    return [f"positions: {kept} of {before} in time, from {start} (the middle)"]
