"""The timm models of the coverage table: a small one of every model file, shrunk where the smallest is large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from talik.extract.encoders.timm import backbone_of, classifier_of

CHOSEN: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", {"embed_dim": 96, "depth": 4, "num_heads": 3}),
    "byoanet": ("lambda_resnet26t", {"_size": 96}),
    "byobnet": ("mobileone_s1", {"_size": 96}),
    "cait": ("cait_xxs24_224", {"depth": 6}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {"_size": 64}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {"_size": 96}),
    "crossvit": ("crossvit_tiny_240", {"depth": ((1, 1, 0), (1, 1, 0), (1, 1, 0))}),
    "csatv2": ("csatv2", {"_size": 96}),
    "cspnet": ("cs3darknet_focus_s", {"_size": 96}),
    "cspnext": ("cspnext_tiny", {"_size": 96}),
    "davit": ("davit_tiny", {"_size": 96}),
    "deepseek_vit": ("deepseek_vit_412m", {"embed_dim": 96, "depth": 4, "num_heads": 3, "img_size": 84}),
    "deit": ("deit_tiny_patch16_224", {"depth": 6}),
    "densenet": ("densenet121", {"_size": 96, "block_config": (2, 3, 3, 2)}),
    "dla": ("dla46x_c", {"_size": 96}),
    "dpn": ("dpn48b", {"_size": 96}),
    "edgenext": ("edgenext_xx_small", {"_size": 96}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {"_size": 96}),
    "efficientvit_msra": ("efficientvit_m0", {"num_classes": 10}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", {"_size": 96}),
    "fasternet": ("fasternet_t0", {"_size": 96}),
    "fastvit": ("fastvit_t8", {"_size": 96}),
    "focalnet": ("focalnet_tiny_srf", {"_size": 96}),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m", {"embed_dim": 192, "depth": 10, "num_heads": 3, "img_size": 96}),
    "ghostnet": ("ghostnet_050", {"_size": 96}),
    "hardcorenas": ("hardcorenas_b", {"_size": 96}),
    "hgnet": ("hgnetv2_b0", {"_size": 96}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 24}),
    "hieradet_sam2": ("hieradet_small", {"_size": 96, "embed_dim": 24}),
    "hrnet": ("hrnet_w18_small", {"_size": 96}),
    "iformer": ("iformer_t", {"_size": 96}),
    "inception_next": ("inception_next_atto", {"_size": 96}),
    "inception_resnet_v2": ("inception_resnet_v2", {"_size": 96}),
    "inception_v3": ("inception_v3", {"_size": 96}),
    "inception_v4": ("inception_v4", {"_size": 96}),
    "lcnetv2": ("lcnetv2_small", {"_size": 96}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {"_size": 96}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformerv2_s12", {"_size": 96}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("lcnet_035", {}),
    "mobilenetv5": ("mobilenetv5_base", {"_size": 64}),
    "mobilevit": ("mobilevit_xxs", {"_size": 96}),
    "mvitv2": ("mvitv2_tiny", {"_size": 96}),
    "naflexvit": ("naflexvit_base_patch16_gap", {"_size": 96, "embed_dim": 96, "depth": 4, "num_heads": 3}),
    "nasnet": ("nasnetalarge", {"_size": 96}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {"_size": 96}),
    "nfnet": ("nf_regnet_b0", {"_size": 96}),
    "pit": ("pit_ti_224", {}),
    "pnasnet": ("pnasnet5large", {"_size": 96}),
    "pvt_v2": ("pvt_v2_b0", {"_size": 96}),
    "qwen3_vit": ("qwen3_vit_88m", {"embed_dim": 192, "depth": 10, "num_heads": 3, "img_size": 96}),
    "rdnet": ("rdnet_tiny", {"_size": 96}),
    "regnet": ("regnetx_002", {"_size": 96}),
    "repghost": ("repghostnet_050", {"_size": 96}),
    "repvit": ("repvit_m1", {"_size": 96}),
    "res2net": ("res2next50", {"_size": 96}),
    "resnest": ("resnest14d", {"_size": 96}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {"_size": 96}),
    "rexnet": ("rexnet_100", {"_size": 96}),
    "selecsls": ("selecsls42", {"_size": 96}),
    "senet": ("legacy_seresnet18", {"_size": 96}),
    "sequencer": ("sequencer2d_s", {"_size": 96}),
    "shvit": ("shvit_s1", {"num_classes": 10}),
    "sknet": ("skresnet18", {"_size": 96}),
    "starnet": ("starnet_s050", {"_size": 96}),
    "swiftformer": ("swiftformer_xs", {"_size": 96}),
    "swin_transformer": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 32, "depths": (2, 2, 4, 2), "num_heads": (2, 4, 8, 16)},
    ),
    "swin_transformer_v2": (
        "swinv2_tiny_window8_256",
        {"embed_dim": 32, "depths": (2, 2, 4, 2), "num_heads": (2, 4, 8, 16)},
    ),
    "swin_transformer_v2_cr": (
        "swinv2_cr_tiny_224",
        {"embed_dim": 32, "depths": (2, 2, 4, 2), "num_heads": (2, 4, 8, 16)},
    ),
    "tiny_vit": ("tiny_vit_5m_224", {"_size": 96}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 4}),
    "tresnet": ("tresnet_m", {"_size": 96}),
    "twins": ("twins_svt_small", {}),
    "vgg": ("vgg11", {"_size": 64}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"_size": 96, "embed_dim": 96, "depth": 4, "num_heads": 3}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {"_size": 96}),
    "xception": ("xception", {"_size": 96}),
    "xception_aligned": ("xception41p", {"_size": 96}),
    "xcit": ("xcit_nano_12_p8_384", {"_size": 96}),
}


def timm_model(
    name: str, changes: dict[str, Any]
) -> tuple[nn.Module, Callable[..., Any], list[dict[str, Tensor]], Any, Any]:
    """Build a model with random weights, and six batches."""
    torch.manual_seed(0)
    changes = dict(changes)
    shown = changes.pop("_size", None)
    num_classes = changes.pop("num_classes", 0)
    model: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, **changes)
    model.eval().requires_grad_(False)
    for tensor in [*model.parameters(), *model.buffers()]:  # zero-initialised parts would hide what they do
        if tensor.numel() and tensor.is_floating_point() and not tensor.any():
            nn.init.normal_(tensor, std=0.05)
    channels, *native = model.default_cfg["input_size"]
    size = shown or changes.get("img_size", tuple(native))
    height, width = (size, size) if isinstance(size, int) else size
    batches = []
    for seed in range(6):
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randn(2 + (seed == 2), channels, height, width, generator=random)
        batches.append({"pixel_values": pixels})
    backbone = backbone_of(model, batches[0]["pixel_values"])
    return model, lambda inputs: model(inputs["pixel_values"]), batches, classifier_of(model), backbone
