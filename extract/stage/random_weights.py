"""Encoders without their weights: the same architecture from its configuration, for counting what it would cost.

Random weights cost what trained ones cost. What timm names it can build by itself; of transformers models a folder with
a config.json serves, and the few that talik's own experiment files name have their published configurations here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .settings import EncoderSettings


def with_random_weights(settings: EncoderSettings, folder: Path) -> EncoderSettings:
    """Return settings that open the same architecture with random weights, without network where that can be.

    Args:
        settings: of an encoder; one whose weights are inside an installed package stays as it is.
        folder: an existing one, where a configuration may be written.
    """
    scheme, _, name = settings.model.partition(":")
    name, _, _ = name.partition("#")
    if scheme == "hf" and name in _PUBLISHED and not Path(name).is_dir():
        place = folder / name.replace("/", "--")
        _PUBLISHED[name](place)
        return replace(settings, model=f"hf:{place}", weights="random")
    return settings if scheme == "pip" else replace(settings, weights="random")


def _roberta_base(folder: Path) -> None:
    """Save RoBERTa-base with random weights; sizes: huggingface.co/FacebookAI/roberta-base, config.json."""
    from transformers import RobertaConfig

    _save(RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5), "RobertaModel", folder)


def _clap_htsat_unfused(folder: Path) -> None:
    """Save CLAP's audio encoder with random weights; sizes: huggingface.co/laion/clap-htsat-unfused, config.json."""
    from transformers import ClapAudioConfig, ClapFeatureExtractor

    _save(ClapAudioConfig(), "ClapAudioModel", folder)
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)


def _save(config: Any, model_class: str, folder: Path) -> None:
    config.architectures = [model_class]
    config.save_pretrained(folder)


_PUBLISHED: dict[str, Callable[[Path], None]] = {
    "FacebookAI/roberta-base": _roberta_base,
    "laion/clap-htsat-unfused": _clap_htsat_unfused,
}
