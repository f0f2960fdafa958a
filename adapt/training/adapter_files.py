"""A trained variant on disk: adapter.safetensors and adapter.json, loaded onto live encoders without any store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from ...cache.atomic_io import replacing
from ...config import to_mapping
from ...errors import RunError
from ..model.joint_model import JointModel
from .run_data import earlier_digests, encoder_digest
from .run_folder import RunFolder, writing

if TYPE_CHECKING:
    from ..config.experiment import VariantSettings
    from .experiment_context import ExperimentContext


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU of all that a model trains, by name; of tied weights one for each name."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def save_adapter(
    folder: RunFolder,
    model: JointModel,
    context: ExperimentContext,
    variant: VariantSettings,
    *,
    cuts: Mapping[str, int],
    answers: Sequence[str] | None = None,
) -> None:
    """Write the trained weights, and what they fit: the encoders with their digests, the insertion, the answers.

    Args:
        folder: the run's.
        model: the trained one.
        context: of the experiment.
        variant: what was trained.
        cuts: by modality, the boundary that its states were read from.
        answers: in the order of the head's classes; the data set's by default.
    """
    path = folder.path / "adapter.safetensors"
    with writing(path):
        with replacing(path) as temporary:
            save_file(trained_tensors(model), temporary, metadata={"format": "pt"})
        if model.adapter is not None:  # formats of other libraries, beside ours
            model.adapter.export(folder.path)
    folder.write_json(
        "adapter.json",
        {
            "adapter": to_mapping(variant.adapter),
            "insertions": [dict(i.boundaries) for i in model.insertions.insertions],
            "insertion": _insertion(model, variant),
            "placement": model.placement,
            "encoders": {m: _encoder(e) for m, e in model.encoders.items()},
            "cached_boundaries": dict(cuts),
            "task": to_mapping(context.experiment.task),
            "answers": list(context.manifest.answers if answers is None else answers),
            "num_segments": context.sampling.num_segments,
        },
    )


def _insertion(model: JointModel, variant: VariantSettings) -> dict[str, Any]:
    num_units = {m: e.num_units for m, e in model.encoders.items()}
    return {
        "asked": to_mapping(variant.insertion),
        "resolved": model.insertions.summary(num_units),
        "notes": list(model.insertions.notes),
    }


def load_adapter(folder: RunFolder, model: JointModel) -> dict[str, Any]:
    """Load a run's trained weights into a model built from the same settings; return adapter.json.

    Raises:
        RunError: the weights are missing, torn, or made on encoders with other digests.
    """
    described = folder.read_json("adapter.json")
    for modality, encoder in model.encoders.items():
        there, here = described["encoders"].get(modality), _encoder(encoder)
        if there is None or there["digest"] not in (here["digest"], *earlier_digests(encoder)):
            found = "none" if there is None else there["digest"][:12]
            raise RunError(
                f"{folder.path}: trained on another {modality} encoder (digest {found}, here {here['digest'][:12]}); "
                "load the encoder that adapter.json names"
            )
    path = folder.path / "adapter.safetensors"
    try:
        tensors = load(path.read_bytes())
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise RunError(f"{path}: not there; the run is not finished") from None
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{path}: does not fit the variant's settings: {str(error).splitlines()[0]}") from None
    return described


def _encoder(encoder: Any) -> dict[str, Any]:
    return {"model": encoder.spec, "digest": encoder_digest(encoder), "num_units": encoder.num_units}
