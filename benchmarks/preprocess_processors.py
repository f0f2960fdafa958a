"""The processors of transformers that are compared: with their default settings, some with others that people use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One processor.

    Args:
        processor: its class.
        model: the model type beside which it stands, with the type's default configuration.
        part: of that model, where the whole takes texts too.
        settings: of the processor.
    """

    processor: str
    model: str
    part: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The class, and the settings that are not its own."""
        return self.processor + (f" {dict(self.settings)}" if self.settings else "")


#: Class and model type; a vision part behind "#".
_DEFAULT = """
    BeitImageProcessor beit
    BitImageProcessor dinov2
    BlipImageProcessor blip#vision_model
    ChineseCLIPImageProcessor chinese_clip#vision_model
    CLIPImageProcessor clip_vision_model
    ConvNextImageProcessor convnext
    DeiTImageProcessor deit
    DINOv3ViTImageProcessor dinov3_vit
    DPTImageProcessor dpt
    EfficientNetImageProcessor efficientnet
    FlavaImageProcessor flava#image_model
    LevitImageProcessor levit
    MobileNetV1ImageProcessor mobilenet_v1
    MobileNetV2ImageProcessor mobilenet_v2
    MobileViTImageProcessor mobilevit
    Owlv2ImageProcessor owlv2#vision_model
    OwlViTImageProcessor owlvit#vision_model
    PoolFormerImageProcessor poolformer
    PvtImageProcessor pvt
    RTDetrImageProcessor rt_detr
    SamImageProcessor sam_vision_model
    Sam2ImageProcessor sam2_vision_model
    Sapiens2ImageProcessor sapiens2
    SegformerImageProcessor segformer
    SegGptImageProcessor seggpt
    SiglipImageProcessor siglip_vision_model
    Siglip2ImageProcessor siglip2_vision_model
    Tipsv2ImageProcessor tipsv2#vision_model
    ViTImageProcessor vit
    VideoMAEImageProcessor videomae
    VideoMAEImageProcessor timesformer
    VivitImageProcessor vivit
    ViTImageProcessor swinv2
    BitImageProcessor hiera
    ConvNextImageProcessor resnet
    CLIPImageProcessor aimv2_vision_model
    DetrImageProcessor detr
    GLPNImageProcessor glpn
    Idefics2ImageProcessor idefics2#vision_model
    ImageGPTImageProcessor imagegpt
    Mask2FormerImageProcessor mask2former
    PerceiverImageProcessor perceiver
    PixtralImageProcessor pixtral
    Qwen2VLImageProcessor qwen2_vl#visual
    Swin2SRImageProcessor swin2sr
    TextNetImageProcessor textnet
    ViltImageProcessor vilt
    YolosImageProcessor yolos
"""

_SQUARE = {"height": 224, "width": 224}

_SETTINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("CLIPImageProcessor", "clip_vision_model", {"size": {"shortest_edge": 256}, "resample": 2}),
    ("CLIPImageProcessor", "clip_vision_model", {"size": {"shortest_edge": 200}, "crop_size": _SQUARE}),
    ("CLIPImageProcessor", "clip_vision_model", {"size": {"shortest_edge": 256, "longest_edge": 400}}),
    ("CLIPImageProcessor", "clip_vision_model", {"do_resize": False}),
    ("ViTImageProcessor", "vit", {"resample": 0}),
    ("ViTImageProcessor", "vit", {"resample": 1}),
    ("ViTImageProcessor", "vit", {"resample": 3}),
    ("ViTImageProcessor", "vit", {"do_normalize": False}),
    ("ViTImageProcessor", "vit", {"do_rescale": False, "do_normalize": False}),
    ("ViTImageProcessor", "vit", {"size": {"height": 160, "width": 224}}),
    ("ViTImageProcessor", "vit", {"size": {"shortest_edge": 224, "longest_edge": 448}}),
    ("EfficientNetImageProcessor", "efficientnet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("DonutImageProcessor", "donut-swin", {"size": {"height": 320, "width": 240}}),
)

PROCESSORS: tuple[Entry, ...] = (
    *(
        Entry(processor=line.split()[0], model=line.split()[1].partition("#")[0], part=line.partition("#")[2])
        for line in _DEFAULT.strip().splitlines()
    ),
    *(Entry(processor=processor, model=model, settings=settings) for processor, model, settings in _SETTINGS),
)
