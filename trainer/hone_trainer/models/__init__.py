"""The base model and its adapter: loading, quantization, LoRA, merged and tied weights."""
