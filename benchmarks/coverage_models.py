"""The models of the coverage table: one of every timm model file, and small random transformers encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 12}
_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
_WAVE = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "feat_extract_norm": "layer",  # with "group", padding reaches every frame of the model itself
}
_SWIN = {"embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4, "image_size": 64}


@dataclass(frozen=True, kw_only=True)
class Small:
    """A small transformers model.

    Attributes:
        kind: the model type, as configurations name it.
        modality: "visual", "audio" or "text"; says which inputs it is given.
        config: what differs from the defaults.
        part: the part of the model that is cut.
        model_class: the class, where the automatic one does not know the configuration.
        inputs: shapes of float inputs without the batch, where they are not the modality's usual ones.
        required: whether the trunk must be found.
    """

    kind: str
    modality: str
    config: dict[str, Any]
    part: str = ""
    model_class: str = ""
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    required: bool = True

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"{self.kind}#{self.part}" if self.part else self.kind


TRANSFORMERS: tuple[Small, ...] = (
    # text
    Small(kind="bert", modality="text", config=_BERT),
    Small(kind="roberta", modality="text", config=_BERT),
    Small(kind="xlm-roberta", modality="text", config=_BERT),
    Small(
        kind="deberta-v2",
        modality="text",
        config={
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "conv_kernel_size": 3,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
    ),
    Small(
        kind="deberta", modality="text", config={**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    ),
    Small(
        kind="distilbert",
        modality="text",
        config={
            "dim": 48,
            "n_layers": 4,
            "n_heads": 4,
            "hidden_dim": 96,
            "vocab_size": 128,
            "max_position_embeddings": 64,
        },
    ),
    Small(kind="mpnet", modality="text", config=_BERT),
    Small(kind="electra", modality="text", config={**_BERT, "embedding_size": 24}),
    Small(kind="albert", modality="text", config={**_BERT, "embedding_size": 24}),
    Small(
        kind="modernbert",
        modality="text",
        config={**_BERT, "local_attention": 8, "global_attn_every_n_layers": 3, "pad_token_id": 0},
    ),
    Small(
        kind="t5",
        modality="text",
        part="encoder",
        config={"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 4, "num_heads": 4, "vocab_size": 128},
    ),
    Small(
        kind="umt5",
        modality="text",
        part="encoder",
        config={"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 4, "num_heads": 4, "vocab_size": 128},
        required=False,
    ),
    Small(
        kind="bart",
        modality="text",
        part="encoder",
        config={
            "d_model": 48,
            "encoder_layers": 4,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 96,
            "vocab_size": 128,
            "max_position_embeddings": 64,
        },
        required=False,
    ),
    Small(kind="clip_text_model", modality="text", config={**_BERT, "projection_dim": 32, "eos_token_id": 2}),
    Small(
        kind="siglip_text_model",
        modality="text",
        model_class="SiglipTextModel",
        config={**_BERT, "projection_size": 48},
    ),
    Small(
        kind="siglip2_text_model",
        modality="text",
        model_class="Siglip2TextModel",
        config={**_BERT, "projection_size": 48},
    ),
    Small(
        kind="mamba",
        modality="text",
        config={"hidden_size": 48, "num_hidden_layers": 4, "state_size": 8, "vocab_size": 128},
    ),
    Small(
        kind="mamba2",
        modality="text",
        config={
            "hidden_size": 48,
            "num_hidden_layers": 4,
            "state_size": 8,
            "vocab_size": 128,
            "num_heads": 8,
            "head_dim": 12,
            "n_groups": 2,
            "chunk_size": 8,
        },
        required=False,
    ),
    Small(kind="qwen3", modality="text", config=_LLAMA),
    Small(kind="qwen2", modality="text", config={**_BERT, "num_key_value_heads": 2}, required=False),
    Small(kind="gemma3_text", modality="text", config={**_LLAMA, "sliding_window": 4, "num_hidden_layers": 6}),
    Small(kind="llama", modality="text", config=_LLAMA),
    Small(kind="mistral", modality="text", config={**_LLAMA, "sliding_window": 4}, required=False),
    Small(kind="eurobert", modality="text", config={**_LLAMA, "pad_token_id": 0}, required=False),
    Small(kind="esm", modality="text", config={**_BERT, "pad_token_id": 0, "mask_token_id": 4}, required=False),
    Small(kind="nomic_bert", modality="text", config=_LLAMA, required=False),
    Small(kind="convbert", modality="text", config={**_BERT, "embedding_size": 48}, required=False),
    Small(kind="squeezebert", modality="text", config={**_BERT, "embedding_size": 48}, required=False),
    Small(kind="fnet", modality="text", config=_BERT, required=False),
    Small(
        kind="gpt2",
        modality="text",
        config={"n_embd": 48, "n_layer": 4, "n_head": 4, "vocab_size": 128},
        required=False,
    ),
    Small(kind="gpt_neox", modality="text", config=_BERT, required=False),
    Small(
        kind="xlnet",
        modality="text",
        config={"d_model": 48, "n_layer": 4, "n_head": 4, "d_inner": 96, "vocab_size": 128},
        required=False,
    ),
    Small(
        kind="funnel",
        modality="text",
        config={"vocab_size": 128, "d_model": 48, "n_head": 4, "d_head": 12, "d_inner": 96, "block_sizes": [2, 2]},
        model_class="FunnelBaseModel",
        required=False,
    ),
    Small(
        kind="mobilebert",
        modality="text",
        config={**_BERT, "embedding_size": 24, "intra_bottleneck_size": 24, "true_hidden_size": 24},
        required=False,
    ),
    Small(kind="longformer", modality="text", config={**_BERT, "attention_window": [8, 8, 8, 8]}, required=False),
    Small(kind="big_bird", modality="text", config={**_BERT, "attention_type": "original_full"}, required=False),
    # vision
    Small(kind="vit", modality="visual", config=_VIT),
    Small(kind="deit", modality="visual", config=_VIT),
    Small(kind="beit", modality="visual", config={**_VIT, "use_relative_position_bias": True}),
    Small(
        kind="data2vec-vision",
        modality="visual",
        config={**_VIT, "use_shared_relative_position_bias": True},
        required=False,
    ),
    Small(kind="dinov2", modality="visual", config=_VIT),
    Small(kind="dinov2_with_registers", modality="visual", config=_VIT, required=False),
    Small(kind="dinov3_vit", modality="visual", config={**_VIT, "num_register_tokens": 2}),
    Small(
        kind="dinov3_convnext",
        modality="visual",
        config={"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "image_size": 64},
        required=False,
    ),
    Small(kind="clip_vision_model", modality="visual", config=_VIT),
    Small(kind="siglip_vision_model", modality="visual", config={**_VIT, "num_hidden_layers": 8}),
    Small(
        kind="siglip2_vision_model",
        modality="visual",
        config={
            "hidden_size": 48,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "num_patches": 16,
            "patch_size": 4,
        },
        inputs={"pixel_values": (16, 48)},
    ),
    Small(kind="swin", modality="visual", config=_SWIN),
    Small(kind="swinv2", modality="visual", config=_SWIN),
    Small(
        kind="convnext",
        modality="visual",
        config={"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "image_size": 64},
        required=False,
    ),
    Small(
        kind="convnextv2",
        modality="visual",
        config={"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "image_size": 64},
    ),
    Small(
        kind="hiera",
        modality="visual",
        config={"embed_dim": 16, "image_size": [64, 64], "depths": [1, 2, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    Small(
        kind="videomae",
        modality="visual",
        config={**_VIT, "num_frames": 4, "tubelet_size": 2, "image_size": 16},
        inputs={"pixel_values": (4, 3, 16, 16)},
    ),
    Small(
        kind="timesformer",
        modality="visual",
        config={**_VIT, "num_frames": 4, "image_size": 16},
        inputs={"pixel_values": (4, 3, 16, 16)},
    ),
    Small(
        kind="vivit",
        modality="visual",
        config={**_VIT, "num_hidden_layers": 6, "num_frames": 4, "tubelet_size": [2, 8, 8], "image_size": 16},
        inputs={"pixel_values": (4, 3, 16, 16)},
    ),
    Small(
        kind="resnet",
        modality="visual",
        config={"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [2, 2, 3, 2]},
        inputs={"pixel_values": (3, 64, 64)},
        required=False,
    ),
    Small(
        kind="poolformer",
        modality="visual",
        config={"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 2, 1]},
        inputs={"pixel_values": (3, 64, 64)},
        required=False,
    ),
    Small(
        kind="segformer",
        modality="visual",
        config={"hidden_sizes": [16, 32, 40, 64], "depths": [1, 2, 2, 1]},
        inputs={"pixel_values": (3, 64, 64)},
        required=False,
    ),
    Small(
        kind="pvt_v2",
        modality="visual",
        config={"hidden_sizes": [16, 32, 40, 64], "depths": [1, 2, 2, 1]},
        inputs={"pixel_values": (3, 64, 64)},
        required=False,
    ),
    Small(kind="ijepa", modality="visual", config=_VIT, required=False),
    Small(kind="aimv2_vision_model", modality="visual", config=_VIT, required=False),
    Small(
        kind="mobilevit",
        modality="visual",
        config={"hidden_sizes": [32, 40, 48], "neck_hidden_sizes": [8, 12, 16, 24, 24, 24, 64], "image_size": 64},
        required=False,
    ),
    Small(
        kind="focalnet",
        modality="visual",
        config={
            "embed_dim": 16,
            "hidden_sizes": [16, 32, 64],
            "depths": [1, 2, 1],
            "focal_levels": [2, 2, 2],
            "focal_windows": [3, 3, 3],
            "image_size": 64,
        },
        required=False,
    ),
    Small(
        kind="levit",
        modality="visual",
        config={
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [2, 2, 2],
            "key_dim": [8, 8, 8],
        },
        inputs={"pixel_values": (3, 224, 224)},
        required=False,
    ),
    Small(
        kind="cvt",
        modality="visual",
        config={"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
        inputs={"pixel_values": (3, 64, 64)},
        required=False,
    ),
    # audio
    Small(
        kind="audio-spectrogram-transformer",
        modality="audio",
        config={
            "hidden_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_length": 48,
            "num_mel_bins": 32,
        },
        inputs={"input_values": (48, 32)},
    ),
    Small(
        kind="clap_audio_model",
        model_class="ClapAudioModel",
        modality="audio",
        config={
            "patch_embeds_hidden_size": 16,
            "hidden_size": 64,
            "depths": [1, 2, 2],
            "num_attention_heads": [1, 2, 4],
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "enable_fusion": False,
            "patch_size": 4,
            "patch_stride": [4, 4],
        },
        inputs={"input_features": (1, 256, 16)},
    ),
    Small(
        kind="whisper",
        modality="audio",
        part="encoder",
        config={
            "d_model": 48,
            "encoder_layers": 4,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 96,
            "vocab_size": 128,
            "max_source_positions": 25,
            "num_mel_bins": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        inputs={"input_features": (16, 50)},
    ),
    Small(kind="wav2vec2", modality="audio", config=_WAVE, inputs={"input_values": (800,)}),
    Small(kind="wav2vec2-conformer", modality="audio", config=_WAVE, inputs={"input_values": (800,)}, required=False),
    Small(kind="wavlm", modality="audio", config=_WAVE, inputs={"input_values": (800,)}),
    Small(kind="hubert", modality="audio", config=_WAVE, inputs={"input_values": (800,)}),
    Small(
        kind="data2vec-audio",
        modality="audio",
        config={**_WAVE, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2},
        inputs={"input_values": (800,)},
    ),
    Small(kind="unispeech-sat", modality="audio", config=_WAVE, inputs={"input_values": (800,)}, required=False),
    Small(
        kind="sew",
        modality="audio",
        config={**_WAVE, "num_hidden_layers": 6, "squeeze_factor": 2},
        inputs={"input_values": (800,)},
        required=False,
    ),
)
