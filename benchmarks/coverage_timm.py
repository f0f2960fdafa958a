"""The timm models of the coverage table: a small one of every model file, shrunk where the smallest is large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from talik.extract.open_timm import backbone_of, classifier_of

CHOSEN: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", {"embed_dim": 96, "depth": 4, "num_heads": 3}),
    "byoanet": ("halonet_h1", {}),
    "byobnet": ("mobileone_s1", {}),
    "cait": ("cait_xxs24_224", {"depth": 6}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {"_size": 64}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {}),
    "deepseek_vit": ("deepseek_vit_412m", {"embed_dim": 96, "depth": 4, "num_heads": 3, "img_size": 84}),
    "deit": ("deit_tiny_patch16_224", {}),
    "densenet": ("densenet121", {}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {"num_classes": 10}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", {}),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m", {"embed_dim": 192, "depth": 10, "num_heads": 3, "img_size": 96}),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_b", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 24}),
    "hieradet_sam2": ("hieradet_small", {"embed_dim": 24}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {"_size": 139}),
    "inception_v3": ("inception_v3", {"_size": 139}),
    "inception_v4": ("inception_v4", {"_size": 139}),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformerv2_s12", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("lcnet_035", {}),
    "mobilenetv5": ("mobilenetv5_base", {"_size": 128}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", {"embed_dim": 96, "depth": 4, "num_heads": 3}),
    "nasnet": ("nasnetalarge", {"_size": 139}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "nfnet": ("nf_regnet_b0", {}),
    "pit": ("pit_ti_224", {}),
    "pnasnet": ("pnasnet5large", {"_size": 139}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", {"embed_dim": 192, "depth": 10, "num_heads": 3, "img_size": 96}),
    "rdnet": ("rdnet_tiny", {}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m1", {}),
    "res2net": ("res2next50", {}),
    "resnest": ("resnest14d", {}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("rexnet_100", {}),
    "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {}),
    "sequencer": ("sequencer2d_s", {}),
    "shvit": ("shvit_s1", {"num_classes": 10}),
    "sknet": ("skresnet18", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {}),
    "tresnet": ("tresnet_m", {}),
    "twins": ("twins_svt_small", {}),
    "vgg": ("vgg11", {"_size": 64}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"embed_dim": 96, "depth": 4, "num_heads": 3}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("xception", {"_size": 139}),
    "xception_aligned": ("xception41p", {}),
    "xcit": ("xcit_nano_12_p8_384", {}),
}


def timm_model(
    name: str, changes: dict[str, Any]
) -> tuple[nn.Module, Callable[..., Any], list[dict[str, Tensor]], Any, Any]:
    """Build a model with random weights, and four batches."""
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
    for seed in range(4):
        random = torch.Generator().manual_seed(seed)
        pixels = torch.randn(2 + (seed == 2), channels, height, width, generator=random)
        batches.append({"pixel_values": pixels})
    backbone = backbone_of(model, batches[0]["pixel_values"])
    return model, lambda inputs: model(inputs["pixel_values"]), batches, classifier_of(model), backbone
