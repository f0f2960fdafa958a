"""Settings with which every kind of adapter fits encoders of 16, 24 and 32 channels; the others take their defaults."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "trimodal": {"d_model": 8, "d_state": 4, "num_latents": 2, "num_heads": 2},
    "lavish": {"reduction": 4, "groups": 2, "num_latents": 3},
    "dgsct": {"reduction": 4, "groups": 2},
    "lstta": {"d_model": 8, "num_heads": 2},
    "bottleneck": {"d_bottleneck": 4},
    "parallel": {"d_bottleneck": 4},
    "side": {"reduction": 4, "num_heads": 2},
    "peft:fourierft": {"n_frequency": 50},
    "peft:waveft": {"n_frequency": 50},
    "peft:c3a": {"block_size": 8},
    "peft:vblora": {"vector_length": 8, "num_vectors": 16, "topk": 2},
    "peft:oft": {"oft_block_size": 8},
    "peft:boft": {"boft_block_size": 4},
    "peft:miss": {"r": 4},
    "peft:road": {"group_size": 8},
    "peft:shira": {"r": 2},
    "peft:psoft": {"r": 4},
}
