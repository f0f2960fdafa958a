"""`peft:<tuner>`: a tuner of the PEFT library inside the units that the insertion names, one for each encoder.

Source: https://github.com/huggingface/peft, whose own code makes, runs and saves the tuner; what is ours is where it
goes: PEFT is given a module that holds copies of the named units alone, under the names that they have in the encoder's
own model. So PEFT's names and patterns mean what they mean on the whole model, nothing outside those units can be
touched, and what is saved in PEFT's format loads onto the whole model (`PeftModel.from_pretrained`).

Shared parts (VeRA's projections, VB-LoRA's vectors) and budgets (AdaLoRA's ranks) are each encoder's own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import SettingsError
from ...extract.encoders.encoder import Encoder
from ...extract.encoders.unit_replacement import UnitCopies, is_norm
from .peft_lora_start import ChangedWeights, as_plain_lora
from .peft_settings import TUNERS, PeftSettings, import_peft
from .registry import register_adapter
from .unit_tuner import UnitTuner, put_buffer

NAME = "default"  # of the adapter inside PEFT


class PeftUnits(UnitTuner):
    """PEFT's layers in copies of the named units.

    `state_dict()` also holds, as buffers, what PEFT drew or computed at the start and does not train but its result
    depends on, so that weights load into a model whose start was another: random numbers and singular vectors differ
    between seeds, devices and libraries.
    """

    models: dict[str, Any]
    _changed: dict[str, ChangedWeights]

    def __init__(
        self, settings: PeftSettings, encoders: Mapping[str, Encoder], units: Mapping[str, Sequence[int]]
    ) -> None:
        object.__setattr__(self, "models", {})
        super().__init__(settings, encoders, units)
        changed = {m: ChangedWeights(own, NAME) for m, own in self.copies.items()}
        object.__setattr__(self, "_changed", {m: found for m, found in changed.items() if found.layers})
        originals = {m: dict(encoders[m].model.named_parameters()) for m in self.copies}
        for modality, own in self.copies.items():
            for name, parameter in own.tree.named_parameters():
                if not parameter.requires_grad and f".{NAME}" in name and name not in originals[modality]:
                    put_buffer(self, f"{modality}.{name}", parameter.data)
        for modality, found in self._changed.items():
            for name, tensor in found.tensors().items():
                put_buffer(self, f"{modality}.{name}", tensor)
        if settings.tuner == "lora" and not self._changed and not settings.keys.get("use_dora"):
            self._narrow_lora()
        self.register_load_state_dict_pre_hook(_fill_in)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_set_changed)  # type: ignore[no-untyped-call]

    def _narrow_lora(self) -> None:
        """Hold the frozen weights as those of frozen units are: LoRA only adds to what they give."""
        self.narrow_frozen()
        for modality, own in self.copies.items():
            if self.encoders[modality].state_dtype == torch.bfloat16:  # autocast casts the products' operands, once
                layers: Iterable[Any] = own.tree.modules()
                for layer in layers:
                    if hasattr(layer, "cast_input_dtype_enabled"):
                        layer.cast_input_dtype_enabled = False

    def prepare(self, modality: str, copies: UnitCopies) -> None:
        """Let PEFT put its layers into the copies."""
        peft = import_peft()
        config = self.settings.config(modality)
        if self.settings.tuner == "ln_tuning" and config.target_modules == "all-linear":
            config.target_modules = [n for n, m in copies.tree.named_modules() if is_norm(m)]
        try:
            self.models[modality] = peft.PeftModel(copies.tree, config, adapter_name=NAME)
        except Exception as error:  # PEFT's tuners raise what they like
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise SettingsError(f"peft:{self.settings.tuner} on the {modality} encoder: {reason}") from None

    mixes_questions = False  # what is added to the loss is of parameters alone

    def begin_training(self, total_steps: int) -> None:
        """Tell the tuner how many steps there will be; AdaLoRA's schedule needs it.

        Raises:
            SettingsError: a schedule that does not fit into so many steps.
        """
        if self.settings.tuner != "adalora":
            return
        for model in self.models.values():
            config = model.peft_config[NAME]
            if "total_step" not in self.settings.keys:
                model.base_model.rankallocator.set_total_step(total_steps)
            if config.tinit >= config.total_step - config.tfinal:
                raise SettingsError(
                    f"adapter: tinit {config.tinit} and tfinal {config.tfinal} leave nothing of {config.total_step} "
                    "training steps; make them smaller"
                )
            if config.target_r >= config.init_r:
                raise SettingsError(f"adapter: target_r {config.target_r}, expected less than init_r {config.init_r}")

    def extra_loss(self) -> Tensor | None:
        """What the tuner adds to the loss: AdaLoRA's orthogonality (Zhang et al. 2023, eq. 4, as PEFT computes it)."""
        if self.settings.tuner != "adalora":
            return None
        parts = []
        for model in self.models.values():
            weight = model.peft_config[NAME].orth_reg_weight
            own = [(n, p) for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
            gaps = [p @ p.T if "lora_A" in n else p.T @ p for n, p in own]
            norms = [torch.linalg.norm(gap - torch.eye(len(gap), device=gap.device)) for gap in gaps]
            parts.append(weight * torch.stack(norms).mean())
        return torch.stack(parts).sum()

    def after_step(self, step: int) -> None:
        """Call the tuner's hook after an optimiser step, its gradients still there: AdaLoRA sets its ranks."""
        for model in self.models.values():
            hook = getattr(model.base_model, "update_and_allocate", None)
            if hook is not None:
                for parameter in model.parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                hook(step)

    def training_state(self) -> dict[str, Tensor]:
        """What an exact resume needs beside the weights: AdaLoRA's importances and ranks."""
        state = {}
        for modality, model in self.models.items():
            allocator = getattr(model.base_model, "rankallocator", None)
            if allocator is None:
                continue
            for table in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
                for name, value in getattr(allocator, table).items():
                    state[f"{modality}/{table}/{name}"] = value
            for name, kept in (model.peft_config[NAME].rank_pattern or {}).items():
                state[f"{modality}/rank_pattern/{name}"] = torch.tensor(kept, dtype=torch.bool)
        return state

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `training_state` gave."""
        for key, value in state.items():
            modality, table, name = key.split("/", 2)
            model = self.models[modality]
            if table == "rank_pattern":
                config = model.peft_config[NAME]
                config.rank_pattern = {**(config.rank_pattern or {}), name: value.tolist()}
            else:
                getattr(model.base_model.rankallocator, table)[name] = value.to(next(model.parameters()).device)

    def export(self, folder: Path) -> None:
        """Write peft/<modality>/ in PEFT's own format; it loads onto the encoder's own model with PEFT alone."""
        peft = import_peft()
        for modality, model in self.models.items():
            place = folder / "peft" / modality
            place.mkdir(parents=True, exist_ok=True)
            kept = model.peft_config[NAME]
            model.peft_config[NAME] = copy.deepcopy(kept)  # PEFT writes into it
            state = peft.get_peft_model_state_dict(model, adapter_name=NAME)
            config = model.peft_config[NAME].to_dict()
            model.peft_config[NAME] = kept
            if "target_modules" in config:
                config["target_modules"] = sorted(model.base_model.targeted_module_names)
            config |= {"inference_mode": True, "base_model_name_or_path": self.encoders[modality].spec}
            plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
            if modality in self._changed:
                state, plain = as_plain_lora(self._changed[modality], state, plain)
            (place / "adapter_config.json").write_text(json.dumps(plain, indent=2, default=str), encoding="utf-8")
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
            save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})


def _fill_in(module: PeftUnits, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let weights load that an earlier version saved, without the buffers of the start."""
    for name, tensor in module.named_buffers():
        state.setdefault(prefix + name, tensor)


def _set_changed(module: PeftUnits, _: Any) -> None:
    for changed in module._changed.values():
        changed.set_weights()


def _register() -> None:
    for tuner in TUNERS:
        register_adapter(f"peft:{tuner}", PeftSettings, PeftUnits)


_register()
