"""Models in memory: loading, fused and packed layers, and LoRA adapters in a batch."""
