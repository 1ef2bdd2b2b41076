"""The sidecar of an engine: keeps the engine's adapters as the operator's file lists them."""
