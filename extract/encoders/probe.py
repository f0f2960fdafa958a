"""What an encoder is tried with when it is loaded: random raw items, one run of its forward, what is found from them.

Letters: B clips, T segments, F frames of a clip, S samples, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import EncoderError, TalikError, TrunkError
from ..trunk.clip_axis import ClipAxis, find_clip_axis
from ..trunk.tracing import tensors
from ..trunk.trunk import Trunk
from ..trunk.verification import draws
from .model_sources import Inputs, OpenedModel

_WORDS = ("which", "sound", "comes", "first", "from", "the", "left", "of", "stage")


def raw_probe(opened: OpenedModel, modality: str, seed: int) -> NDArray[np.uint8] | NDArray[np.float32] | list[str]:
    """Return a batch of two raw items (three for seed 2): noise for frames and sound, texts of unequal lengths.

    Frames (N, H, W, 3) uint8 (N·F of whole clips), waveforms (N, S) float32, or a list of N str.
    """
    num = 2 + (seed == 2)
    random = np.random.default_rng(seed)
    if modality == "visual":
        height, width = opened.image_size or (224, 224)
        return random.integers(0, 256, (num * (opened.num_frames or 1), height, width, 3), dtype=np.uint8)
    if modality == "audio":
        samples = round((opened.window_seconds or 1.0) * (opened.sample_rate_hz or 16000))
        return (0.1 * random.standard_normal((num, samples))).astype(np.float32)
    return [" ".join(random.permutation(_WORDS)[: 3 + seed + 2 * item]) for item in range(num)]


def probe_inputs(opened: OpenedModel, modality: str, seed: int) -> Inputs:
    """Return the inputs made from such raw items.

    Where the processor decides the size, the frames have unlike shapes, so that padding is tried too.
    """
    raw = raw_probe(opened, modality, seed)
    if isinstance(raw, list) or modality == "audio" or opened.image_size is not None:
        return opened.preprocess(raw)
    rows = opened.num_frames or 1
    made = [opened.preprocess(raw[i : i + rows, :, : 224 - 48 * (i > 0)]) for i in range(0, len(raw), rows)]
    return {name: torch.cat([m[name] for m in made]) for name in made[0]}


def try_forward(
    spec: str,
    forward: Callable[[Inputs], Any],
    wrapper: Callable[[Inputs], Any] | None,
    probe: Inputs,
    *,
    modality: str,
) -> None:
    """Run the model once, so that one that cannot run on what it is given is refused in one line.

    Raises:
        EncoderError: it fails, or what is wrapped around it changes its output, or the items of a batch change each
            other's output: of texts, by the padding.
        TrunkError: it draws at random.
    """
    try:
        with torch.no_grad():
            plain = dict(tensors(forward(dict(probe))))
            wrapped = plain if wrapper is None else dict(tensors(wrapper(dict(probe))))
            alone = dict(tensors(forward(_first(probe, modality))))
    except TalikError:
        raise
    except Exception as error:  # whatever the model's own code raises
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in probe.items())
        reason = " ".join(str(error).split())[:200]
        part = "; a part of a model is opened by hf:NAME#part" if spec.startswith("hf:") and "#" not in spec else ""
        raise EncoderError(f"{spec}: its forward fails on {shapes}: {type(error).__name__}: {reason}{part}") from None
    if any(path not in plain or not torch.equal(plain[path], tensor) for path, tensor in wrapped.items()):
        raise EncoderError(f"{spec}: what is wrapped around the model changes its output; it cannot be cut")
    differs = _apart if modality != "text" else _apart_from_padded
    if any(differs(tensor, plain.get(path)) for path, tensor in alone.items()):
        if draws(forward, probe):
            raise TrunkError(f"{spec}: its own forward gives another result each time; it draws at random")
        if modality == "text":
            raise EncoderError(f"{spec}: a text's result depends on its padding; expected padding to be masked")
        raise EncoderError(f"{spec}: the items of a batch change each other's output; expected each to be by itself")


def _first(probe: Inputs, modality: str) -> Inputs:
    """Return the first item of a batch alone, of a text without its padding."""
    mask = probe.get("attention_mask") if modality == "text" else None
    length = None if mask is None else int(mask[0].sum())
    return {n: t[:1] if length is None else t[:1, :length] for n, t in probe.items()}


def _apart_from_padded(alone: Tensor, together: Tensor | None) -> bool:
    """Say whether a text's tokens are far from its tokens in a batch with a longer one.

    Convolutions that look a few tokens beyond the end (ConvBERT) are the model's own; mixing of all places is not.
    """
    if together is None or alone.ndim != 3 or together.ndim != 3 or together.shape[1] < alone.shape[1]:
        return False
    return _apart(alone, together[:, : alone.shape[1]], tolerance=5e-2)


def _apart(alone: Tensor, together: Tensor | None, tolerance: float | None = None) -> bool:
    """Say whether an item's output is far from its output in a batch (both with the batch first)."""
    if together is None or alone.ndim == 0 or not alone.is_floating_point():
        return False
    if alone.shape[0] != 1 or alone.shape[1:] != together.shape[1:]:
        return False
    scale = together.abs().max()
    tolerance = tolerance or (1e-3 if alone.dtype.itemsize >= 4 else 5e-2)
    return bool((alone[0] - together[0]).abs().max() > scale * tolerance)


def clip_axis_of(spec: str, trunk: Trunk, probe: Inputs, num_segments: int | None) -> ClipAxis:
    """Return the time axis of an encoder that takes whole clips.

    Raises:
        TrunkError: its tokens cannot be regrouped by segment.
        SettingsError: not by that many.
    """
    name = next(n for n, t in probe.items() if t.ndim == 5)
    one = {n: t[:1] for n, t in probe.items()}
    axis = find_clip_axis(lambda frames: trunk.embed({**one, name: frames})[0], one[name], num_segments)
    shapes = {shape[1:] for shape in trunk.hidden_shapes}
    if len(shapes) > 1:
        raise TrunkError(
            f"{spec}: takes whole clips, and its units change the number of tokens ({sorted(shapes)}); they cannot be "
            "regrouped by segment"
        )
    return axis


def check_tokens(spec: str, boundary: int, shape: Sequence[int], inputs: Mapping[str, Tensor]) -> None:
    """Raise a TrunkError unless a text's hidden tensor has one row a token, which storing and masks rely on."""
    length = next(iter(inputs.values())).shape[1]
    if tuple(shape[1:2]) != (length,):
        raise TrunkError(
            f"{spec}: boundary {boundary}: texts of {length} tokens have a hidden tensor of shape {tuple(shape)}; "
            "expected one row a token, so that texts of unequal lengths can be stored"
        )


def same_in_all(names: Sequence[str], probes: Sequence[Inputs]) -> Inputs:
    """Return one row (1, …) of each of the named inputs that hold the same in every item of every probe."""
    rows = {n: torch.cat([p[n] for p in probes]) for n in names if not probes[0][n].is_floating_point()}
    return {name: found[:1] for name, found in rows.items() if bool((found == found[:1]).all())}
