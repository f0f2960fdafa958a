"""Opening pretrained encoders (timm, transformers, packages, PEFT), their preprocessing and their identity."""
