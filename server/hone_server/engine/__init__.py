"""The inference engine: continuous batching, attention, sampling, penalties and prefix cache."""
