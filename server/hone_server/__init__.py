"""The embedded inference engine: an OpenAI-compatible API on transformers."""
