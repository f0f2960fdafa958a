"""Names of models that can be opened, without asking a network: timm's, transformers' model types, what hubs cached."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that can be named.

    Attributes:
        name: as an experiment writes it, "timm:vit_small_patch14_dinov2.lvd142m"; of a model type of transformers
            "hf:NAME-or-folder" has to be found first.
        source: "timm", "hf", "pip", or "type" for a model type of transformers.
        note: what there is to know beside.
    """

    name: str
    source: str
    note: str = ""


def list_models(part: str = "", *, packaged: Iterable[str] = ()) -> tuple[KnownModel, ...]:
    """List models by a part of their name, offline.

    Args:
        part: in the name, whatever its case; with `*` or `?` a pattern for the whole name after "timm:".
        packaged: names of weights inside installed packages.

    Returns:
        Models of timm with pretrained weights; those of transformers that the hub's cache on this machine holds; then
        the model types of transformers, of which `hf:` opens any folder or name on the hub.

    Example:
        >>> [model.name for model in list_models("vit_small_patch14_dinov2")]
        ['timm:vit_small_patch14_dinov2.lvd142m']
    """
    found = [KnownModel(name=f"pip:{name}", source="pip", note="inside a package") for name in packaged]
    found += [KnownModel(name=f"timm:{name}", source="timm") for name in _timm_names()]
    found += [KnownModel(name=f"hf:{name}", source="hf", note="in the hub's cache here") for name in _cached_names()]
    found += [KnownModel(name=t, source="type", note=f"hf:NAME-or-folder ({c})") for t, c in _model_types().items()]
    return tuple(model for model in found if _matches(model.name, part.strip()))


def nearest_models(name: str) -> str:
    """Return "; did you mean …?" with the names of timm's models nearest to one, "" where none is near.

    >>> nearest_models("vit_smal_patch14_dinov2.lvd142m")
    "; did you mean 'vit_small_patch14_dinov2.lvd142m'? (talik encoders list PART lists them)"
    """
    names = _timm_names()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not near and "." not in name:
        near = difflib.get_close_matches(name, {n.partition(".")[0] for n in names}, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}? (talik encoders list PART lists them)" if near else ""


def _matches(name: str, part: str) -> bool:
    if any(c in part for c in "*?["):
        return fnmatch(name.partition(":")[2].lower() or name, part.lower()) or fnmatch(name.lower(), part.lower())
    return part.lower() in name.lower()


def _timm_names() -> list[str]:
    import timm

    return sorted({*timm.list_models(pretrained=True), *(n for n in timm.list_models() if n.startswith("test_"))})


def _model_types() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return {kind: name if isinstance(name, str) else name[0] for kind, name in MODEL_MAPPING_NAMES.items()}


def _cached_names() -> list[str]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except (CacheNotFound, OSError, ValueError):
        return []
